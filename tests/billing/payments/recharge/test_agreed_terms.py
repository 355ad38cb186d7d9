"""A saved card is charged what its owner agreed to, and a recharge that cannot fire says why."""

import json

import pytest

from billing.ledger.recharge_blocks import WARNED
from billing.payments.purchase import Offer, offer
from billing.payments.recharge.rows import Recharge
from billing.payments.recharge.terms import objection, standing, terms_of
from billing.payments.stripe.gateway import Declined
from billing.payments.stripe.objects import DECLINED_FOR_GOOD, PaymentError, decline_code
from billing.storage.database import now_ms
from tests.support.recharge import BUYER, TERMS, WISH, account_with_card, autos, run, spend, state_of, told
from tests.support.shop import STARTER, Shop

DEARER = offer("starter", "49.00", "0")
CHEAPER = offer("starter", "4.99", "0")
MORE = offer("starter", "9.99", "5")
DEARER_WITH_MORE = offer("starter", "10.00", "50")


async def crossing(shop: Shop, account: str, sold: Offer | None, times: int = 4) -> None:
    """The balance falls to zero while the package is sold as `sold`."""
    await spend(shop, account, 0)
    for _ in range(times):
        await shop.recharger.step(lambda _: sold, enabled=True, livemode=False)
        await shop.deliver()


async def row_of(shop: Shop, account: str) -> Recharge:
    row = await shop.recharges.get(account)
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("agreed", "sold"),
    [(STARTER, DEARER), (MORE, STARTER), (STARTER, DEARER_WITH_MORE)],
    ids=["dearer", "fewer", "dearer with more"],
)
async def test_what_nobody_agreed_to_is_not_charged(shop: Shop, agreed: Offer, sold: Offer) -> None:
    account = await account_with_card(shop)
    await shop.recharges.put(account, WISH, terms_of(agreed), BUYER)
    asked = len(shop.stripe.orders)
    assert standing(await row_of(shop, account), sold, now_ms()).state == "stopped", "said before it has to fire"
    await crossing(shop, account, sold)
    row = await row_of(shop, account)
    assert (row.enabled, row.state, len(shop.stripe.orders) - asked) == (False, "stopped", 0)
    assert f"from {terms_of(agreed).words} to {terms_of(sold).words}" in row.message
    assert "please confirm" in row.message
    (notice,) = [row for row in await shop.notices.listing(None, 9) if row.kind == "auto_recharge.stopped"]
    assert json.loads(notice.payload)["data"]["message"] == row.message
    await shop.recharges.put(account, WISH._replace(monthly_ceiling_cents=90_000), terms_of(sold), BUYER)
    await crossing(shop, account, sold)
    (bought,) = [one for one in await shop.purchases.of_account(account, 9) if one.origin == "auto"]
    assert (bought.price_cents, bought.state) == (sold.price_cents, "credited")


@pytest.mark.parametrize("sold", [CHEAPER, MORE, STARTER], ids=["cheaper", "more", "the same"])
async def test_what_is_no_worse_goes_on(shop: Shop, sold: Offer) -> None:
    account = await account_with_card(shop, WISH._replace(threshold=4_000_000))
    await crossing(shop, account, sold)
    (bought,) = [one for one in await shop.purchases.of_account(account, 9) if one.origin == "auto"]
    assert (bought.price_cents, bought.state) == (sold.price_cents, "credited")
    assert (await row_of(shop, account)).agreed_price_cents == 999, "a later rise up to that is agreed to"


async def test_the_audit_row_shows_what_was_agreed(shop: Shop) -> None:
    account = await account_with_card(shop)
    await shop.recharges.put(account, WISH, terms_of(DEARER), BUYER)
    rows = await shop.rows("SELECT before, after FROM audit_log WHERE action = 'auto_recharge.set' ORDER BY id")
    before, after = (json.loads(value) for value in rows[-1])
    assert (before["price_cents"], before["millicredits"]) == (999, "9990000")
    assert (after["price_cents"], after["millicredits"]) == (4_900, "49000000")


