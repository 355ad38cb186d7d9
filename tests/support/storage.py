"""Vector stores of a past that a test made up, and what was charged and told of them."""

import time
from typing import Any

from sqlalchemy import insert, select, update

from billing.ledger.objects.upstream_objects import MadeObject, UpstreamObjects
from billing.storage.database import Database
from billing.storage.tables.core import upstream_objects
from billing.storage.tables.payments import notices
from billing.storage.tables.vector_stores import store_sizes

DAY_MS = 86_400_000
GB = 10**9


def today() -> int:
    """The UTC day since 1970."""
    return time.time_ns() // 1_000_000 // DAY_MS


async def store_since(
    database: Database, account_id: str, store_id: str, sizes: dict[int, int], days: int = 1, upstream: str = ""
) -> None:
    """A store that was made so many days ago at an upstream, with what it took on days relative to today."""
    await UpstreamObjects(database).record_owner(account_id, "req_1", [MadeObject(store_id, "vector_store")], upstream)
    async with database.write() as connection:
        made = (today() - days) * DAY_MS + 1_000
        changed = update(upstream_objects).where(upstream_objects.c.id == store_id)
        await connection.execute(changed.values(created_at=made, seen_at=time.time_ns() // 1_000_000))
        for day, size in sizes.items():
            await connection.execute(insert(store_sizes).values(store_id=store_id, day=today() + day, bytes=size))


async def told(database: Database) -> list[tuple[str, str]]:
    """(kind, account) of every notice, oldest first."""
    query = select(notices.c.kind, notices.c.account_id).order_by(notices.c.created_at, notices.c.id)
    async with database.read() as connection:
        return [(row[0], row[1]) for row in await connection.execute(query)]


async def rows_of(database: Database, table: Any) -> list[Any]:
    """Every row of a table."""
    async with database.read() as connection:
        return list(await connection.execute(select(table)))
