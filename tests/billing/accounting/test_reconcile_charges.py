"""Charges priced again by their own rates: a sample says what it passes over."""

import random
from collections.abc import Callable

from billing.accounting.reconcile_charges import check_sample
from billing.ledger.rate_cards import RateCards
from tests.support.charges import NOW, run_sql, settled
from tests.support.stores import Books


async def test_a_sample_says_what_it_passes_over(sql: Books, clock: Callable[[int], None]) -> None:
    await RateCards(sql.database).begin_with_shipped()
    clock(NOW)
    account = await sql.account(900_000_000)
    await sql.ledger.post([settled(f"s{number}", account, NOW) for number in range(6)])
    calls = """tool_calls = '{"web_search":2}', cost_millicredits = cost_millicredits + 20000, loss_millicredits = loss_millicredits + 26000"""
    await run_sql(
        sql,
        "UPDATE usage SET usage_source = 'bounded' WHERE charge_id = 's1'",
        """UPDATE usage SET rates = replace(rates, '"tier"', '"more":[],"tier"') WHERE charge_id = 's2'""",
        "UPDATE usage SET free = true, charged_millicredits = 0 WHERE charge_id = 's3'",
        f"UPDATE usage SET {calls} WHERE charge_id = 's4'",
    )
    sampled = await check_sample(sql.database)
    assert (sampled.findings, sampled.priced, sampled.excluded) == ([], 4, {"bounded": 1, "other models": 1})
    few = await check_sample(sql.database, 2, random.Random(1))
    assert few.priced + sum(few.excluded.values()) == 2
