"""Does everything that is derived agree with its source? Findings are reported, never repaired silently."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sqlalchemy import text

from billing.database import Database
from billing.holds import Reading

ATTEMPTS = 5
PAUSE_SECONDS = 0.3

StoreFigures = tuple[dict[str, Reading], dict[str, int], dict[str, int]]

POSTED_VS_TRANSFERS = """
SELECT b.account_id, b.posted_millicredits,
       (SELECT coalesce(sum(amount_millicredits), 0) FROM transfers WHERE credit_account = 'customer:' || b.account_id)
     - (SELECT coalesce(sum(amount_millicredits), 0) FROM transfers WHERE debit_account = 'customer:' || b.account_id)
FROM balances b
"""
USAGE_VS_TRANSFERS = """
SELECT u.account_id, coalesce(sum(u.charged_millicredits), 0),
       (SELECT coalesce(sum(t.amount_millicredits), 0) FROM transfers t
         WHERE t.kind = 'usage' AND t.debit_account = 'customer:' || u.account_id)
FROM usage u GROUP BY u.account_id
"""
CHARGES_WITHOUT_USAGE = """
SELECT t.reference_id, t.amount_millicredits FROM transfers t
LEFT JOIN usage u ON u.charge_id = t.reference_id WHERE t.kind = 'usage' AND u.charge_id IS NULL LIMIT 100
"""
CHARGES_THAT_DIFFER = """
SELECT u.charge_id, u.charged_millicredits, coalesce(t.amount_millicredits, 0) FROM usage u
LEFT JOIN transfers t ON t.kind = 'usage' AND t.reference_id = u.charge_id
WHERE u.charged_millicredits <> coalesce(t.amount_millicredits, 0) LIMIT 100
"""
UNAPPLIED = "SELECT account_id, sequence, delta_millicredits FROM outbox WHERE sequence > :none"
POSTED = "SELECT account_id, posted_millicredits, outbox_sequence FROM balances"


class Finding(NamedTuple):
    """One disagreement, in millicredits."""

    check: str
    subject: str
    expected: int
    found: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.check}: {self.subject}: expected {self.expected}, found {self.found} (difference {self.found - self.expected})"


async def reconcile(database: Database, store_figures: Callable[[], Awaitable[StoreFigures]] | None) -> list[Finding]:
    """Every check. `store_figures` reads the balance store (None: leave it out). Raises StoreUnavailable."""
    findings = await _check_sql(database)
    if store_figures is not None:
        findings += await _check_store(database, store_figures)
    return findings


async def _check_sql(database: Database) -> list[Finding]:
    async with database.read() as connection:
        posted = (await connection.execute(text(POSTED_VS_TRANSFERS))).all()
        usage = (await connection.execute(text(USAGE_VS_TRANSFERS))).all()
        orphans = (await connection.execute(text(CHARGES_WITHOUT_USAGE))).all()
        differing = (await connection.execute(text(CHARGES_THAT_DIFFER))).all()
    findings = [Finding("posted balance vs sum(transfers)", row[0], int(row[2]), int(row[1])) for row in posted if row[1] != row[2]]
    findings += [Finding("sum(usage) vs sum(ledger charges)", row[0], int(row[2]), int(row[1])) for row in usage if row[1] != row[2]]
    findings += [Finding("charge without a usage row", row[0], 0, int(row[1])) for row in orphans]
    findings += [Finding("usage row vs its transfer", row[0], int(row[1]), int(row[2])) for row in differing]
    return findings


async def _check_store(database: Database, store_figures: Callable[[], Awaitable[StoreFigures]]) -> list[Finding]:
    """Under traffic two stores are never read at one instant: only what disagrees in every reading is a finding."""
    suspects: dict[tuple[str, str], Finding] | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_SECONDS)
        now = {(finding.check, finding.subject): finding for finding in await _compare_store(database, store_figures)}
        suspects = now if suspects is None else {key: now[key] for key in suspects.keys() & now.keys()}
        if not suspects:
            return []
    return sorted((suspects or {}).values())


async def _compare_store(database: Database, store_figures: Callable[[], Awaitable[StoreFigures]]) -> list[Finding]:
    figures, held, unflushed = await store_figures()
    async with database.read() as connection:
        posted = {row[0]: (int(row[1]), int(row[2])) for row in (await connection.execute(text(POSTED))).all()}
        outbox = (await connection.execute(text(UNAPPLIED), {"none": 0})).all()
    findings = []
    for account_id, reading in figures.items():
        ledger, _ = posted.get(account_id, (0, 0))
        ahead = sum(int(row[2]) for row in outbox if row[0] == account_id and row[1] > reading.sequence)
        expected = ledger - ahead - unflushed.get(account_id, 0)
        if reading.balance != expected:
            findings.append(Finding("cached balance vs ledger", account_id, expected, reading.balance))
        if reading.held != held.get(account_id, 0):
            findings.append(Finding("held vs sum(holds)", account_id, held.get(account_id, 0), reading.held))
    return findings
