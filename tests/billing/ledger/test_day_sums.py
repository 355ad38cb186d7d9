"""Sums of days: written with what they sum up, read instead of it, and the same whether they are kept or not."""

import random
from collections.abc import Callable
from datetime import timedelta
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from billing.accounting.daily_finance import Finance, day_of
from billing.accounting.journal import Books as Journal
from billing.accounting.reconcile import check_ledger
from billing.accounting.statements import Statements
from billing.accounting.usage_summary import UsageSummaries
from billing.jobs.retention import drop_detail
from billing.ledger.accounts import KeyRules
from billing.ledger.customers.use import KeyUses
from billing.ledger.ledger import Ledger
from billing.ledger.notices import NoticeQueue
from billing.ledger.summaries.reading import cut_time
from billing.ledger.usage_rows import UsageFilters
from billing.money.amounts import Millicredits
from billing.money.holds import Entry
from tests.support.charges import MODELS, NOW, run_sql, settled
from tests.support.copied_ledgers import filled_once
from tests.support.stores import Books, close_books, open_books

DAY = 86_400_000
TODAY = NOW // DAY
DAYS = 50
GROUPS = ("day", "key", "model", "endpoint")


async def booked(books: Books, clock: Callable[[int], None]) -> list[str]:
    accounts = await filled_once(books, lambda: charged(books, clock), charged)
    clock(NOW)
    return accounts


async def charged(books: Books, clock: Callable[[int], None]) -> list[str]:
    """Two accounts with charges of fifty days: some free, some with a loss, some booked on the day after they were asked for."""
    rng = random.Random(11)
    clock(NOW - DAYS * DAY)
    accounts = [await books.account(900_000_000), await books.account(900_000_000)]
    entries: list[tuple[int, Entry]] = []
    for number in range(120):
        asked = NOW - rng.randrange(DAYS * DAY)
        entry = settled(f"r{number}", rng.choice(accounts), asked, rng.choice(MODELS), (rng.randrange(40, 3_000), 9))
        if number % 7 == 0:
            entry = entry._replace(charged=0, loss=entry.charged if number % 2 else 0)
        entries.append((asked + rng.choice((500, 500, 9 * 3_600_000)), entry._replace(bucket=number % 64)))
    for at, entry in sorted(entries):
        clock(at)
        await books.ledger.post([entry])
    clock(NOW)
    # a flush that is repeated, in whole and in part
    assert await books.ledger.post([entry for _, entry in entries]) == 0
    for account in accounts:
        await books.correct(account, 5_000)
    return accounts


async def shown(books: Books, accounts: list[str]) -> dict[str, Any]:
    """Everything that is read from sums."""
    summaries, journal, finance = UsageSummaries(books.database), Journal(books.database), Finance(books.database)
    first, last = day_of(NOW) - timedelta(days=30), day_of(NOW)
    found: dict[str, Any] = {
        "journal": await journal.journal(first, last),
        "days": await journal.days(first, last),
        "top models": await finance.top_models(NOW - 20 * DAY, 5),
        "everybody": await summaries.sums(UsageFilters(), ("day", "model"), None),
        "accounts": await summaries.sums(UsageFilters(until_ms=NOW - 3 * DAY), ("account",), None),
    }
    since = [0, TODAY * DAY, (TODAY - 10) * DAY, (TODAY - 40) * DAY]
    found["spent"] = [(await books.ledger.keys_spent(["key_1"], one))["key_1"] for one in since]
    for account in accounts:
        for month in ("2026-10", "2026-11"):
            found[f"{account} {month}"] = await Statements(books.database).read(account, month)
        for groups in chain.from_iterable(combinations(GROUPS, size) for size in range(len(GROUPS) + 1)):
            for filters in (
                UsageFilters(),
                UsageFilters(since_ms=NOW - 9 * DAY - 77, until_ms=NOW - 2 * DAY + 5),
                UsageFilters(model=MODELS[1], key_id="key_1", endpoint="/v1/chat/completions", since_ms=NOW - 40 * DAY),
            ):
                found[f"{account} {groups} {filters}"] = await summaries.sums(filters, groups, account)
    return found


async def test_sums_are_the_same_whether_they_are_kept_or_read_from_rows(
    sql: Books, clock: Callable[[int], None]
) -> None:
    """Of a database that was there before sums were, a part of the days is read from single rows."""
    accounts = await booked(sql, clock)
    kept = await shown(sql, accounts)
    assert kept["spent"][0] > kept["spent"][2] > 0
    assert await check_ledger(sql.database) == []
    for since in (TODAY - 15, TODAY + 2):
        await run_sql(
            sql,
            f"UPDATE summaries SET since_day = {since}",
            f"DELETE FROM usage_days WHERE booked_day < {since - 2}",
            f"DELETE FROM model_days WHERE asked_day < {since - 2}",
        )
        assert await shown(sql, accounts) == kept, since
        assert await check_ledger(sql.database) == []


async def test_what_is_shown_of_days_reads_no_single_charge(sql: Books, clock: Callable[[int], None]) -> None:
    """Its rows and transfers may be gone: no view of days would know."""
    accounts = await booked(sql, clock)

    async def views() -> dict[str, Any]:
        found = await shown(sql, accounts)
        return {name: one for name, one in found.items() if "since_ms=17" not in name and name != "accounts"}

    before = await views()
    await run_sql(
        sql, "DELETE FROM usage", "DELETE FROM transfers WHERE kind IN ('usage', 'usage_cost', 'platform_loss')"
    )
    assert await views() == before


