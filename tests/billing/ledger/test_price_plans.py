"""Price plans in SQL: versions are never edited, what was made last wins where it applies, and everyone reads all of it."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.plans.in_force import PlansInForce
from billing.ledger.plans.price_plans import PricePlanNotFound, PricePlans, Validity
from billing.money.catalogue.price_plan import BadPricePlan
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.storage.database import now_ms
from tests.support.stores import Books

HOUR = 3_600_000
WHO = Who("ann", "owner")


async def applies(plans: PricePlans, account: str, at_ms: int) -> str | None:
    found = (await plans.all()).prices_for(account, at_ms)
    return found.version_id if found is not None else None


async def test_a_version_applies_in_its_time_to_whoever_has_the_plan_in_theirs(sql: Books) -> None:
    plans, account, other = PricePlans(sql.database), await sql.account(0), await sql.account(0)
    now = now_ms()
    await plans.add("gold", {"markup": "1.1"}, "ann", span=Validity(now - 9 * HOUR))
    await plans.add("gold", {"markup": "1.05"}, "ann", span=Validity(now - 4 * HOUR, now - 2 * HOUR))
    await plans.add("gold", {"markup": "1.2"}, "ann", span=Validity(now + 4 * HOUR))
    await plans.assign(account, "gold", "ann", span=Validity(now - 8 * HOUR, now + 8 * HOUR))
    times = (-10, -9, -8, -5, -4, -3, -2, 0, 3, 4, 7, 8)
    found = [await applies(plans, account, now + hours * HOUR) for hours in times]
    first, second, third = "gold.1", "gold.2", "gold.3"
    assert found == [None, None, first, first, second, second, first, first, first, third, third, None]
    assert await applies(plans, other, now) is None


async def test_the_assignment_that_was_made_last_wins_where_it_applies(sql: Books) -> None:
    plans, account = PricePlans(sql.database), await sql.account(0)
    now = now_ms()
    for name in ("gold", "silver"):
        await plans.add(name, {"markup": "1.1"}, "ann", span=Validity(now - 9 * HOUR))
    await plans.assign(account, "gold", "ann", span=Validity(now - 8 * HOUR))
    await plans.assign(account, "silver", "ann", span=Validity(now + HOUR, now + 2 * HOUR))
    assert [await applies(plans, account, now + hours * HOUR) for hours in (0, 1, 2)] == [
        "gold.1",
        "silver.1",
        "gold.1",
    ]
    await plans.assign(account, None, "ann", span=Validity(now))
    assert [await applies(plans, account, now + hours * HOUR) for hours in (-1, 0, 1)] == ["gold.1", None, None]
    assert await plans.assigned() == {}


async def test_the_same_prices_again_are_no_other_version(sql: Books) -> None:
    plans = PricePlans(sql.database)
    first, new = await plans.add("gold", {"markup": "1.1"}, "ann", WHO, reason="a deal")
    assert new
    assert (await plans.add("gold", {"markup": "1.1"}, "ann", WHO)) == (first, False)
    second, new = await plans.add("gold", {"markup": "1.1"}, "ann", WHO, Validity(first.starts_at + HOUR))
    assert (new, second.version_id) == (True, "gold.2")
    assert len([row async for row in AuditLog(sql.database).rows()]) == 2


async def test_no_version_and_no_assignment_is_ever_changed(sql: Books) -> None:
    plans, account = PricePlans(sql.database), await sql.account(0)
    await plans.add("gold", {"markup": "1.1"}, "ann")
    await plans.assign(account, "gold", "ann")
    for table in ("price_plans", "plan_assignments"):
        for statement in (f"UPDATE {table} SET actor = 'eve'", f"DELETE FROM {table}"):
            with pytest.raises((DBAPIError, StoreUnavailable), match="never changed"):
                async with sql.database.write() as connection:
                    await connection.execute(text(statement))


@pytest.mark.parametrize(
    ("plan", "prices", "span"),
    [
        ("Gold", {"markup": "1"}, Validity()),
        ("gold.1", {"markup": "1"}, Validity()),
        ("gold", {"markup": "1"}, Validity(2, 2)),
    ],
)
async def test_what_is_no_version_is_refused(plan: str, prices: Any, span: Validity, sql: Books) -> None:
    with pytest.raises(BadPricePlan):
        await PricePlans(sql.database).add(plan, prices, "ann", span=span)
    assert await PricePlans(sql.database).versions() == []


async def test_nobody_is_assigned_to_what_there_is_not(sql: Books) -> None:
    plans, account = PricePlans(sql.database), await sql.account(0)
    with pytest.raises(PricePlanNotFound):
        await plans.assign(account, "gold", "ann", WHO)
    await plans.add("gold", {"markup": "1"}, "ann")
    with pytest.raises(AccountNotFound):
        await plans.assign("acct_missing", "gold", "ann", WHO)
    assert (await plans.all()).by_account == {}
    assert [row async for row in AuditLog(sql.database).rows()] == []


async def test_whoever_follows_misses_nothing_that_is_written_at_the_same_time(sql: Books) -> None:
    """Numbers are given before rows are seen: a reader must never see a later one first."""
    plans, accounts = PricePlans(sql.database), [await sql.account(0) for _ in range(4)]
    await plans.add("gold", {"markup": "1.1"}, "ann")
    known, done = PlansInForce(), asyncio.Event()

    async def follow() -> None:
        while not done.is_set():
            await plans.catch_up(known)

    follower = asyncio.create_task(follow())
    for _ in range(5):
        await asyncio.gather(*(plans.assign(account, "gold", "ann", WHO) for account in accounts))
    done.set()
    await follower
    await plans.catch_up(known)
    whole = await plans.all()
    assert {name: len(rows) for name, rows in known.by_account.items()} == dict.fromkeys(accounts, 5)
    assert known.by_account.keys() == whole.by_account.keys()


async def test_a_version_is_found_again_by_its_name(sql: Books) -> None:
    plans = PricePlans(sql.database)
    await plans.add("very-gold", {"markup": "1.1"}, "ann")
    await plans.add("very-gold", {"markup": "1.2"}, "ann")
    assert (await plans.version("very-gold.2")).version_id == "very-gold.2"
    with pytest.raises(PricePlanNotFound):
        await plans.version("very-gold.3")
