"""Spend at each upstream, and what each may bill beside that. Reads only."""

from collections import defaultdict
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import func, select

from billing.money.postings import DEFAULT_UPSTREAM
from billing.storage.database import Readable
from billing.storage.tables.core import background_responses, batches, upstream_objects, usage


class Spend(NamedTuple):
    """Requests that an upstream served, and what they cost us; `abandoned`: for tries given up. Millicredits."""

    requests: int = 0
    cost: int = 0
    abandoned: int = 0


class UpstreamSpend:
    """Spend by upstream. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Readable) -> None:
        """`database` must be migrated."""
        self._db = database

    async def since(self, time_ms: int) -> dict[str, Spend]:
        """Return name → what was spent there since a time."""
        since = usage.c.created_at >= time_ms
        sums = select(usage.c.upstream, func.count(), func.sum(usage.c.cost_millicredits)).where(since)
        given_up = select(usage.c.tries).where(since, usage.c.abandoned_millicredits > 0)
        abandoned: defaultdict[str, int] = defaultdict(int)
        async with self._db.read() as connection:
            rows = [tuple(row) for row in await connection.execute(sums.group_by(usage.c.upstream))]
            for text in (await connection.execute(given_up)).scalars():
                for one in msgspec.json.decode(text):
                    abandoned[one["upstream"]] += int(one["may_cost"])
        found = {row[0] or DEFAULT_UPSTREAM: Spend(int(row[1]), int(row[2])) for row in rows}
        for name, amount in abandoned.items():
            found[name] = found.get(name, Spend())._replace(abandoned=amount)
        return found

    async def kept(self) -> dict[str, int]:
        """Return name → objects that are kept there, and responses and batches that run there."""
        found: defaultdict[str, int] = defaultdict(int)
        queries: list[tuple[Any, Any]] = [
            (upstream_objects.c.upstream, upstream_objects.c.deleted_at),
            (background_responses.c.upstream, background_responses.c.settled_at),
            (batches.c.upstream, batches.c.settled_at),
        ]
        async with self._db.read() as connection:
            for name, ended in queries:
                query = select(name, func.count()).where(ended.is_(None)).group_by(name)
                for upstream, number in await connection.execute(query):
                    found[upstream or DEFAULT_UPSTREAM] += int(number)
        return dict(found)
