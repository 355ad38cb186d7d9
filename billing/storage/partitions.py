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
FENCE = "usage_default_fence"


class MonthPartition(NamedTuple):
    """A UTC month as a partition: its name, and its bounds in Unix milliseconds."""

    name: str
    start: int
    end: int

    @property
    def rows(self) -> str:
        """The SQL condition of its rows."""
        return f"created_at >= {self.start} AND created_at < {self.end}"

    @property
    def bounds(self) -> str:
        """As CREATE TABLE and ATTACH PARTITION want them."""
        return f"FROM ({self.start}) TO ({self.end})"


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
            await _make_and_move(database, month)
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
            if month_found is not None and month_found.end <= dropped_before_ms and await _drop_empty(database, name):
                kept.dropped.append(name)
    return kept


def month_of(today: date, ahead: int) -> MonthPartition:
    """Return the month so many months after that of a day."""
    number = today.year * 12 + today.month - 1 + ahead
    return _month(number // 12, number % 12 + 1)


def _month(year: int, month: int) -> MonthPartition:
    following = (year + month // 12, month % 12 + 1)
    return MonthPartition(f"{PREFIX}{year}_{month:02d}", _start_of(year, month), _start_of(*following))


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


async def _make_and_move(database: Database, month: MonthPartition) -> None:
    """In one short transaction: the partition, and the default's rows of that month into it."""
    moved = f"DELETE FROM {DEFAULT} WHERE {month.rows} RETURNING *"  # noqa: S608 - our own names
    async with database.write() as connection:
        for statement in (
            LOCK_TIMEOUT,
            f"LOCK TABLE {DEFAULT} IN ACCESS EXCLUSIVE MODE",
            f"CREATE TABLE {month.name} (LIKE {DEFAULT} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
            f"WITH moved AS ({moved}) INSERT INTO {month.name} SELECT * FROM moved",  # noqa: S608 - our own names
            f"ALTER TABLE usage ATTACH PARTITION {month.name} FOR VALUES {month.bounds}",
        ):
            await connection.execute(text(statement))


async def _make_beside_large(database: Database, month: MonthPartition) -> None:
    """Say, and have it checked beside traffic, that the default has no rows of a month to come; then make its
    partition.

    Killed in between, the constraint stays until the next run, which is due at once and long before the month begins.
    """
    unfence = f"ALTER TABLE {DEFAULT} DROP CONSTRAINT IF EXISTS {FENCE}"
    try:
        await _run(
            database, unfence, f"ALTER TABLE {DEFAULT} ADD CONSTRAINT {FENCE} CHECK (NOT ({month.rows})) NOT VALID"
        )
        await _run(database, f"ALTER TABLE {DEFAULT} VALIDATE CONSTRAINT {FENCE}")
        await _run(database, f"CREATE TABLE {month.name} PARTITION OF usage FOR VALUES {month.bounds}")
    finally:
        await _run(database, unfence)


async def _drop_empty(database: Database, name: str) -> bool:
    """Drop a partition that has no rows, under a lock that keeps late ones out."""
    async with database.write() as connection:
        await connection.execute(text(LOCK_TIMEOUT))
        await connection.execute(text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"))
        has_rows = f"SELECT EXISTS (SELECT 1 FROM {name})"  # noqa: S608 - a name of ours, found in the catalogue
        if (await connection.execute(text(has_rows))).scalar_one():
            return False
        await connection.execute(text(f"DROP TABLE {name}"))
    return True


async def _run(database: Database, *statements: str) -> None:
    async with database.write() as connection:
        for statement in (LOCK_TIMEOUT, *statements):
            await connection.execute(text(statement))
