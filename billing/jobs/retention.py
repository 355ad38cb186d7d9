"""Dropping usage detail that is older than the operator keeps it; the ledger never.

A batch of rows becomes sums in `usage_daily` in the same transaction in which it goes, so at any moment a charge is in
its row or in a sum. Statements, spend limits, daily figures and reconciliation read both.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounting.daily_finance import DAY_MS
from billing.storage.database import Database
from billing.storage.tables.core import transfers, usage, usage_daily

BATCH = 400
PAUSE_SECONDS = 0.02
SUMS = ("requests", "input_tokens", "output_tokens", "charged_millicredits", "loss_millicredits", "cost_millicredits")
KEY = ("account_id", "booked_day", "asked_day", "key_id", "model", "billed_model", "charged")


class Dropped(NamedTuple):
    """How many rows went, and the time before which there are none any more (Unix milliseconds)."""

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
        query = select(usage).where(usage.c.created_at < before).order_by(usage.c.created_at).limit(batch)
        rows = (await connection.execute(query.with_for_update(skip_locked=True))).mappings().all()
        if not rows:
            return 0
        ids = [row["charge_id"] for row in rows]
        booked_query = select(transfers.c.reference_id, transfers.c.created_at).where(
            transfers.c.kind == "usage", transfers.c.reference_id.in_(ids)
        )
        booked = {row[0]: int(row[1]) for row in await connection.execute(booked_query)}
        await _add(connection, database, [_sums_of(dict(row), booked.get(row["charge_id"])) for row in rows])
        await connection.execute(delete(usage).where(usage.c.charge_id.in_(ids), usage.c.created_at < before))
    return len(rows)


def _sums_of(row: dict[str, Any], booked_at: int | None) -> dict[str, Any]:
    asked = row["created_at"] // DAY_MS
    return {
        **{name: row[name] for name in ("account_id", "key_id", "model", "billed_model")},
        "booked_day": asked if booked_at is None else booked_at // DAY_MS,
        "asked_day": asked,
        "charged": booked_at is not None,
        **{name: 1 if name == "requests" else int(row[name]) for name in SUMS},
    }


async def _add(connection: AsyncConnection, database: Database, parts: Sequence[dict[str, Any]]) -> None:
    """Add to the daily sums."""
    sums: defaultdict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for part in parts:
        total = sums[tuple(part[name] for name in KEY)]
        for name in SUMS:
            total[name] += part[name]
    dialect = sqlite if database.is_sqlite else postgresql
    statement = dialect.insert(usage_daily)
    added = {name: usage_daily.c[name] + statement.excluded[name] for name in SUMS}
    rows = [{**dict(zip(KEY, key, strict=True)), **sums[key]} for key in sorted(sums)]
    await connection.execute(statement.on_conflict_do_update(index_elements=list(KEY), set_=added), rows)
