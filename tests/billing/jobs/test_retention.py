"""Detail that is dropped changes no statement, no spend limit and no check."""

import asyncio
import random
from collections.abc import Callable
from datetime import date, timedelta

import pytest
from sqlalchemy import text

from billing.accounting.daily_finance import DAY_MS, Finance, day_of, span
from billing.accounting.openai_costs import own_costs
from billing.accounting.reconcile import check_ledger
from billing.accounting.statements import Statements
from billing.accounting.usage_summary import UsageSummaries
from billing.jobs.retention import drop_detail
from billing.ledger.usage_rows import UsageFilters
from proxy.customer_api.statement_csv import statement_csv
from tests.support.charges import MODELS, NOW, run_sql, settled
from tests.support.stores import Books


@pytest.mark.slow
async def test_dropping_detail_changes_no_statement_no_limit_and_no_check(
    sql: Books, clock: Callable[[int], None]
) -> None:
    rng = random.Random(5)
    clock(NOW - 80 * DAY_MS)
    accounts = [await sql.account(900_000_000), await sql.account(900_000_000)]
    entries = []
    for number in range(300):
        asked = NOW - rng.randrange(75 * DAY_MS)
        model = rng.choice(MODELS)
        entries.append(
            (
                asked,
                settled(
                    f"r{number}", rng.choice(accounts), asked, model, (rng.randrange(40, 3_000), rng.randrange(1, 900))
                ),
            )
        )
    # one that was asked for at the end of a month and booked in the next, and one that was free
    late = span(date(2026, 9, 30))[1] - 200
    entries.append((late, settled("across", accounts[0], late)))
    entries.append((late, settled("free", accounts[0], late)._replace(charged=0)))
    for asked, entry in sorted(entries):
        clock(asked + rng.randrange(400, 3_000))
        await sql.ledger.post([entry])
    months = ("2026-09", "2026-10", "2026-11")
    statements, summaries, finance = Statements(sql.database), UsageSummaries(sql.database), Finance(sql.database)

    async def seen() -> list[object]:
        shown: list[object] = [
            statement_csv(await statements.read(account, month)) for account in accounts for month in months
        ]
        late = UsageFilters(since_ms=(NOW // DAY_MS - 100) * DAY_MS)
        shown += [await summaries.sums(late, ("day", "model"), account) for account in accounts]
        shown += [
            (await sql.ledger.keys_spent(["key_1"], since))["key_1"]
            for since in (0, span(date(2026, 11, 1))[0], span(date(2026, 10, 1))[0])
        ]
        shown += [await finance.compute(day_of(NOW) - timedelta(days=back)) for back in (0, 3, 30, 55, 70)]
        own = await own_costs(sql.database, date(2026, 9, 30))
        return [*shown, {name: cost.amount for name, cost in own.items()}]

    before = await seen()
    assert b"across" not in b"".join(part for part in before if isinstance(part, bytes))
    dropped = await drop_detail(sql.database, 20, NOW, batch=37)
    async with sql.database.read() as connection:
        left = int((await connection.execute(text("SELECT count(*) FROM usage"))).scalar_one())
        oldest = int((await connection.execute(text("SELECT min(created_at) FROM usage"))).scalar_one())
    assert (left + dropped.rows, dropped.rows > 150, oldest >= dropped.before_ms) == (302, True, True)
    assert await seen() == before
    assert await check_ledger(sql.database) == []
    # a charge that is flushed once more, long after its row went, is not booked again
    clock(NOW)
    assert (
        await sql.ledger.post([entry for asked, entry in entries if asked < dropped.before_ms and entry.charged]) == 0
    )
    assert await seen() == before
    assert (await drop_detail(sql.database, 20, NOW)).rows == 0
    await run_sql(
        sql,
        "UPDATE usage_daily SET charged_millicredits = charged_millicredits + 9 WHERE charged AND booked_day = 20727",
    )
    assert {one.check for one in await check_ledger(sql.database)} == {
        "sum(usage) vs sum(ledger charges)",
        "sums of accounts vs usage rows, by model",
        "sums of models vs usage rows, by model",
    }


async def test_two_at_once_drop_each_row_once(sql: Books, clock: Callable[[int], None]) -> None:
    clock(NOW - 40 * DAY_MS)
    account = await sql.account(900_000_000)
    await sql.ledger.post([settled(f"t{number:03}", account, NOW - 40 * DAY_MS) for number in range(120)])
    done = await asyncio.gather(*(drop_detail(sql.database, 20, NOW, batch=7) for _ in range(2)))
    assert sum(part.rows for part in done) == 120
    assert await check_ledger(sql.database) == []
