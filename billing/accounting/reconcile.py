"""Does everything that is derived agree with its source? Findings are reported, never repaired silently.

Each SQL check is one statement, hence one snapshot, so it may run beside traffic; reading blocks no writer (WAL, MVCC).
The balance store and SQL are never read at one instant: see `_check_store`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.reconcile_sums import check_sums
from billing.ledger.audit_log import AuditLog
from billing.money.findings import Finding
from billing.money.holds import Reading
from billing.storage.database import Database

ATTEMPTS = 12
PAUSE_SECONDS = 0.1
CERTAIN = 3
"""Readings in which an account must be wrong, and none in which it is right."""
MOST_DETAILS = 100
DAY_MS = 86_400_000
IN_BATCH = 500

SOLD_SINCE = "SELECT id FROM purchases WHERE created_at >= :since AND customer_id <> '' LIMIT 1"
ANY_BUCKET = "SELECT bucket FROM buckets LIMIT 1"
"""Only Redis is rebuilt bucket by bucket."""

StoreFigures = tuple[dict[str, Reading], dict[str, int], dict[str, int]]
ReadStore = Callable[[Collection[str] | None], Awaitable[StoreFigures]]
"""Reads (figures, held, unflushed) of these accounts (None: of all); what is not held or unflushed may be left out."""

POSTED_VS_TRANSFERS = """
SELECT b.account_id, b.posted_millicredits, coalesce(m.moved, 0) FROM balances b
LEFT JOIN (
    SELECT name, sum(amount) AS moved FROM (
        SELECT credit_account AS name, sum(amount_millicredits) AS amount FROM transfers
         WHERE credit_account >= 'customer:' AND credit_account < 'customer;' GROUP BY credit_account
        UNION ALL
        SELECT debit_account, -sum(amount_millicredits) FROM transfers
         WHERE debit_account >= 'customer:' AND debit_account < 'customer;' GROUP BY debit_account
    ) AS sides GROUP BY name
) AS m ON m.name = 'customer:' || b.account_id
WHERE b.posted_millicredits <> coalesce(m.moved, 0)
"""
USAGE_VS_TRANSFERS = """
SELECT name, day, sum(booked), sum(used), sum(summed) FROM (
    SELECT substr(t.debit_account, 10) AS name, (t.created_at - t.created_at % 86400000) / 86400000 AS day,
           t.amount_millicredits AS booked, coalesce(u.charged_millicredits, 0) AS used, 0 AS summed
      FROM transfers t LEFT JOIN usage u ON u.charge_id = t.reference_id WHERE t.kind = 'usage'
    UNION ALL
    SELECT account_id, booked_day, 0, charged_millicredits, requests FROM usage_daily WHERE charged
) AS both_sides GROUP BY name, day HAVING sum(booked) <> sum(used)
"""
CHARGES_THAT_DIFFER = """
SELECT t.reference_id, t.amount_millicredits, u.charged_millicredits FROM transfers t
LEFT JOIN usage u ON u.charge_id = t.reference_id
WHERE t.kind = 'usage' AND t.debit_account = :name AND t.created_at >= :start AND t.created_at < :end
  AND (u.charge_id IS NULL OR u.charged_millicredits <> t.amount_millicredits) LIMIT :most
"""
USAGE_WITHOUT_TRANSFER = """
SELECT u.charge_id, u.charged_millicredits, u.account_id FROM usage u
LEFT JOIN transfers t ON t.kind = 'usage' AND t.reference_id = u.charge_id
WHERE u.charged_millicredits <> 0 AND t.id IS NULL
"""
PART_THAT_DIFFERS = """
SELECT u.charge_id, coalesce(t.amount_millicredits, 0), u.{column} FROM usage u
LEFT JOIN transfers t ON t.kind = '{kind}' AND t.reference_id = u.charge_id
WHERE u.{column} <> coalesce(t.amount_millicredits, 0)
"""
PART_WITHOUT_ROW = """
SELECT (SELECT coalesce(sum(t.amount_millicredits), 0)
          FROM transfers t LEFT JOIN usage u ON u.charge_id = t.reference_id
         WHERE t.kind = '{kind}' AND t.reference_type = 'charge' AND u.charge_id IS NULL),
       (SELECT coalesce(sum({column}), 0) FROM usage_daily)
