"""The audit log: what admins changed, in rows that only grow, each chained to the one before by its hash.

A row is written in the transaction of the change that it tells of, so neither is there without the other. A changed,
missing or inserted row breaks the chain. A chain that is cut off, or written anew as a whole, is not broken: so its
head is kept elsewhere. `tollkeeper audit head` prints it, every reconciliation logs it, and a file gathers it
(`jobs.audit_head_file`).
"""

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.operations import audit_log

BEGINNING = "0" * 64
HEAD_LINE = re.compile(r"[0-9]{1,19} ([0-9a-f]{64})")
"""A head as `tollkeeper audit head` prints it: its number and hash."""
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

    async def head(self) -> ChainHead:
        """Return the last row's number and hash, without walking the chain."""
        last = await self.newest(1)
        return ChainHead(last[0].id, last[0].hash) if last else ChainHead(0, BEGINNING)

    async def verify(self, known: Collection[str] = ()) -> ChainVerification:
        """Walk the chain. `known`: hashes that were its head once and must still be in it."""
        head, count, wanted = ChainHead(0, BEGINNING), 0, set(known)
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
            wanted.discard(head.hash)
        lost = f"no row has the hash {min(wanted)}: rows were cut off or written anew" if wanted else ""
        return ChainVerification(count, head, lost)


def read_heads(path: Path) -> list[str]:
    """Hashes that a file of `keep_head` holds. Raises OSError, ValueError for a line that is none of ours."""
    heads = []
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        found = HEAD_LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} of {path} is no head of an audit log")
        heads.append(found[1])
    return heads


def keep_head(path: Path, head: ChainHead) -> None:
    """Append a head to a file that only grows, unless it is there already. Raises OSError, ValueError."""
    if path.exists() and head.hash in read_heads(path)[-1:]:
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
        file.write(f"{head.id} {head.hash}\n")
