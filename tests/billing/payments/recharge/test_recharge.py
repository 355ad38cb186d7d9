"""Automatic recharges: once per crossing, within the ceiling, stopped by declines."""

import asyncio

import pytest
from sqlalchemy import text

from billing.money.errors import StoreUnavailable
from billing.payments.recharge.rows import month_start_ms, next_month_ms
from billing.payments.stripe.gateway import Declined
from tests.support.recharge import BUYER, TERMS, WISH, account_with_card, offer_of, spend, told
from tests.support.shop import STARTER, Shop, open_shop


async def step(shop: Shop, times: int = 4, *, enabled: bool = True) -> None:
    for _ in range(times):
        await shop.recharger.step(offer_of, enabled=enabled, livemode=False)
        await shop.deliver()


async def test_pitfall_27_one_recharge_a_crossing_with_a_saved_card_and_consent(shop: Shop) -> None:
    account = await account_with_card(shop)
    buyer = await shop.customers.find(account)
    assert buyer is not None
    assert buyer.payment_method_id
    assert buyer.consented_at is not None
    await step(shop)
    assert len(shop.stripe.orders) == 1  # nothing was crossed yet
    await spend(shop, account, 4_999_999)
    await asyncio.gather(
        *(open_shop(shop.books, shop.stripe).recharger.step(offer_of, enabled=True, livemode=False) for _ in range(5))
    )
    await step(shop)
    assert await shop.balance(account) == 4_999_999 + 9_990_000
    # five workers may ask, with one key: one payment
    assert {order.key for order in shop.stripe.orders[1:]} == {f"auto:{account}:1:1"}
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.below) == ("ready", False)
    await spend(shop, account, 0)
    await step(shop)
    assert await shop.balance(account) == 9_990_000
    assert shop.stripe.orders[-1].key == f"auto:{account}:2:1"
    assert len([intent for intent in shop.stripe.intents_by_id.values() if intent.status == "succeeded"]) == 3
    assert await shop.findings() == []


async def test_a_balance_far_below_is_lifted_as_far_as_the_ceiling_allows(shop: Shop) -> None:
    account = await account_with_card(shop)
    await spend(shop, account, -50_000_000)
    await step(shop, 8)
    assert await shop.balance(account) == -50_000_000 + 2 * 9_990_000
    assert len(shop.stripe.orders) == 3
    assert await shop.recharges.begin(account, STARTER, livemode=False) is None  # a worker that read `due` a moment ago


async def test_dying_anywhere_asks_for_the_same_payment_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    await spend(shop, account, 0)
    await shop.recharges.watch()
    purchase = await shop.recharges.begin(account, STARTER, livemode=False)
    assert purchase is not None  # and here we died, before Stripe was asked
    await step(shop)
    assert await shop.balance(account) == 9_990_000
    await spend(shop, account, 0)
    await shop.recharges.watch()
    second = await shop.recharges.begin(account, STARTER, livemode=False)
    assert second is not None
    shop.stripe.down = False
    from billing.payments.checkout import order_of

    await shop.stripe.charge_saved_method(
        order_of(second, second.customer_id), second.payment_method_id
    )  # and here, after
    await step(shop)
    assert await shop.balance(account) == 9_990_000
    assert len([key for key in shop.stripe.by_key if key.startswith("auto:")]) == 2


async def test_stripe_away_waits_and_asks_with_the_same_key(shop: Shop) -> None:
    account = await account_with_card(shop)
    await spend(shop, account, 0)
    shop.stripe.down = True
    with pytest.raises(Exception, match="down"):
        await shop.recharger.step(offer_of, enabled=True, livemode=False)
    shop.stripe.down = False
    await step(shop)
    assert await shop.balance(account) == 9_990_000
    assert len([key for key in shop.stripe.by_key if key.startswith("auto:")]) == 1


async def test_one_payment_without_an_answer_does_not_hold_up_the_others(shop: Shop) -> None:
    stuck, fine = await account_with_card(shop), await account_with_card(shop)
    shop.stripe.poisoned_keys.add(f"auto:{stuck}:1:1")
    await spend(shop, stuck, 0)
    await spend(shop, fine, 0)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await step(shop, 1)
    await shop.deliver()
    assert await shop.balance(fine) == 9_990_000
    await shop.age(1_000)
    await shop.sweeper.sweep(1, livemode=False)  # Stripe never heard of it
    await step(shop)
    row = await shop.recharges.get(stuck)
    assert row is not None
    assert row.failures == 0  # nobody declined anything
    await step(shop)
    assert (
        await shop.balance(stuck) == 0
    )  # not at once: Stripe may have been asked in the moment in which it was given up
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE auto_recharges SET next_try_at = 0 WHERE next_try_at IS NOT NULL"))
    await step(shop)  # under another key
    assert await shop.balance(stuck) == 9_990_000


