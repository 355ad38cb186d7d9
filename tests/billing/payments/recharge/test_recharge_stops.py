"""When automatic recharge stops or waits: a card is charged for usage, once, and only while its owner wants it."""

from typing import Any

from sqlalchemy import text

from billing.money.errors import StripeRefused
from billing.payments.purchase import offer
from billing.payments.recharge.terms import RechargeBounds, terms_of
from billing.payments.stripe.gateway import Declined
from tests.support.fake_stripe import replace
from tests.support.recharge import BUYER, TERMS, WISH, account_with_card, autos, offer_of, run, spend, state_of
from tests.support.shop import STARTER, Shop


async def test_a_payment_in_flight_is_concluded_whatever_the_balance_does_meanwhile(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.poisoned_keys.add(f"auto:{account}:1:1")
    await spend(shop, account, 0)
    await run(shop)  # begun, and Stripe does not answer
    await spend(shop, account, 20_000_000)
    await run(shop)
    await spend(shop, account, 0)
    await run(shop)
    shop.stripe.poisoned_keys.clear()
    await run(shop)
    assert await state_of(shop, account) == "ready"
    assert await shop.balance(account) == 9_990_000
    await spend(shop, account, 0)
    await run(shop)
    assert await shop.balance(account) == 9_990_000
    assert len(autos(shop)) == 2


async def test_a_refund_is_not_answered_by_charging_the_card_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    (purchase,) = await shop.purchases.of_account(account, 5)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, "taken back" in row.message, autos(shop)) == (True, True, [])
    await spend(shop, account, 6_000_000)  # bought again, say: armed again
    await run(shop)
    await spend(shop, account, 0)
    await run(shop)
    assert len(autos(shop)) == 1


async def test_credits_that_an_admin_takes_back_charge_no_card(shop: Shop) -> None:
    account = await account_with_card(shop)
    await shop.books.correct(account, -9_000_000)
    await run(shop)
    assert autos(shop) == []


