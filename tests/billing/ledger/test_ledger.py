"""The ledger on SQLite and PostgreSQL: final, unique, balanced, safe under replays and races."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.accounting.reconcile import reconcile
from billing.ledger.flush import relay_once
from billing.money.amounts import Millicredits
from billing.money.errors import AccountNotFound
from tests.support.stores import Books, charge


# I5
@pytest.mark.parametrize(
    "statement", ["UPDATE transfers SET amount_millicredits = 1", "DELETE FROM transfers", "TRUNCATE transfers"]
)
async def test_a_transfer_is_never_changed(sql: Books, statement: str) -> None:
    account = await sql.account(1_000)
    if statement.startswith("TRUNCATE") and sql.database.is_sqlite:
        statement = "DELETE FROM transfers WHERE 1 = 1"
    with pytest.raises(DBAPIError, match="never changed"):
        async with sql.database.write() as connection:
            await connection.execute(text(statement))
    assert (await sql.ledger.transfers_of(account, 10))[0].amount_millicredits == 1_000


async def test_a_charge_posts_its_transfers_and_usage_in_one_go(sql: Books) -> None:
    account = await sql.account(1_000)
    assert await sql.ledger.post([charge(1, account, 10, 5)]) == 1
    async with sql.database.read() as connection:
        rows = (
            await connection.execute(
                text("SELECT debit_account, credit_account, amount_millicredits, kind FROM transfers ORDER BY id")
            )
        ).all()
    assert [tuple(row) for row in rows] == [
        ("promo", f"customer:{account}", 1_000, "adjustment"),
        (f"customer:{account}", "revenue", 10, "usage"),
        ("platform_loss", "revenue", 5, "platform_loss"),
        ("cogs", "payable:openai", 3, "usage_cost"),
    ]
    assert (await sql.ledger.posted(account)).balance == 990


async def test_overlapping_batches_from_several_flushers_book_each_charge_once(sql: Books) -> None:
    accounts = [await sql.account(10_000) for _ in range(4)]
    charges = [charge(number, accounts[number % 4]) for number in range(200)]
    batches = [charges[start : start + 80] for start in (0, 40, 60, 100, 120, 0)]
    posted = await asyncio.gather(
        *(sql.ledger.post(list(reversed(batch)) if n % 2 else batch) for n, batch in enumerate(batches))
    )
    assert sum(posted) == 200
    for account in accounts:
        assert (await sql.ledger.posted(account)).balance == 10_000 - 50 * 10
    assert await reconcile(sql.database, None) == []


async def test_a_grant_is_booked_once_by_its_reference(sql: Books) -> None:
    account = await sql.account()
    assert await sql.ledger.grant(account, Millicredits(500), "ref", "me", "why") is True
    assert await sql.ledger.grant(account, Millicredits(500), "ref", "me", "why") is False
    assert await sql.ledger.grant(account, Millicredits(-200), "back", "me", "why") is True
    assert (await sql.ledger.posted(account)).balance == 300
    with pytest.raises(AccountNotFound):
        await sql.ledger.grant("acct_nobody", Millicredits(1), "x", "me", "why")
    assert await reconcile(sql.database, None) == []


@pytest.mark.slow
async def test_concurrent_grants_number_the_outbox_without_gaps(sql: Books) -> None:
    account = await sql.account()
    await asyncio.gather(*(sql.ledger.grant(account, Millicredits(1), f"g{n}", "me", "why") for n in range(20)))
    assert sorted(row.sequence for row in await sql.ledger.outbox_pending(100)) == list(range(1, 21))
    assert (await sql.ledger.posted(account)).balance == 20


async def test_a_relay_that_dies_between_applying_and_marking_applies_nothing_twice(sql: Books) -> None:
    account = await sql.account(100)
    await sql.store.read(account)
    await sql.ledger.grant(account, Millicredits(50), "late", "me", "why")
    for row in await sql.ledger.outbox_pending(10):
        await sql.store.credit(row.account_id, row.sequence, row.delta)
    assert await relay_once(sql.store, sql.ledger) == 2  # the first grant's row and this one, both applied before
    assert (await sql.store.read(account)).balance == 150
    assert await sql.ledger.outbox_pending(10) == []
