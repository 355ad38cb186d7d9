"""Monthly partitions of `usage` on PostgreSQL, made ahead; empty ones that are past are dropped. SQLite has none.

Making a partition beside a default one makes PostgreSQL look through the default for rows that would belong to the new
one, with everybody locked out. So the default is first given a constraint that says it has none, which is checked while
rows go on being written; then making the partition takes a moment. A small default's rows of that month are moved
instead.
"""

from datetime import UTC, date, datetime
from typing import NamedTuple

from sqlalchemy import text

from billing.money.findings import Finding
from billing.storage.database import Database

MONTHS_AHEAD = 3
MOST_MOVED = 20_000
LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
EXISTING = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'usage'::regclass
"""
PREFIX = "usage_"
DEFAULT = "usage_default"


class MonthPartition(NamedTuple):
    """A UTC month as a partition: its name, and its bounds in Unix milliseconds."""

    name: str
    start: int
    end: int
    year: int
    month: int

    @property
    def rows(self) -> str:
        """The SQL condition of its rows."""
        return f"created_at >= {self.start} AND created_at < {self.end}"


class PartitionUpkeep(NamedTuple):
    """Result of upkeep. `findings`: months that could not be made."""

    made: list[str]
    dropped: list[str]
    findings: list[Finding]


async def keep_partitions(
    database: Database, today: date, dropped_before_ms: int | None, months: int = MONTHS_AHEAD
) -> PartitionUpkeep:
    """Make this month's partition and those of the coming months, drop empty ones of before retention's bound.

    Raises StoreUnavailable, also when a lock is not to be had within 2 s: it is tried again later.
    """
    kept = PartitionUpkeep([], [], [])
    if database.is_sqlite:
        return kept
    existing = await _existing(database)
    small = await _rows_in_default(database, "true") <= MOST_MOVED
    for ahead in range(months + 1):
        month = month_of(today, ahead)
        if month.name in existing:
            continue
        if small:
            await _step(database, "move", month)
        elif ahead == 0:
            continue  # the present month began in a large default: it ends there
        elif waiting := await _rows_in_default(database, month.rows):
            kept.findings.append(
                Finding("usage rows of a coming month in the default partition", month.name, 0, waiting, 0)
            )
            continue
        else:
            await _make_beside_large(database, month)
        kept.made.append(month.name)
    if dropped_before_ms is not None:
        for name in sorted(existing - {DEFAULT}):
            month_found = _parse(name)
            if (
                month_found is not None
                and month_found.end <= dropped_before_ms
                and await _step(database, "drop", month_found)
            ):
                kept.dropped.append(name)
    return kept


def month_of(today: date, ahead: int) -> MonthPartition:
    """Return the month so many months after that of a day."""
    number = today.year * 12 + today.month - 1 + ahead
    return _month(number // 12, number % 12 + 1)


def _month(year: int, month: int) -> MonthPartition:
    following = (year + month // 12, month % 12 + 1)
    return MonthPartition(f"{PREFIX}{year}_{month:02d}", _start_of(year, month), _start_of(*following), year, month)


def _start_of(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000


def _parse(name: str) -> MonthPartition | None:
    parts = name.removeprefix(PREFIX).split("_")
    return _month(int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


async def _existing(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(text(EXISTING))).scalars())


async def _rows_in_default(database: Database, condition: str) -> int:
    """Count the rows of the default partition that fulfil it, as far as it matters."""
    query = f"SELECT count(*) FROM (SELECT 1 FROM {DEFAULT} WHERE {condition} LIMIT {MOST_MOVED + 1}) AS counted"  # noqa: S608 - our own names and numbers
    async with database.read() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def _make_beside_large(database: Database, month: MonthPartition) -> None:
    """Say, and have it checked beside traffic, that the default has no rows of a month to come; then make its
    partition.

    Killed in between, the constraint stays until the next run, which is due at once and long before the month begins.
    """
    try:
        for step in ("fence", "validate", "make"):
            await _step(database, step, month)
    finally:
        await _step(database, "unfence", month)


async def _step(database: Database, step: str, month: MonthPartition) -> bool:
    """Take a step of the function that migration 0014 makes, which has the rights for it; False: nothing was done.

    Steps: `move` makes a month and moves the default's rows of it, in one short transaction; `fence`, `validate`,
    `make` and `unfence` are those beside a large default; `drop` drops a month that has no rows, under a lock that
    keeps late ones out.
    """
    query = text("SELECT keep_usage_month(:step, :year, :month)")
    async with database.write() as connection:
        await connection.execute(text(LOCK_TIMEOUT))
        found = await connection.execute(query, {"step": step, "year": month.year, "month": month.month})
        return bool(found.scalar_one())
