"""Automatic recharge after a dispute: stopped, told, and on again only when its owner says so."""

import pytest

from tests.support.fake_stripe import replace
from tests.support.recharge import BUYER, TERMS, WISH, account_with_card, autos, run, spend, state_of, told
from tests.support.shop import Shop, open_shop
from tests.support.stores import Books


@pytest.mark.parametrize("when", ["in review", "before it is settled"])
async def test_a_dispute_stops_it_whatever_the_purchase_is(shop: Shop, when: str) -> None:
    account = await account_with_card(shop)
    purchase = await shop.buy(account)
    odd = {"currency": "eur"} if when == "in review" else {}
    shop.stripe.pay(purchase.session_id or "", **odd)
    if when == "in review":
        await shop.deliver()
        assert (await shop.get(purchase)).state == "review"
    intent = shop.stripe.intent_of(purchase.session_id or "")
    shop.stripe.open_dispute(intent.id)
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.state) == (False, "stopped")
    await spend(shop, account, 0)
    await run(shop)
    assert autos(shop) == []


async def test_every_dispute_is_told(shop: Shop) -> None:
    account = await account_with_card(shop)
    first, second = await shop.paid(account), await shop.paid(account)
    for purchase in (first, second):
        shop.stripe.open_dispute(purchase.payment_intent_id or "")
        await shop.deliver()
        await run(shop)
        await shop.recharges.put(account, WISH, TERMS, BUYER)  # on again
    assert (await told(shop)).count("auto_recharge.stopped") == 2


@pytest.mark.parametrize("ends", ["credited", "declined"])
async def test_a_dispute_while_a_payment_is_in_flight_stops_it_when_that_has_ended(shop: Shop, ends: str) -> None:
    account = await account_with_card(shop)
    shop.stripe.slow = True
    await spend(shop, account, 0)
    await run(shop)
    assert await state_of(shop, account) == "paying"
    (bought,) = [row for row in await shop.purchases.of_account(account, 9) if row.origin == "checkout"]
    shop.stripe.open_dispute(bought.payment_intent_id or "")
    await shop.deliver()
    await run(shop)
    if ends == "credited":
        shop.stripe.arrive()
    else:
        (intent,) = [one for one in shop.stripe.intents_by_id.values() if one.status == "processing"]
        shop.stripe.intents_by_id[intent.id] = replace(intent, status="requires_payment_method")
        shop.stripe.emit("payment_intent.payment_failed", intent.id)
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.state, "disputed" in row.message) == (False, "stopped", True)
    assert (await told(shop))[0] == "auto_recharge.stopped"
    assert len(autos(shop)) == 1


async def test_who_switches_it_on_after_a_dispute_while_a_payment_is_in_flight_means_it(shop: Shop) -> None:
    account = await account_with_card(shop)
    shop.stripe.slow = True
    await spend(shop, account, 0)
    await run(shop)
    (bought,) = [row for row in await shop.purchases.of_account(account, 9) if row.origin == "checkout"]
    shop.stripe.open_dispute(bought.payment_intent_id or "")
    await shop.deliver()
    await shop.recharges.put(account, WISH, TERMS, BUYER)
    shop.stripe.arrive()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.state) == (True, "ready")


@pytest.mark.parametrize("block_after", [0, 1])
async def test_who_disputes_is_not_charged_again(sql: Books, block_after: int) -> None:
    shop = open_shop(sql, block_after=block_after)
    account = await account_with_card(shop)
    (purchase,) = await shop.purchases.of_account(account, 5)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
    await shop.deliver()
    await run(shop)
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.state, row.enabled) == ("stopped", False)
    assert [notice.kind for notice in await shop.notices.listing(None, 9)] == ["auto_recharge.stopped"]
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    await run(shop)
    assert autos(shop) == []
    blocked = (await sql.accounts.get(account)).status == "blocked"
    audited = await shop.rows("SELECT actor, subject FROM audit_log WHERE action = 'account.status'")
    assert (blocked, audited) == (bool(block_after), [("stripe", account)] * block_after)