async def test_retention_takes_nothing_from_sums(sql: Books, clock: Callable[[int], None]) -> None:
    accounts = await booked(sql, clock)
    before = await shown(sql, accounts)
    assert (await drop_detail(sql.database, 5, NOW)).rows > 50
    after = await shown(sql, accounts)
    cut = {name for name in after if "since_ms=17" in name or name == "accounts"}  # edges of a day are read from rows
    assert {name: one for name, one in after.items() if name not in cut} == {
        name: one for name, one in before.items() if name not in cut
    }
    assert await check_ledger(sql.database) == []


FAULTS = {
    "UPDATE usage_days SET charged_millicredits = charged_millicredits + 1": "sums of days vs sum(ledger charges)",
    "UPDATE usage_days SET cost_millicredits = cost_millicredits + 1": "cost in the sums of days vs the ledger",
    "UPDATE usage_days SET loss_millicredits = 1": "platform loss in the sums of days vs the ledger",
    "UPDATE usage_days SET input_tokens = input_tokens + 1": "sums of accounts vs usage rows, by model",
    "UPDATE model_days SET requests = requests + 1": "sums of models vs usage rows, by model",
    "DELETE FROM model_days": "sums of models vs usage rows, by model",
    "DELETE FROM usage_days WHERE NOT charged": "sums of accounts vs usage rows, by model",
    "DELETE FROM summaries": "sums of days without their first day",
}


async def test_a_wrong_sum_is_found(folder: Path, clock: Callable[[int], None]) -> None:
    """One after the other, each undone before the next by a copy of what it changed."""
    books, tables = await open_books(folder, ""), ("usage_days", "model_days", "summaries")
    await booked(books, clock)
    assert await check_ledger(books.database) == []
    await run_sql(books, *(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}" for table in tables))
    for statement, check in FAULTS.items():
        await run_sql(books, statement)
        assert check in {one.check for one in await check_ledger(books.database)}, statement
        for table in tables:
            await run_sql(books, f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM kept_{table}")  # noqa: S608
    assert await check_ledger(books.database) == []
    await close_books(books)


async def test_an_interrupted_booking_leaves_no_sum(
    sql: Books, clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums go with their rows or not at all: what fails behind them takes them back, and the repeat counts once."""
    clock(NOW)
    account = await sql.account(900_000_000)

    class Killed(Exception):
        pass

    async def die(*_: object) -> None:
        raise Killed

    entry = settled("once", account, NOW)
    with monkeypatch.context() as dying:
        dying.setattr("billing.ledger.notices.NoticeQueue.write_if_heard", die)
        with pytest.raises(Killed):
            await Ledger(sql.database, None, NoticeQueue(sql.database, wanted=True)).post([entry])
    async with sql.database.read() as connection:
        for table in ("usage", "usage_days", "model_days"):
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0  # noqa: S608
    assert await sql.ledger.post([entry]) == 1
    assert await sql.ledger.post([entry]) == 0
    assert await check_ledger(sql.database) == []


async def test_a_keys_last_use_is_its_newest_row_or_the_day_of_what_was_dropped(
    sql: Books, clock: Callable[[int], None]
) -> None:
    clock(NOW)
    account = await sql.account(900_000_000)
    for _ in range(3):
        await sql.accounts.create_key(account, KeyRules(None, Millicredits(5), "total"))
    keys = await sql.accounts.keys_of(account)
    await run_sql(sql, f"UPDATE api_keys SET id = 'key_1' WHERE id = '{keys[0].id}'")
    keys = await sql.accounts.keys_of(account)
    await sql.ledger.post([settled("a", account, NOW - 9 * DAY), settled("b", account, NOW - 8 * DAY - 5)])
    uses = await KeyUses(sql.database).of(keys, NOW)
    assert sorted(use.last_used_at or 0 for use in uses.values()) == [0, 0, NOW - 8 * DAY - 5]
    await drop_detail(sql.database, 2, NOW)
    uses = await KeyUses(sql.database).of(keys, NOW)
    assert uses["key_1"].last_used_at == (NOW - 8 * DAY - 5) // DAY * DAY
    assert uses["key_1"].budgets[0].used > 0


TIMES = st.one_of(st.none(), st.integers(0, 20 * DAY), st.integers(0, 20).map(lambda day: day * DAY))


@given(since=TIMES, until=TIMES, kept=st.one_of(st.none(), st.integers(0, 22)), at=st.integers(0, 20 * DAY - 1))
@settings(max_examples=500, deadline=None)
def test_a_time_is_cut_into_parts_that_meet(since: int | None, until: int | None, kept: int | None, at: int) -> None:
    """Whatever was asked for within it is read once: from a kept sum or from its row."""
    now = 20 * DAY
    cut = cut_time(UsageFilters(since_ms=since, until_ms=until), kept, now)
    by_row = sum((first is None or at >= first) and (end is None or at < end) for first, end in cut.rows)
    of_day = at // DAY
    by_sum = cut.kept is not None and of_day >= cut.kept.first and (cut.kept.end is None or of_day < cut.kept.end)
    wanted = (since is None or at >= since) and (until is None or at < until)
    assert by_row + by_sum == wanted
    if cut.kept is not None and kept is not None:
        assert cut.kept.first >= kept
        assert len(cut.rows) <= 2


def test_a_long_time_reads_rows_of_its_edges_only() -> None:
    cut = cut_time(UsageFilters(since_ms=3 * DAY + 5, until_ms=400 * DAY + 7), 0, 500 * DAY)
    assert cut.kept == (4, 400)
    assert cut.rows == [(3 * DAY + 5, 4 * DAY), (400 * DAY, 400 * DAY + 7)]
    open_end = cut_time(UsageFilters(since_ms=3 * DAY, until_ms=500 * DAY), 0, 500 * DAY)
    assert (open_end.kept, open_end.rows, open_end.dropped) == ((3, None), [], None)
