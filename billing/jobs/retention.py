"""Dropping usage detail that is older than the operator keeps it; the ledger never.

A batch of rows becomes sums in `usage_daily` in the same transaction in which it goes, so at any moment a charge is in
its row or in a sum. Statements, spend limits, daily figures and reconciliation read both.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.daily_finance import DAY_MS
from billing.money.usage_record import UsageRow
from billing.storage.database import Database
from billing.storage.rows import columns_of
from billing.storage.tables.core import transfers, usage, usage_daily

BATCH = 400
PAUSE_SECONDS = 0.02


class DayKey(NamedTuple):
    """Identity of a row of `usage_daily`; days are whole UTC days since 1970."""

    account_id: str
    booked_day: int
    asked_day: int
    key_id: str
    model: str
    billed_model: str
    charged: bool
    upstream: str


class DaySums(NamedTuple):
    """Sums of a row of `usage_daily`, in tokens and millicredits."""

    requests: int
    input_tokens: int
    output_tokens: int
    charged_millicredits: int
    loss_millicredits: int
    cost_millicredits: int


class Dropped(NamedTuple):
    """Number of rows that went, and the time before which there are none any more (Unix milliseconds)."""

    rows: int
    before_ms: int


async def drop_detail(database: Database, keep_days: int, now: int, batch: int = BATCH) -> Dropped:
    """Drop the rows of requests made before the last `keep_days` whole UTC days. Raises StoreUnavailable.

    In small transactions with pauses, so that charges are booked meanwhile. Killed between two, it is simply run again.
    """
    before = (now // DAY_MS - keep_days) * DAY_MS
    dropped = 0
    while number := await _drop_batch(database, before, batch):
        dropped += number
        await asyncio.sleep(PAUSE_SECONDS)
    return Dropped(dropped, before)


async def _drop_batch(database: Database, before: int, batch: int) -> int:
    async with database.write() as connection:
        # locked rows belong to another run of this job: whoever has them sums them up, once
        query = select(*columns_of(usage, UsageRow._fields)).where(usage.c.created_at < before)
        locked = query.order_by(usage.c.created_at).limit(batch).with_for_update(skip_locked=True)
        rows = [UsageRow(*row) for row in await connection.execute(locked)]
        if not rows:
            return 0
        ids = [row.charge_id for row in rows]
        booked_query = select(transfers.c.reference_id, transfers.c.created_at).where(
            transfers.c.kind == "usage", transfers.c.reference_id.in_(ids)
        )
        booked = {row[0]: int(row[1]) for row in await connection.execute(booked_query)}
        await _add(connection, database, [_sums_of(row, booked.get(row.charge_id)) for row in rows])
        await connection.execute(delete(usage).where(usage.c.charge_id.in_(ids), usage.c.created_at < before))
    return len(rows)


def _sums_of(row: UsageRow, booked_at: int | None) -> tuple[DayKey, DaySums]:
    asked = row.created_at // DAY_MS
    booked = asked if booked_at is None else booked_at // DAY_MS
    key = DayKey(
        row.account_id, booked, asked, row.key_id, row.model, row.billed_model, booked_at is not None, row.upstream
    )
    amounts = (row.charged_millicredits, row.loss_millicredits, row.cost_millicredits)
    return key, DaySums(1, row.input_tokens, row.output_tokens, *amounts)


async def _add(connection: AsyncConnection, database: Database, parts: Sequence[tuple[DayKey, DaySums]]) -> None:
    """Add to the daily sums."""
    sums: dict[DayKey, DaySums] = {}
    for key, part in parts:
        known = sums.get(key)
        sums[key] = part if known is None else DaySums._make(map(sum, zip(known, part, strict=True)))
    dialect = sqlite if database.is_sqlite else postgresql
    statement = dialect.insert(usage_daily)
    added = {name: usage_daily.c[name] + statement.excluded[name] for name in DaySums._fields}
    rows = [{**key._asdict(), **sums[key]._asdict()} for key in sorted(sums)]
    await connection.execute(statement.on_conflict_do_update(index_elements=list(DayKey._fields), set_=added), rows)