"""
PARTS = (("cost", "usage_cost", "cost_millicredits"), ("platform loss", "platform_loss", "loss_millicredits"))
"""Other parts of a charge: in words, its kind of transfer, its column of a usage row."""
OF_ANOTHER_ACCOUNT = """
SELECT u.charge_id, u.account_id, t.debit_account, t.amount_millicredits FROM usage u
JOIN transfers t ON t.kind = 'usage' AND t.reference_id = u.charge_id
WHERE t.debit_account <> 'customer:' || u.account_id
"""
EXPIRED_VS_TRANSFERS = """
SELECT account_id, sum(booked), sum(expired) FROM (
    SELECT substr(debit_account, 10) AS account_id, amount_millicredits AS booked, 0 AS expired FROM transfers
     WHERE kind = 'expiry'
    UNION ALL
    SELECT account_id, 0, expired_millicredits FROM expiring_lots WHERE expired_millicredits > 0
) AS both_sides GROUP BY account_id HAVING sum(booked) <> sum(expired)
"""
UNPOSTED = text(
    "SELECT account_id, sequence, delta_millicredits FROM outbox WHERE account_id IN :ids AND sequence > :lowest"
).bindparams(bindparam("ids", expanding=True))
POSTED = "SELECT account_id, posted_millicredits, outbox_sequence FROM balances"
POSTED_OF = text(f"{POSTED} WHERE account_id IN :ids").bindparams(bindparam("ids", expanding=True))


class _PostedBalance(NamedTuple):
    balance: int
    sequence: int


class _Comparison(NamedTuple):
    """Differences, the accounts that stood still, the accounts that the store told of."""

    findings: list[Finding]
    quiet: set[str]
    known: set[str]


class Compared(NamedTuple):
    """Result of comparing the balance store with SQL.

    `busy`: accounts that never stood still long enough to be compared.
    """

    findings: list[Finding]
    busy: tuple[str, ...]


class Traces(NamedTuple):
    """Traces in the ledger of the service that writes it: it sells through Stripe, it keeps balances in Redis."""

    stripe: bool
    redis: bool


async def traces(database: Database, since_ms: int) -> Traces:
    """For whoever compares from another shell, which may know less than the service.

    Purchases count from a time on (Unix ms).
    """
    async with database.read() as connection:
        sold = (await connection.execute(text(SOLD_SINCE), {"since": since_ms})).first()
        bucket = (await connection.execute(text(ANY_BUCKET))).first()
    return Traces(stripe=sold is not None, redis=bucket is not None)


async def reconcile(database: Database, read_store: ReadStore | None) -> list[Finding]:
    """Every check of the ledger, of usage and of the balance store (None: leave that out). Raises StoreUnavailable."""
    findings = await check_ledger(database)
    if read_store is not None:
        findings += (await check_store(database, read_store)).findings
    return findings


async def check_ledger(database: Database) -> list[Finding]:
    """Compare posted balances with transfers (I6); usage with transfers by account and day, and charge by charge; the
    kept sums of days with both.

    What is found is looked for once more, as a statement that PostgreSQL planned before a month's partition was made
    does not see the rows that moved into it. Raises StoreUnavailable.
    """
    found = {(one.check, one.subject) for one in await _look_at_ledger(database)}
    return [one for one in await _look_at_ledger(database) if (one.check, one.subject) in found] if found else []


async def _look_at_ledger(database: Database) -> list[Finding]:
    async with database.read() as connection:
        posted = (await connection.execute(text(POSTED_VS_TRANSFERS))).all()
        findings = [Finding("posted balance vs sum(transfers)", row[0], int(row[2]), int(row[1])) for row in posted]
        days = (await connection.execute(text(USAGE_VS_TRANSFERS))).all()
        for name, day, booked, used, summed in sorted(days):
            findings.append(
                Finding("sum(usage) vs sum(ledger charges)", f"{name} {_day(int(day))}", int(booked), int(used))
            )
            if not summed:  # of a day that retention has summed up, only the sum can be wrong
                findings += await _details(connection, str(name), int(day))
        unbooked = (await connection.execute(text(USAGE_WITHOUT_TRANSFER))).all()
        findings += await _parts(connection)
        moved = (await connection.execute(text(OF_ANOTHER_ACCOUNT))).all()
        findings += await check_sums(connection)
        expired = (await connection.execute(text(EXPIRED_VS_TRANSFERS))).all()
    findings += [Finding("expired credits of lots vs transfers", row[0], int(row[1]), int(row[2])) for row in expired]
    for charge, account, debited, amount in moved:
        findings.append(
            Finding(
                "usage row of another account than its charge",
                f"{charge} of {account}, charged to {debited}",
                int(amount),
                0,
            )
        )
    findings += [Finding("usage row without its transfer", f"{row[0]} of {row[2]}", 0, int(row[1])) for row in unbooked]
    return findings


async def _parts(connection: AsyncConnection) -> list[Finding]:
    """Compare the cost of each charge, from which margins are computed, and what nobody paid for it."""
    findings = []
    for words, kind, column in PARTS:
        rows = (await connection.execute(text(PART_THAT_DIFFERS.format(kind=kind, column=column)))).all()
        findings += [
            Finding(f"{words} of a usage row vs its transfer", row[0], int(row[1]), int(row[2])) for row in rows
        ]
        # of rows that retention has dropped only the sum is known, and not by day: a free request is summed where it
        # was asked for
        booked, summed = (await connection.execute(text(PART_WITHOUT_ROW.format(kind=kind, column=column)))).one()
        if booked != summed:
            findings.append(
                Finding(
                    f"{words} of charges without a usage row vs the sums of dropped rows",
                    "in all",
                    int(booked),
                    int(summed),
                )
            )
    return findings


async def check_audit(database: Database, known: Collection[str] = ()) -> list[Finding]:
    """Walk the hash chain of the audit log; `known` heads must be in it. Raises StoreUnavailable."""
    verdict = await AuditLog(database).verify(known)
    if not verdict.problem:
        return []
    return [
        Finding("audit log (good rows, then a broken one)", verdict.problem[:200], verdict.rows + 1, verdict.rows, 0)
    ]


async def _details(connection: AsyncConnection, name: str, day: int) -> list[Finding]:
    """Find the charges of a day that make the difference."""
    values = {"name": f"customer:{name}", "start": day * DAY_MS, "end": (day + 1) * DAY_MS, "most": MOST_DETAILS}
    rows = (await connection.execute(text(CHARGES_THAT_DIFFER), values)).all()
    found = []
    for charge, booked, used in rows:
        if used is None:
            found.append(Finding("charge without a usage row", charge, int(booked), 0, 0))
        else:
            found.append(Finding("usage row vs its transfer", charge, int(booked), int(used), 0))
    return found


async def check_store(database: Database, read_store: ReadStore) -> Compared:
    """Compare the balance store with SQL (I6).

    Two stores are never read at one instant. A reading counts where SQL said the same of the account before and after
    the store was read; and an account is wrong when no reading of it agreed. Only accounts that did not agree are read
    again, which takes milliseconds, so that even a busy one stands still for one of the readings.
    """
    suspects: dict[tuple[str, str], Finding] = {}
    times: Counter[tuple[str, str]] = Counter()
    wanted: set[str] | None = None
    unread: set[str] = set()
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_SECONDS)
        reading = await _compare(database, read_store, wanted)
        unread = (reading.known if wanted is None else unread) - reading.quiet
        fresh = {(finding.check, finding.subject): finding for finding in reading.findings}
        times.update(fresh.keys())
        # one reading that agrees clears an account; a reading in which it did not stand still says nothing
        suspects = {
            key: finding
            for key, finding in {**suspects, **fresh}.items()
            if key in fresh or key[1] not in reading.quiet
        }
        wanted = {account for _, account in suspects} | unread
        if not wanted:
            break
    certain = sorted(finding for key, finding in suspects.items() if times[key] >= CERTAIN)
    return Compared(certain, tuple(sorted((wanted or set()) - {finding.subject for finding in certain})))


async def _compare(database: Database, read_store: ReadStore, wanted: set[str] | None) -> _Comparison:
    async with database.read() as connection:
        before = await _posted(connection, wanted)
        figures, held, unflushed = await read_store(wanted)
        after = await _posted(connection, wanted)
        behind = {
            account: reading.sequence
            for account, reading in figures.items()
            if account in after and after[account].sequence > reading.sequence
        }
        ahead = await _unapplied(connection, behind, after)
    # of every account of a large store this takes a while: beside serving, not in its way
    return await asyncio.to_thread(_differences, before, after, ahead, (figures, held, unflushed))


def _differences(
    before: dict[str, _PostedBalance], after: dict[str, _PostedBalance], ahead: dict[str, int], store: StoreFigures
) -> _Comparison:
    figures, held, unflushed = store
    quiet = {account for account in figures if before.get(account) == after.get(account)}
    findings = []
    for account in sorted(quiet):
        reading = figures[account]
        expected = (
            (after[account].balance if account in after else 0) - ahead.get(account, 0) - unflushed.get(account, 0)
        )
        if reading.balance != expected:
            findings.append(Finding("cached balance vs ledger", account, expected, reading.balance))
        if reading.held != held.get(account, 0):
            findings.append(Finding("held vs sum(holds)", account, held.get(account, 0), reading.held))
    return _Comparison(findings, quiet, set(figures))


async def _posted(connection: AsyncConnection, wanted: set[str] | None) -> dict[str, _PostedBalance]:
    if wanted is None:
        rows: Sequence[Any] = (await connection.execute(text(POSTED))).all()
    else:
        rows = [row for ids in _batches(wanted) for row in (await connection.execute(POSTED_OF, {"ids": ids})).all()]
    return {row[0]: _PostedBalance(int(row[1]), int(row[2])) for row in rows}


async def _unapplied(
    connection: AsyncConnection, behind: dict[str, int], posted: dict[str, _PostedBalance]
) -> dict[str, int]:
    """Account → millicredits that SQL has booked and the store has not been told of yet."""
    found: dict[str, int] = {}
    for ids in _batches(behind):
        lowest = min(behind[account] for account in ids)
        for account, sequence, delta in (await connection.execute(UNPOSTED, {"ids": ids, "lowest": lowest})).all():
            if behind[account] < sequence <= posted[account].sequence:
                found[account] = found.get(account, 0) + int(delta)
    return found


def _batches(names: Collection[str]) -> list[list[str]]:
    ordered = sorted(names)
    return [ordered[start : start + IN_BATCH] for start in range(0, len(ordered), IN_BATCH)]


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS // 1_000, UTC).date().isoformat()
