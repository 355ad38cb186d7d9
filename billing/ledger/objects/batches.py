"""Batches that run upstream: who is owed what for each, kept from before it is made there until it is settled."""

from typing import Any, NamedTuple

from sqlalchemy import func, insert, select, update

from billing.storage.database import Database, now_ms
from billing.storage.tables.core import batches


class BatchRow(NamedTuple):
    """A batch as SQL has it. `batch_id` None: whether it was made upstream is not known yet.

    `client_file_id` is the file that its client named, `sent_file_id` what was made of it; `record` is what its
    settling needs, as JSON.
    """

    charge_id: str
    account_id: str
    batch_id: str | None
    client_file_id: str
    sent_file_id: str
    record: str
    created_at: int
    settled_at: int | None
    upstream: str = ""


class Batches:
    """The batches. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def begin(
        self,
        charge_id: str,
        account_id: str,
        client_file_id: str,
        sent_file_id: str,
        record: str,
        upstream: str = "",
    ) -> None:
        """Insert a batch that is about to be made at `upstream`; its hold stays until `end`."""
        async with self._db.write() as connection:
            now = await self._db.clock_ms(connection)
            await connection.execute(
                insert(batches).values(
                    charge_id=charge_id,
                    account_id=account_id,
                    client_file_id=client_file_id,
                    sent_file_id=sent_file_id,
                    record=record,
                    upstream=upstream,
                    created_at=now,
                )
            )

    async def made(self, charge_id: str, batch_id: str) -> None:
        """Note under which id it runs upstream."""
        async with self._db.write() as connection:
            await connection.execute(update(batches).where(batches.c.charge_id == charge_id).values(batch_id=batch_id))

    async def open(self, limit: int) -> list[BatchRow]:
        """Batches that are not settled, oldest first."""
        query = select(batches).where(batches.c.settled_at.is_(None)).order_by(batches.c.created_at).limit(limit)
        async with self._db.read() as connection:
            return [_row(row) for row in await connection.execute(query)]

    async def oldest_ms(self) -> int:
        """Age of the oldest that is not settled; 0 when there is none."""
        query = select(func.min(batches.c.created_at)).where(batches.c.settled_at.is_(None))
        async with self._db.read() as connection:
            began = (await connection.execute(query)).scalar_one()
            return 0 if began is None else max(0, await self._db.clock_ms(connection) - int(began))

    async def age_ms(self, row: BatchRow) -> int:
        """Return how long ago it began, by the clock that said when: the database's, as another machine may make it."""
        async with self._db.read() as connection:
            return await self._db.clock_ms(connection) - row.created_at

    async def find(self, charge_id: str) -> BatchRow | None:
        """Return the batch that was begun under this charge id."""
        async with self._db.read() as connection:
            row = (await connection.execute(select(batches).where(batches.c.charge_id == charge_id))).first()
        return _row(row) if row is not None else None

    async def of_upstream(self, batch_id: str) -> BatchRow | None:
        """Return the batch of this id upstream."""
        async with self._db.read() as connection:
            row = (await connection.execute(select(batches).where(batches.c.batch_id == batch_id))).first()
        return _row(row) if row is not None else None

    async def is_read(self, file_id: str) -> bool:
        """Tell whether a batch that is not settled reads this file."""
        query = select(batches.c.charge_id).where(batches.c.sent_file_id == file_id, batches.c.settled_at.is_(None))
        async with self._db.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def end(self, charge_id: str) -> bool:
        """Mark it as settled; False when it was, so that of two processes one settles it."""
        query = update(batches).where(batches.c.charge_id == charge_id, batches.c.settled_at.is_(None))
        async with self._db.write() as connection:
            return (await connection.execute(query.values(settled_at=now_ms()))).rowcount == 1


def _row(row: Any) -> BatchRow:
    return BatchRow(*(getattr(row, name) for name in BatchRow._fields))
