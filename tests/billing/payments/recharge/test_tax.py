"""Automatic recharge with tax on top: charged gross, credited net, agreed to, within the ceiling, asked for once."""

import pytest

from billing.money.errors import StoreUnavailable, StripeRefused
from billing.money.postings import TAX
from billing.payments.purchase import Offer
from billing.payments.recharge.rows import RechargeSettings
from billing.payments.recharge.terms import objection, terms_of
from billing.payments.recharge.worker import RechargeWorker
from billing.payments.stripe.gateway import DueTax
from tests.support.recharge import BUYER, WISH, account_with_card, spend, state_of
from tests.support.shop import STARTER, Shop

TAXED = STARTER._replace(taxed=True)
GROSS = 999 + 189
"""With the 19 % that FakeStripe says."""


async def taxed_shop(shop: Shop, wish: RechargeSettings = WISH) -> str:
    """An account with a card in a shop where tax comes on top, which agreed to that."""
    account = await account_with_card(shop)
    shop.recharger = RechargeWorker(
        shop.recharges, shop.purchases, shop.books.accounts, shop.recharger._gateway, shop.sync, shop.checkout, ""
    )
    await shop.recharges.put(account, wish, terms_of(TAXED), BUYER)
    await spend(shop, account, 0)
    return account


async def step(shop: Shop, times: int = 3, sold: Offer = TAXED) -> None:
    for _ in range(times):
        try:
            await shop.recharger.step(lambda _: sold, enabled=True, livemode=False)
        except StoreUnavailable:
            continue
        finally:
            await shop.deliver()


async def auto(shop: Shop, account: str) -> list[tuple[str, int, int, str]]:
    rows = [one for one in await shop.purchases.of_account(account, 9) if one.origin == "auto"]
    return [(row.state, row.total_cents, row.tax_cents, row.problem) for row in rows]


async def test_the_card_pays_the_tax_and_the_credits_are_those_of_the_price(shop: Shop) -> None:
    account = await taxed_shop(shop)
    await step(shop)
    assert await auto(shop, account) == [("credited", GROSS, 189, "")]
    assert await shop.balance(account) == STARTER.paid
    assert await shop.ledger_of(TAX) == 1_890_000
    ((_, cents, calculation),) = shop.stripe.charged
    assert (cents, calculation[:8]) == (GROSS, "taxcalc_")
    assert await shop.findings() == []
    (purchase,) = [one for one in await shop.purchases.of_account(account, 9) if one.origin == "auto"]
    shop.stripe.give_back(purchase.payment_intent_id or "", GROSS)
    await shop.deliver()
    assert (await shop.balance(account), await shop.ledger_of(TAX)) == (0, 0)
    assert await shop.findings() == []


async def test_dying_before_the_payment_asks_for_the_same_amount_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await taxed_shop(shop)

    async def lost(*_given: object) -> None:
        raise StoreUnavailable("stripe", "no answer", in_doubt=True)

    monkeypatch.setattr(shop.stripe, "charge_saved_method", lost)
    await step(shop, 1)
    monkeypatch.undo()
    shop.stripe.by_key = {key: value for key, value in shop.stripe.by_key.items() if not key.endswith(":tax")}
    shop.stripe.tax_permille = 250  # and Stripe has forgotten the key, and would compute another tax
    await step(shop)
    assert await auto(shop, account) == [("credited", GROSS, 189, "")]


async def test_where_stripe_does_not_know_where_the_customer_is_they_pay_on_a_page(shop: Shop) -> None:
    account = await taxed_shop(shop)
    shop.stripe.tax_refusal = StripeRefused("customer_tax_location_invalid", "where?", 400)
    await step(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.action_url.startswith("https://checkout.stripe.test/")) == ("action_needed", True)
    assert shop.stripe.charged == []


async def test_the_months_ceiling_is_with_the_tax(shop: Shop) -> None:
    account = await taxed_shop(shop, WISH._replace(monthly_ceiling_cents=1_100))
    await step(shop)
    assert (await state_of(shop, account), shop.stripe.charged) == ("ceiling", [])
    again = await taxed_shop(shop, WISH._replace(monthly_ceiling_cents=GROSS))
    await step(shop)
    assert (await state_of(shop, again), len(shop.stripe.charged)) == ("ready", 1)


async def test_tax_that_nobody_agreed_to_is_not_charged(shop: Shop) -> None:
    account = await taxed_shop(shop)
    await shop.recharges.put(account, WISH, terms_of(STARTER), BUYER)
    row = await shop.recharges.get(account)
    assert row is not None
    assert "to 9,990 credits for $9.99 plus tax" in objection(row, TAXED)
    assert objection(row, STARTER) == ""
    await step(shop)
    assert (await state_of(shop, account), shop.stripe.charged) == ("stopped", [])
    await shop.recharges.put(account, WISH, terms_of(TAXED), BUYER)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (objection(row, TAXED), objection(row, STARTER)) == ("", "")


async def test_a_payment_with_another_tax_than_was_asked_for_is_looked_at_by_a_person(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await taxed_shop(shop)
    real = shop.stripe.charge_saved_method

    async def other(order: object, method: str, tax: DueTax | None = None) -> object:
        assert tax is not None
        return await real(order, method, DueTax("taxcalc_of_another", tax.cents))  # type: ignore[arg-type]

    monkeypatch.setattr(shop.stripe, "charge_saved_method", other)
    await step(shop)
    ((state, total, _, problem),) = await auto(shop, account)
    assert (state, total, problem) == ("review", GROSS, f"{GROSS} cents instead of 999")
