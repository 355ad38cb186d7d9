"""Partitions of usage by month, made ahead."""

from collections.abc import Callable
from datetime import date

import pytest
from sqlalchemy import text

import billing.storage.partitions
from billing.accounting.daily_finance import DAY_MS, day_of, span
from billing.accounting.reconcile import check_ledger
from billing.jobs.retention import drop_detail
from billing.storage.partitions import keep_partitions, month_of
from tests.support.charges import NOW, settled
from tests.support.stores import Books


async def partitions_of(books: Books) -> dict[str, int]:
    async with books.database.read() as connection:
        rows = await connection.execute(text("SELECT tableoid::regclass::text, count(*) FROM usage GROUP BY 1"))
        return {row[0]: int(row[1]) for row in rows}


async def test_months_are_made_ahead_also_beside_rows_and_a_large_default(
    sql: Books, clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    today = day_of(NOW)
    if sql.database.is_sqlite:
        assert await keep_partitions(sql.database, today, None) == ([], [], [])
        return
    clock(NOW)
    account = await sql.account(900_000_000)
    times = {"old": NOW - 60 * DAY_MS, "now": NOW, "skewed": month_of(today, 1).start + 5}
    await sql.ledger.post([settled(name, account, at) for name, at in times.items()])
    kept = await keep_partitions(sql.database, today, None, months=2)
    assert kept == (["usage_2026_11", "usage_2026_12", "usage_2027_01"], [], [])
    assert await partitions_of(sql) == {"usage_default": 1, "usage_2026_11": 1, "usage_2026_12": 1}
    assert (await keep_partitions(sql.database, today, None, months=2)).made == []
    # a default too large to be locked: what has no rows is made beside it, what has some is a finding
    monkeypatch.setattr(billing.storage.partitions, "MOST_MOVED", 0)
    beyond = month_of(today, 4)
    await sql.ledger.post([settled("far", account, beyond.start)])
    kept = await keep_partitions(sql.database, today, None, months=4)
    assert (kept.made, [one.subject for one in kept.findings]) == (["usage_2027_02"], [beyond.name])
    await sql.ledger.post(
        [settled("february", account, month_of(today, 3).start + 9), settled("march", account, beyond.start + 1)]
    )
    assert (await partitions_of(sql))["usage_2027_02"] == 1
    assert (
        await sql.ledger.post(
            [settled("now", account, NOW), settled("february", account, month_of(today, 3).start + 9)]
        )
        == 0
    )
    # what retention emptied is dropped, once it is past
    long_after = span(date(2027, 6, 1))[0]
    await drop_detail(sql.database, 20, long_after)
    kept = await keep_partitions(sql.database, date(2027, 6, 1), long_after - 20 * DAY_MS, months=0)
    assert kept.dropped == ["usage_2026_11", "usage_2026_12", "usage_2027_01", "usage_2027_02"]
    assert await check_ledger(sql.database) == []


async def test_usage_has_a_default_partition_on_postgresql(sql: Books) -> None:
    if sql.database.is_sqlite:
        return
    async with sql.database.read() as connection:
        found = (await connection.execute(text("SELECT inhrelid::regclass::text FROM pg_inherits"))).scalars().all()
    assert "usage_default" in found