async def test_what_was_agreed_before_this_was_kept_is_asked_about(shop: Shop) -> None:
    row = await row_of(shop, await account_with_card(shop))
    old = type(row)(**{**{name: getattr(row, name) for name in row.__struct_fields__}, "agreed_price_cents": None})
    assert "confirm the price" in objection(old, STARTER)


async def test_a_package_below_the_threshold_is_bought_until_the_balance_is_above(shop: Shop) -> None:
    """It never crosses again, so it would be dead; the ceiling bounds it."""
    account = await account_with_card(shop, WISH._replace(threshold=9_000_000))
    await crossing(shop, account, CHEAPER, times=12)
    assert await shop.balance(account) == 2 * 4_990_000
    assert [row.price_cents for row in await shop.purchases.of_account(account, 9) if row.origin == "auto"] == [499] * 2
    await shop.recharges.put(account, WISH._replace(threshold=9_990_000, monthly_ceiling_cents=1_500), TERMS, BUYER)
    await crossing(shop, account, CHEAPER, times=12)
    assert (await shop.balance(account), await state_of(shop, account)) == (4_990_000, "ceiling")
    assert "auto_recharge.ceiling" in await told(shop)


async def test_spent_while_a_slow_payment_was_on_its_way_it_is_charged_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.slow = True
    await spend(shop, account, 0)
    await run(shop)
    await spend(shop, account, -7_000_000)
    shop.stripe.slow = False
    shop.stripe.arrive()
    await run(shop, 8)
    assert (await shop.balance(account), len(autos(shop))) == (-7_000_000 + 2 * 9_990_000, 2)


async def test_what_was_given_back_meanwhile_is_not_charged_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.slow = True
    await spend(shop, account, 4_000_000)
    await run(shop)
    (bought,) = [one for one in await shop.purchases.of_account(account, 9) if one.origin == "checkout"]
    shop.stripe.give_back(bought.payment_intent_id or "", 999)
    await shop.deliver()
    shop.stripe.arrive()
    await run(shop, 8)
    row = await row_of(shop, account)
    assert (await shop.balance(account), len(autos(shop))) == (4_000_000, 1)
    assert "taken back" in row.message


@pytest.mark.parametrize("when", ["ready", "paying"])
async def test_a_fraud_warning_stops_it_before_another_charge(shop: Shop, when: str) -> None:
    account = await account_with_card(shop)
    (bought,) = await shop.purchases.of_account(account, 9)
    shop.stripe.slow = when == "paying"
    if when == "paying":
        await spend(shop, account, 0)
        await run(shop)
    before = len(autos(shop))
    shop.stripe.warn(bought.payment_intent_id or "")
    await shop.deliver()
    shop.stripe.slow = False
    shop.stripe.arrive()
    await run(shop)
    await spend(shop, account, 0)
    await run(shop)
    row = await row_of(shop, account)
    assert (row.enabled, row.state, row.message, len(autos(shop))) == (False, "stopped", WARNED, before)
    assert "auto_recharge.stopped" in await told(shop)
    assert (await shop.get(bought)).state == "credited", "what to do with it is the operator's to say"


async def test_a_warning_of_somebody_elses_payment_is_nothing_to_us(shop: Shop) -> None:
    account = await account_with_card(shop)
    intent = shop.stripe._new_intent(500, "cus_x", "", "succeeded")
    shop.stripe.warn(intent.id)
    await shop.deliver()
    assert (await row_of(shop, account)).enabled
    outcomes = await shop.rows("SELECT state, outcome FROM stripe_inbox WHERE type LIKE 'radar%'")
    assert outcomes == [("ignored", "not ours")]


async def test_a_stolen_card_is_not_tried_again(shop: Shop) -> None:
    account = await account_with_card(shop)
    assert decline_code(PaymentError(code="card_declined", decline_code="stolen_card")) == DECLINED_FOR_GOOD
    assert decline_code(PaymentError(code="card_declined", decline_code="insufficient_funds")) == "card_declined"
    shop.stripe.decline = Declined(DECLINED_FOR_GOOD, "no", "")
    await spend(shop, account, 0)
    await run(shop)
    row = await row_of(shop, account)
    assert (row.enabled, row.state, row.next_try_at) == (False, "stopped", None)
    assert "stolen" not in row.message
