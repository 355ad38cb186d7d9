"""Days of finance: what was sold, deducted and owed, by hand and after a roll-up."""

from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest

from billing.accounting.daily_finance import DAY_MS, DailyFinance, Figures, below_target, day_of, span
from billing.jobs.retention import drop_detail
from billing.money.amounts import millicredits
from billing.money.findings import Finding
from billing.money.usage_record import UsageRecord, encode_record
from billing.storage.database import now_ms
from tests.support.charges import NOW, settled
from tests.support.stores import Books


async def test_a_day_keeps_the_liability_of_its_end_whenever_it_is_computed(
    sql: Books, clock: Callable[[int], None]
) -> None:
    finance, first = DailyFinance(sql.database), day_of(NOW) - timedelta(days=3)
    start = span(first)[0]
    clock(start + 1)
    account, other = await sql.account(50_000), await sql.account(1)
    clock(start + DAY_MS + 5)  # the next day: charged, and another one overdrawn
    entry = settled("f1", account, start + DAY_MS)
    await sql.ledger.post([entry])
    await sql.ledger.grant(other, millicredits(-500), "back", "test", "correction")
    clock(start + 3 * DAY_MS)
    await sql.ledger.grant(account, millicredits(7_000), "later", "test", "today")
    rolled = await finance.roll_up(NOW)
    by_day = {figures.day: figures for figures in rolled.days}
    ends = [by_day[(first + timedelta(days=back)).isoformat()].liability for back in range(4)]
    assert ends == [50_001, 50_000 - entry.charged, 50_000 - entry.charged, 57_000 - entry.charged]
    assert len(rolled.closed) == 3
    assert [figures.day for figures in (await finance.roll_up(NOW + 1_000)).days] == [day_of(NOW).isoformat()], (
        "closed days stay"
    )
    tomorrow = await finance.roll_up(NOW + DAY_MS)
    assert [figures.day for figures in tomorrow.closed] == [day_of(NOW).isoformat()]


def test_a_margin_below_target_is_a_finding() -> None:
    def day(deducted: int, cost: int) -> Figures:
        return Figures("2026-11-20", 0, deducted, cost, 0, 0, 1)

    assert below_target([day(1_000, 800), day(0, 0)], 20) == []
    assert [(one.expected, one.found) for one in below_target([day(1_000, 801)], 20)] == [(200, 199)]
    assert [(one.expected, one.found) for one in below_target([day(1_000, 1_001)], 0)] == [(0, -1)]
    assert below_target([day(1_000, 1_100)], -10) == []
    assert below_target([day(1_001, 801)], 20) == [Finding("margin of a day below target", "2026-11-20", 201, 200, 0)]


async def test_figures_to_show_are_the_newest_day_and_the_last_closed_one(
    sql: Books, clock: Callable[[int], None]
) -> None:
    finance = DailyFinance(sql.database)
    assert await finance.kept() == (None, 0, None)
    clock(NOW - 2 * DAY_MS)
    account = await sql.account(50_000)
    await sql.ledger.post([settled("k1", account, NOW - 2 * DAY_MS)])
    await finance.roll_up(NOW)
    kept = await finance.kept()
    assert (kept.newest and kept.newest.day, kept.updated_at) == (day_of(NOW).isoformat(), NOW)
    assert kept.closed is not None
    assert (kept.closed.day, kept.closed.deducted) == (day_of(NOW - DAY_MS).isoformat(), 0)
    # half an hour into the next day today is not closed yet, an hour later it is
    for hours, closed in ((12.5, day_of(NOW - DAY_MS)), (13.5, day_of(NOW))):
        await finance.roll_up(NOW + round(hours * 3_600_000))
        kept = await finance.kept()
        assert (kept.closed and kept.closed.day) == closed.isoformat(), hours


async def test_what_is_given_away_by_decision_is_no_loss_of_a_price(sql: Books, clock: Callable[[int], None]) -> None:
    """Accounts outside the rollout, or charging off: their cost is a figure of its own, also after retention."""
    finance, day = DailyFinance(sql.database), day_of(NOW)
    clock(NOW)
    account = await sql.account(50_000)
    paid = settled("paid", account, NOW)
    free = settled("free", account, NOW)
    given = msgspec.structs.replace(msgspec.json.decode(free.record, type=UsageRecord), free=True)
    await sql.ledger.post([paid, free._replace(charged=0, record=encode_record(given))])
    cost = given.cost_millicredits
    found = await finance.compute(day)
    assert (found.cost, found.given_away, found.margin) == (2 * cost, cost, paid.charged - cost)
    assert (await finance.roll_up(NOW)).days[0] == found
    assert (await finance.days(1))[0] == found
    assert below_target([found], 0) == []
    assert (await drop_detail(sql.database, 1, NOW + 40 * DAY_MS)).rows == 2
    again = await finance.compute(day)
    assert (again.cost, again.given_away) == (2 * cost, cost)


async def test_what_is_owed_is_added_up_or_of_very_many_as_it_was_rolled_up(
    sql: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    finance, now = DailyFinance(sql.database), now_ms()
    rich, overdrawn = await sql.account(5_000), await sql.account()
    await sql.correct(overdrawn, -70)
    assert await finance.owed(now) == await finance.liability() == await finance.liability(now + DAY_MS) == 5_000
    monkeypatch.setattr("billing.accounting.daily_finance.MANY", 1)
    assert await finance.owed(now) == 5_000, "nothing is rolled up yet"
    await finance.roll_up(now)
    await sql.correct(rich, 1)
    assert (await finance.owed(now), await finance.liability()) == (5_000, 5_001)
    assert await finance.owed(now + DAY_MS) == 5_001, "not what a day ended with that is over"
