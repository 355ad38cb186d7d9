"""Lots of credits that expire, on both databases: spent first, taken back with what gave them, never more than there is."""

from billing.accounting.reconcile import reconcile
from billing.money.amounts import Millicredits
from billing.payments.purchase import offer
from tests.support.credits import give, left, used
from tests.support.shop import STARTER, Shop, use
from tests.support.stores import Books

BONUS = offer("gift", "10.00", "10", 30)
"""$10 and 1,000 credits more, good for 30 days."""


async def test_what_expires_first_is_spent_first_and_paid_credits_last(sql: Books) -> None:
    account = await sql.account(5_000)
    await give(sql, account, 1_000, "late", days=9)
    await give(sql, account, 500, "soon", days=2)
    await used(sql, account, 300, "c1")
    assert await left(sql, account) == {"soon": 200, "late": 1_000}
    await used(sql, account, 900, "c2")
    assert await left(sql, account) == {"late": 300}
    await give(sql, account, 50, "sooner", days=1)  # comes later, goes first
    await used(sql, account, 60, "c3")
    assert await left(sql, account) == {"late": 290}
    await used(sql, account, 2_000, "c4")
    assert await left(sql, account) == {}
    assert (await sql.ledger.posted(account)).balance == 6_550 - 3_260
    assert await reconcile(sql.database, None) == []


async def test_a_grant_is_a_lot_once_and_one_without_an_end_is_none(sql: Books) -> None:
    account = await sql.account()
    for _ in range(2):
        await give(sql, account, 100, "ref")
    await sql.ledger.grant(account, Millicredits(70), "plain", "test", "why")
    assert await left(sql, account) == {"ref": 100}
    assert (await sql.ledger.posted(account)).balance == 170


async def test_an_overdrawn_balance_swallows_what_is_given(sql: Books) -> None:
    account = await sql.account(100)
    await sql.ledger.grant(account, Millicredits(-400), "back", "test", "why")
    await give(sql, account, 1_000, "gift")
    assert await left(sql, account) == {"gift": 700}


async def test_what_a_person_takes_away_is_taken_of_what_expires_first(sql: Books) -> None:
    account = await sql.account(5_000)
    await give(sql, account, 1_000, "gift")
    await sql.ledger.grant(account, Millicredits(-300), "back", "test", "why")
    assert await left(sql, account) == {"gift": 700}
    await sql.ledger.grant(account, Millicredits(-2_000), "more", "test", "why")
    assert await left(sql, account) == {}
    assert (await sql.ledger.posted(account)).balance == 3_700


async def test_a_bonus_that_expires_is_spent_first_and_taken_back_with_its_purchase(shop: Shop) -> None:
    account = await shop.books.account()
    await shop.paid(account, STARTER)
    bought = await shop.paid(account, BONUS)
    assert await left(shop.books, account) == {bought.id: 1_000_000}
    await use(shop, account, 300_000, 1)
    assert await left(shop.books, account) == {bought.id: 700_000}
    shop.stripe.give_back(bought.payment_intent_id or "", 500)  # half of the money, half of the bonus
    await shop.deliver()
    assert await left(shop.books, account) == {bought.id: 200_000}
    assert await shop.balance(account) == 9_990_000 + 11_000_000 - 300_000 - 5_500_000
    assert await shop.findings() == []
    shop.stripe.give_back(bought.payment_intent_id or "", 500)
    await shop.deliver()
    assert await left(shop.books, account) == {}
    assert await shop.balance(account) == 9_990_000 - 300_000
    assert await shop.findings() == []


async def test_a_refund_that_takes_below_zero_leaves_nothing_to_expire(shop: Shop) -> None:
    account = await shop.books.account()
    bought = await shop.paid(account, STARTER)
    await use(shop, account, 9_000_000, 1)
    await give(shop.books, account, 500_000, "gift")
    shop.stripe.give_back(bought.payment_intent_id or "", 999)
    await shop.deliver()
    assert await left(shop.books, account) == {}