@pytest.mark.slow
async def test_a_decline_backs_off_and_finally_stops(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.decline = Declined("card_declined", "Your card was declined.", "")
    await spend(shop, account, 0)
    for attempt in range(1, 5):
        await step(shop, 6)  # however often it is looked at, one try
        assert len(shop.stripe.orders) == 1 + attempt
        row = await shop.recharges.get(account)
        assert row is not None
        assert row.state == ("waiting" if attempt < 4 else "stopped")
        assert "declined" in row.message
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE auto_recharges SET next_try_at = 0 WHERE next_try_at IS NOT NULL"))
    await step(shop)
    assert len(shop.stripe.orders) == 5
    assert row.enabled is False
    assert (await told(shop)).count("auto_recharge.stopped") == 1
    assert await shop.balance(account) == 0
    shop.stripe.decline = None
    await shop.recharges.put(account, WISH, TERMS, BUYER)  # the card was changed: on again
    await step(shop)
    assert await shop.balance(account) == 9_990_000


async def test_a_bank_that_wants_the_buyer_gets_a_page_to_pay_on(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.decline = Declined("authentication_required", "Authenticate.", "")
    await spend(shop, account, 0)
    await step(shop, 6)
    row = await shop.recharges.get(account)
    assert row is not None
    assert row.state == "action_needed"
    assert row.action_url.startswith("https://checkout.stripe.test/")
    assert await told(shop) == ["auto_recharge.action_needed"]
    (session_id,) = [key for key, session in shop.stripe.sessions_by_id.items() if session.status == "open"]
    shop.stripe.pay(session_id)
    await step(shop)
    assert await shop.balance(account) == 9_990_000
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.action_url) == ("ready", "")


async def test_the_monthly_ceiling_holds(shop: Shop) -> None:
    account = await account_with_card(shop)
    for number in range(1, 5):
        await spend(shop, account, 0)
        await step(shop)
        assert len(shop.stripe.orders) == 1 + min(number, 2)  # 2 x 9.99 fit under 25.00
        if number <= 2:
            assert await shop.balance(account) == 9_990_000
    row = await shop.recharges.get(account)
    assert row is not None
    assert row.state == "ceiling"
    assert (await told(shop)).count("auto_recharge.ceiling") == 1


async def test_switched_off_begins_nothing_and_concludes_what_is_in_flight(shop: Shop) -> None:
    account = await account_with_card(shop)
    await spend(shop, account, 0)
    await step(shop, enabled=False)
    assert len(shop.stripe.orders) == 1
    await shop.recharges.begin(account, STARTER, livemode=False)
    await step(shop, enabled=False)  # begun, and Stripe was not asked yet: it is not asked now
    assert len(shop.stripe.orders) == 1
    await step(shop)
    assert await shop.balance(account) == 9_990_000


async def test_switched_off_what_stripe_was_asked_for_is_concluded(shop: Shop) -> None:
    account = await account_with_card(shop)
    await spend(shop, account, 0)
    shop.stripe.slow = True
    await step(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert row.state == "paying"
    shop.stripe.arrive()
    await step(shop, enabled=False)
    assert await shop.balance(account) == 9_990_000
    row = await shop.recharges.get(account)
    assert row is not None
    assert row.state == "ready"


async def test_a_removed_card_is_not_charged(shop: Shop) -> None:
    account = await account_with_card(shop)
    buyer = await shop.customers.find(account)
    assert buyer is not None
    shop.stripe.emit("payment_method.detached", buyer.payment_method_id)
    await shop.deliver()
    await spend(shop, account, 0)
    await step(shop)
    assert len(shop.stripe.orders) == 1
    row = await shop.recharges.get(account)
    assert row is not None
    assert row.state == "action_needed"


def test_months_are_utc_months() -> None:
    december = 1_798_675_200_000  # 2026-12-31T00:00:00Z
    assert month_start_ms(december) == 1_796_083_200_000
    assert next_month_ms(december) == 1_798_761_600_000  # 2027-01-01