async def test_a_blocked_account_is_not_charged(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE accounts SET status = 'blocked'"))
    await spend(shop, account, 0)
    await run(shop)
    assert await shop.recharges.begin(account, STARTER, livemode=False) is None
    assert autos(shop) == []


async def test_saving_the_same_settings_does_not_try_a_declined_card_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.decline = Declined("card_declined", "no", "")
    await spend(shop, account, 0)
    for wish in [WISH] * 5 + [WISH._replace(enabled=False), WISH] * 3:
        await run(shop)
        await shop.recharges.put(account, wish, TERMS, BUYER)
    await run(shop)
    assert len(autos(shop)) == 1
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE stripe_customers SET payment_method_id = 'pm_another'"))
    shop.stripe.decline = None
    await shop.recharges.put(account, WISH, TERMS, BUYER)  # another card: worth a try now
    await run(shop)
    assert await shop.balance(account) == 9_990_000


async def test_a_higher_ceiling_goes_on_at_once(shop: Shop) -> None:
    account = await account_with_card(shop, WISH._replace(monthly_ceiling_cents=999))
    for _ in range(2):
        await spend(shop, account, 0)
        await run(shop)
    assert await state_of(shop, account) == "ceiling"
    await shop.recharges.put(account, WISH, TERMS, BUYER)
    await run(shop)
    assert await shop.balance(account) == 9_990_000


async def test_the_operators_ceiling_holds_whatever_the_accounts_is(shop: Shop) -> None:
    account = await account_with_card(shop)
    for _ in range(2):
        await spend(shop, account, 0)
        for _ in range(3):
            await shop.recharger.step(offer_of, enabled=True, livemode=False, bounds=RechargeBounds(1_500))
            await shop.deliver()
    assert (len(autos(shop)), await state_of(shop, account)) == (1, "ceiling")


async def test_so_many_payments_within_an_hour_and_the_next_waits_until_it_has_passed(shop: Shop) -> None:
    account = await account_with_card(shop, WISH._replace(monthly_ceiling_cents=100_000))

    async def use_up() -> None:
        await spend(shop, account, 0)
        for _ in range(3):
            await shop.recharger.step(offer_of, enabled=True, livemode=False, bounds=RechargeBounds(hour_payments=2))
            await shop.deliver()

    for _ in range(4):
        await use_up()
    assert (len(autos(shop)), await state_of(shop, account)) == (2, "ceiling")
    row = await shop.recharges.get(account)
    assert row is not None
    assert "2 automatic recharges within an hour" in row.message
    async with shop.books.database.write() as connection:  # the first of the two, and the wait, an hour ago
        await connection.execute(
            text(
                "UPDATE purchases SET created_at = created_at - 3600001 WHERE id ="
                " (SELECT id FROM purchases WHERE origin = 'auto' ORDER BY created_at, id LIMIT 1)"
            )
        )
        await connection.execute(text("UPDATE auto_recharges SET next_try_at = next_try_at - 3600001"))
    await use_up()
    assert (len(autos(shop)), await shop.balance(account)) == (3, 9_990_000)


async def test_while_purchases_are_off_no_card_is_charged_and_no_page_opened(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.decline = Declined("authentication_required", "Authenticate.", "")
    await spend(shop, account, 0)
    await run(shop, 1)  # asked, and the bank wants the buyer ...
    pages = len(shop.stripe.sessions_by_id)
    other = await account_with_card(shop)
    await spend(shop, other, 0)
    await shop.recharges.watch()
    assert await shop.recharges.begin(other, STARTER, livemode=False) is not None
    await run(shop, enabled=False)  # ... when purchases are switched off
    assert autos(shop) == [f"auto:{account}:1:1"]
    assert len(shop.stripe.sessions_by_id) == pages + 1  # the other's own purchase, before the switch


async def test_a_payment_that_needs_a_person_is_not_made_once_more(shop: Shop) -> None:
    account = await account_with_card(shop)
    real = shop.stripe.charge_saved_method

    async def odd(order: Any, method: str, tax: Any) -> Any:
        intent = await real(order, method, tax)
        shop.stripe.intents_by_id[intent.id] = replace(intent, amount_received=intent.amount - 1)  # type: ignore[union-attr]
        return shop.stripe.intents_by_id[intent.id]  # type: ignore[union-attr]

    shop.stripe.charge_saved_method = odd  # type: ignore[method-assign]
    await spend(shop, account, 0)
    await run(shop)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE auto_recharges SET next_try_at = 0 WHERE next_try_at IS NOT NULL"))
    await run(shop)
    assert (len(autos(shop)), await state_of(shop, account)) == (1, "stopped")
    assert len(await shop.purchases.in_review()) == 1


async def test_a_refusal_is_no_decline(shop: Shop) -> None:
    """The customer is not told that a card was declined which nobody tried, and nothing is asked for again and again."""
    account = await account_with_card(shop)

    async def refuse(_order: Any, _method: str, _tax: Any) -> Any:
        raise StripeRefused("resource_missing", "No such PaymentMethod", 400)

    shop.stripe.charge_saved_method = refuse  # type: ignore[method-assign]
    await spend(shop, account, 0)
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.failures, row.next_try_at) == ("action_needed", 0, None)
    assert "declined" not in row.message
    assert row.action_url


async def test_the_page_that_stands_in_for_a_refused_card_sells_the_bonus_for_as_long(shop: Shop) -> None:
    sold = offer("starter", "9.99", "10", 7)
    account = await account_with_card(shop)
    await shop.recharges.put(account, WISH, terms_of(sold), BUYER)
    shop.stripe.decline = Declined("authentication_required", "confirm", "")
    await spend(shop, account, 0)
    for _ in range(3):
        await shop.recharger.step(lambda _: sold, enabled=True, livemode=False)
        await shop.deliver()
    assert await state_of(shop, account) == "action_needed"
    pages = [row for row in await shop.purchases.of_account(account, 5) if row.origin == "checkout" and row.url]
    assert (pages[0].state, pages[0].bonus_millicredits, pages[0].bonus_days) == ("open", 999_000, 7)
