"""Owners of what was made in the shared upstream account (I8), and responses that go on there after their request was
answered.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.storage.database import Database, now_ms
from billing.storage.tables.core import background_responses, upstream_objects

CONTAINER_SESSION_MS = 20 * 60 * 1_000
"""A container is billed once per session.

A session ends 20 minutes after its last use (docs/openai.md#hosted-tools).
"""


class OwnedObject(NamedTuple):
    """An object and its owner. `context_tokens`: what a request that refers to it re-reads; None = not known.

    `picture_extra`: how much more with a model that counts pictures by another rule than `model`.
    """

    kind: str
    account_id: str
    charge_id: str
    context_tokens: int | None
    deleted: bool
    model: str = ""
    picture_extra: int = 0


class MadeObject(NamedTuple):
    """An object to be recorded."""

    object_id: str
    kind: str
    context_tokens: int | None = None
    model: str = ""
    picture_extra: int = 0


class BackgroundResponse(NamedTuple):
    """A background response that is not settled yet; `record` is what its settling needs, as JSON."""

    response_id: str
    charge_id: str
    account_id: str
    record: str
    created_at: int


class UpstreamObjects:
    """The owners. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def record_owner(self, account_id: str, charge_id: str, made: Sequence[MadeObject]) -> None:
        """Record the owner of these: the first one stays (I8), what a later record knows better is updated."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(upstream_objects)
        same_owner = upstream_objects.c.account_id == statement.excluded.account_id
        statement = statement.on_conflict_do_update(
            index_elements=["id"],
            set_={name: statement.excluded[name] for name in ("context_tokens", "model", "picture_extra")},
            where=same_owner,
        )
        rows = [
            {
                "id": one.object_id,
                "kind": one.kind,
                "account_id": account_id,
                "charge_id": charge_id,
                "context_tokens": one.context_tokens,
                "model": one.model,
                "picture_extra": one.picture_extra,
                "created_at": now_ms(),
            }
            for one in sorted(made)
        ]
        async with self._db.write() as connection:
            await connection.execute(statement, rows)

    async def find(self, object_id: str) -> OwnedObject | None:
        """Return the object of that id, deleted ones included."""
        table = upstream_objects.c
        query = select(
            table.kind,
            table.account_id,
            table.charge_id,
            table.context_tokens,
            table.deleted_at,
            table.model,
            table.picture_extra,
        ).where(table.id == object_id)
        async with self._db.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return OwnedObject(row[0], row[1], row[2], row[3], row[4] is not None, row[5] or "", row[6] or 0)

    async def forget(self, object_id: str) -> None:
        """Mark it as deleted by its owner."""
        async with self._db.write() as connection:
            await connection.execute(
                update(upstream_objects).where(upstream_objects.c.id == object_id).values(deleted_at=now_ms())
            )

    async def new_sessions(self, account_id: str, charge_id: str, containers: Sequence[str]) -> int:
        """Count those of these containers that were not used in the last 20 minutes; they are used now."""
        new, now = 0, now_ms()
        async with self._db.write() as connection:
            for container in sorted(set(containers)):
                seen = (
                    await connection.execute(
                        select(upstream_objects.c.created_at).where(upstream_objects.c.id == container)
                    )
                ).scalar_one_or_none()
                new += seen is None or seen < now - CONTAINER_SESSION_MS
                if seen is None:
                    await connection.execute(
                        insert(upstream_objects).values(
                            id=container, kind="container", account_id=account_id, charge_id=charge_id, created_at=now
                        )
                    )
                else:
                    await connection.execute(
                        update(upstream_objects)
                        .where(upstream_objects.c.id == container, upstream_objects.c.account_id == account_id)
                        .values(created_at=now)
                    )
        return new

    async def begin_background(self, response_id: str, charge_id: str, account_id: str, record: str) -> None:
        """Insert a response that goes on without its request; its hold stays until `end_background`."""
        async with self._db.write() as connection:
            await connection.execute(
                insert(background_responses).values(
                    id=response_id, charge_id=charge_id, account_id=account_id, record=record, created_at=now_ms()
                )
            )

    async def open_background(self, limit: int) -> list[BackgroundResponse]:
        """Background responses that are not settled, oldest first."""
        table = background_responses.c
        columns = (table.id, table.charge_id, table.account_id, table.record, table.created_at)
        query = select(*columns).where(table.settled_at.is_(None)).order_by(table.created_at).limit(limit)
        async with self._db.read() as connection:
            return [BackgroundResponse(*row) for row in await connection.execute(query)]

    async def is_running(self, response_id: str) -> bool:
        """Tell whether it is a background response that is not settled yet."""
        table = background_responses.c
        query = select(table.id).where(table.id == response_id, table.settled_at.is_(None))
        async with self._db.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def end_background(self, response_id: str) -> None:
        """Mark it as settled."""
        async with self._db.write() as connection:
            await connection.execute(
                update(background_responses).where(background_responses.c.id == response_id).values(settled_at=now_ms())
            )
