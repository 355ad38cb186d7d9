"""Amounts that a command moved, on their way to the counters of the service: what a shell credits counts as well.

A command's process ends with its metrics. It adds what it counted here; the process that runs the jobs takes it, once,
and counts it as its own.
"""

from collections.abc import Mapping

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.storage.database import Database
from billing.storage.tables.payments import sweep_marks

PREFIX = "counted:"


class CommandCounts:
    """Rows of sweep_marks under their own prefix. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def add(self, counts: Mapping[str, int]) -> None:
        """Leave what was counted, by name."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        async with self._db.write() as connection:
            for name, number in counts.items():
                statement = dialect.insert(sweep_marks).values(name=PREFIX + name, value=number)
                added = {"value": sweep_marks.c.value + statement.excluded.value}
                await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=added))

    async def take(self) -> dict[str, int]:
        """Return what was left since the last time, and forget it."""
        waits = (sweep_marks.c.name.startswith(PREFIX), sweep_marks.c.value != 0)
        query = select(sweep_marks.c.name, sweep_marks.c.value).where(*waits)
        async with self._db.read() as connection:
            if (await connection.execute(query.limit(1))).first() is None:
                return {}
        async with self._db.write() as connection:
            rows = (await connection.execute(query.with_for_update())).all()
            await connection.execute(update(sweep_marks).where(*waits).values(value=0))
        return {name.removeprefix(PREFIX): int(value) for name, value in rows}
