"""What is left of a closed account goes back, and a repeated closing tries what did not come through."""

import pytest
from sqlalchemy import text

from billing.ledger.audit_log import Who
from billing.money.errors import StoreUnavailable
from tests.support.recharge import spend
from tests.support.shop import STARTER, Shop

ADA = Who("ada", "finance")


async def rest(shop: Shop, account: str) -> list[tuple[str, int, str]]:
    """Close again: (purchase, cents that go back, problem) of each."""
    left = await shop.balance(account)
    parts = await shop.refunds.refund_rest(account, left, ADA, "closed")
    await shop.deliver()
    return [(part.purchase_id, part.made.cents if part.made else 0, part.problem) for part in parts]


def given_back(shop: Shop) -> int:
    """Cents that Stripe gave back and that did not come again."""
    return sum(refund.amount for refund in shop.stripe.refunds_by_id.values() if refund.status == "succeeded")


async def test_a_rest_whose_refund_failed_goes_back_with_the_next_closing(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    assert await rest(shop, account) == [(purchase.id, 999, "")]
    (refund_id,) = shop.stripe.refunds_by_id
    shop.stripe.change_refund(refund_id, "failed")  # the card was cancelled: the bank sends it back
    await shop.deliver()
    assert await shop.balance(account) == 9_990_000
    assert await rest(shop, account) == [(purchase.id, 999, "")]
    assert (given_back(shop), await shop.balance(account)) == (999, 0)
    assert await shop.findings() == []


async def test_a_rest_that_shrank_since_an_answer_was_lost_goes_back_with_the_next_closing(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    shop.stripe.down = True
    with pytest.raises(StoreUnavailable):
        await shop.refunds.refund_rest(account, await shop.balance(account), ADA, "closed")
    shop.stripe.down = False
    ((asked,),) = await shop.rows("SELECT state FROM refund_askings")
    assert asked == "asked"
    async with shop.books.database.write() as connection:  # no call is under way any more
        await connection.execute(text("UPDATE refund_askings SET updated_at = updated_at - 150000"))
    await spend(shop, account, 5_000_000)  # what ran while the account was closed is charged
    assert await rest(shop, account) == [(purchase.id, 500, "")]
    assert (given_back(shop), await shop.balance(account)) == (500, 0)


async def test_a_rest_whose_answer_was_lost_and_that_shrank_since_goes_back_once(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    shop.stripe.lose_answers = 1
    left = await shop.balance(account)
    with pytest.raises(StoreUnavailable):
        await shop.refunds.refund_rest(account, left, ADA, "closed")
    parts = await shop.refunds.refund_rest(account, left - 5_000_000, ADA, "closed")
    assert [part.purchase_id for part in parts if part.made] in ([], [purchase.id])
    await shop.deliver()
    assert (given_back(shop), await shop.balance(account)) == (999, 0)
