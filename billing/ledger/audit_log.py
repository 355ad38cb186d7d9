"""The audit log: what admins changed, in rows that only grow, each chained to the one before by its hash.

A row is written in the transaction of the change that it tells of, so neither is there without the other. A changed,
missing or inserted row breaks the chain; rows cut off at the end do not, so keep the head (`tollkeeper audit verify`
prints it) elsewhere.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.operations import audit_log

BEGINNING = "0" * 64
BATCH = 1_000
ADVISORY_LOCK = 7_305_002
Check = Callable[[AsyncConnection], Awaitable[None]]
"""Looks at the books inside the transaction of a change, and raises to stop it.

Runs after the audit row, which lets one writer in.
"""


class Who(NamedTuple):
    """Author of a change, and the request that it came by."""

    actor: str
    role: str
    request_id: str = ""
    ip: str = ""


class Change(NamedTuple):
    """One change. `before` and `after` are JSON values without secrets; None where there was or is nothing."""

    action: str
    subject: str
    before: Any
    after: Any
    reason: str = ""


class AuditRow(NamedTuple):
    """A row of the log. `before` and `after` are JSON; `created_at` in Unix milliseconds."""

    id: int
    created_at: int
    actor: str
    role: str
    action: str
    subject: str
    before: str
    after: str
    reason: str
    request_id: str
    ip: str
    previous_hash: str
    hash: str = ""


class ChainHead(NamedTuple):
    """The last row: its number (0: there is none) and hash."""

    id: int
    hash: str


class ChainVerification(NamedTuple):
    """Result of walking the chain: the number of rows that hold, the head, the first fault ("": none)."""

    rows: int
    head: ChainHead
    problem: str


async def take_turn(connection: AsyncConnection) -> None:
    """Wait until no other change is on its way; the turn ends with the transaction.

    SQLite's write transactions take turns anyhow.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


async def record_change(connection: AsyncConnection, who: Who | None, change: Change) -> None:
    """Append a row if an admin did it (`who`); what the product does by itself is in its own records.

    Writers come one after the other: the chain has one end.
    """
    if who is None:
        return
    await take_turn(connection)
    query = select(audit_log.c.id, audit_log.c.hash).order_by(audit_log.c.id.desc()).limit(1)
    last = (await connection.execute(query)).first()
    row = AuditRow(
        id=(last[0] if last else 0) + 1,
        created_at=now_ms(),
        actor=who.actor[:120],
        role=who.role,
        action=change.action,
        subject=change.subject[:200],
        before=msgspec.json.encode(change.before).decode(),
        after=msgspec.json.encode(change.after).decode(),
        reason=change.reason,
        request_id=who.request_id[:80],
        ip=who.ip[:64],
        previous_hash=last[1] if last else BEGINNING,
    )
    await connection.execute(insert(audit_log).values(row._replace(hash=hash_of(row))._asdict()))


def hash_of(row: AuditRow) -> str:
    """Return the SHA-256 over every field but itself, the hash of the row before among them."""
    return hashlib.sha256(msgspec.json.encode(row[:-1])).hexdigest()


COLUMNS = columns_of(audit_log, AuditRow._fields)


class AuditLog:
    """Reads the log. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def write(self, who: Who, change: Change) -> None:
        """Append a row by itself, for what has no transaction of ours."""
        async with self._db.write() as connection:
            await record_change(connection, who, change)

    async def rows(self, after_id: int = 0) -> AsyncIterator[AuditRow]:
        """Every row after that number, oldest first."""
        while True:
            query = select(*COLUMNS).where(audit_log.c.id > after_id).order_by(audit_log.c.id).limit(BATCH)
            async with self._db.read() as connection:
                batch = [AuditRow(*row) for row in await connection.execute(query)]
            for row in batch:
                yield row
            if len(batch) < BATCH:
                return
            after_id = batch[-1].id

    async def newest(self, limit: int, subject: str | None = None, before_id: int | None = None) -> list[AuditRow]:
        """Return the latest rows, newest first."""
        query = select(*COLUMNS).order_by(audit_log.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(audit_log.c.subject == subject)
        if before_id is not None:
            query = query.where(audit_log.c.id < before_id)
        async with self._db.read() as connection:
            return [AuditRow(*row) for row in await connection.execute(query)]

    async def verify(self, known: str = "") -> ChainVerification:
        """Walk the chain. `known`: a hash that was the head once and must still be in it."""
        head, count, seen = ChainHead(0, BEGINNING), 0, not known
        async for row in self.rows():
            if row.id != head.id + 1:
                return ChainVerification(
                    count, head, f"row {head.id + 1} is missing: row {row.id} follows row {head.id}"
                )
            if row.previous_hash != head.hash:
                return ChainVerification(count, head, f"row {row.id} does not continue row {head.id}")
            if row.hash != hash_of(row):
                return ChainVerification(count, head, f"row {row.id} was changed after it was written")
            head, count = ChainHead(row.id, row.hash), count + 1
            seen = seen or head.hash == known
        return ChainVerification(count, head, "" if seen else f"no row has the hash {known}: rows were cut off")
