"""Buying: one page a click, by our key and price, whatever is lost, deleted or clicked twice."""

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from billing.money.errors import StoreUnavailable, TooManyCheckouts
from billing.payments.stripe.gateway import Order
from billing.payments.stripe.objects import BalanceTransaction, CheckoutSession, payment_of_session
from tests.support.fake_stripe import FakeStripe, replace
from tests.support.money_api import open_api
from tests.support.recharge import account_with_card
from tests.support.shop import PLUS, PRO, STARTER, TERMS, Shop, open_shop


async def test_the_row_is_committed_before_stripe_is_asked_and_the_key_is_ours(shop: Shop) -> None:
    account = await shop.books.account()
    shop.stripe.down = True
    with pytest.raises(StoreUnavailable):
        await shop.buy(account)
    ((state, session, key),) = await shop.rows("SELECT state, session_id, idempotency_key FROM purchases")
    assert (state, session) == ("created", None)
    shop.stripe.down = False
    purchase = await shop.buy(account)
    assert purchase.state == "open"
    assert [order.key for order in shop.stripe.orders] == [key]
    assert len(shop.stripe.sessions_by_id) == 1


async def test_a_reply_that_was_lost_is_asked_for_again_with_the_same_key(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.buy(account)
    async with shop.books.database.write() as connection:  # as if we had died before the commit
        from sqlalchemy import text

        await connection.execute(text("UPDATE purchases SET state = 'created', session_id = NULL, url = ''"))
    again = await shop.buy(account)
    assert again.session_id == first.session_id
    assert len(shop.stripe.sessions_by_id) == 1


async def test_a_double_click_opens_one_page_and_two_packages_open_two(shop: Shop) -> None:
    account = await shop.books.account()
    pages = await asyncio.gather(
        *(shop.buy(account) for _ in range(5)), shop.buy(account, STARTER), shop.buy(account, save_method=True)
    )
    assert len({page.session_id for page in pages[:5]}) == 1
    assert len({page.session_id for page in pages}) == 3
    for page in {page.session_id: page for page in pages}.values():
        shop.stripe.pay(page.session_id or "")
    await shop.deliver()
    assert await shop.balance(account) == 2 * 109_989_000 + 9_990_000


async def test_a_second_click_after_paying_begins_anew(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.buy(account)
    shop.stripe.pay(first.session_id or "")  # and its webhook has not come yet
    second = await shop.buy(account)
    assert second.id != first.id
    assert (await shop.get(first)).state == "credited"
    shop.stripe.expire(second.session_id or "")
    third = await shop.buy(account)
    assert third.id not in (first.id, second.id)


async def test_an_account_cannot_open_pages_without_end(sql) -> None:
    shop = open_shop(sql, terms=TERMS._replace(reuse_ms=0, hourly_limit=3))
    account = await sql.account()
    for _ in range(3):
        await shop.buy(account)
    with pytest.raises(TooManyCheckouts):
        await shop.buy(account)
    await shop.buy(await sql.account())


async def test_a_customer_deleted_at_stripe_is_made_again(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.paid(account)
    shop.stripe.deleted_customers.add(first.customer_id)
    second = await shop.paid(account)
    assert second.customer_id != first.customer_id
    assert await shop.balance(account) == 2 * 109_989_000
    buyer = await shop.customers.find(account)
    assert buyer is not None
    assert (buyer.customer_id, buyer.payment_method_id) == (second.customer_id, "")


class Crash(Exception):
    """The process dies here."""


def dying(stripe: FakeStripe, work: Any, *, before: bool) -> Any:
    """The process ends before or after the first call that is not for a deleted customer."""
    waiting = [True]

    async def call(*given: Any, **named: Any) -> Any:
        refused = isinstance(given[0], Order) and given[0].customer_id in stripe.deleted_customers
        if not waiting or refused:
            return await work(*given, **named)
        waiting.clear()
        if not before:
            await work(*given, **named)
        raise Crash

    return call


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "step", ["create_customer", "replace", "reassign_customer", "create_session", "record_session"]
)
async def test_a_deleted_customer_and_a_crash_leave_one_page(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    account = await shop.books.account()
    first = await shop.paid(account)
    shop.stripe.deleted_customers.add(first.customer_id)
    part: Any = next(part for part in (shop.stripe, shop.customers, shop.purchases) if hasattr(part, step))
    monkeypatch.setattr(part, step, dying(shop.stripe, getattr(part, step), before=before))
    with pytest.raises(Crash):
        await shop.buy(account)
    page = await shop.buy(account)
    assert [one.id for one in shop.stripe.sessions_by_id.values() if one.status == "open"] == [page.session_id]
    buyer = await shop.customers.find(account)
    assert buyer is not None
    assert buyer.customer_id == page.customer_id != first.customer_id
    shop.stripe.pay(page.session_id or "")
    await shop.deliver()
    assert await shop.balance(account) == 2 * 109_989_000


async def test_two_clicks_at_once_with_a_deleted_customer_get_one_page(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.paid(account)
    shop.stripe.deleted_customers.add(first.customer_id)
    one, other = await asyncio.gather(shop.buy(account), shop.buy(account))
    assert one.session_id == other.session_id
    assert [page.id for page in shop.stripe.sessions_by_id.values() if page.status == "open"] == [one.session_id]


async def test_a_slow_click_asks_as_the_row_stands(shop: Shop) -> None:
    """It read the row before another click had put a customer there, and found another customer of the account meanwhile."""
    account = await shop.books.account()
    purchase = await shop.purchases.begin(
        account, PRO, livemode=False, save_method=False, reuse_ms=600_000, hourly_limit=0
    )
    assert (await shop.purchases.assign_customer(purchase.id, "cus_first")).customer_id == "cus_first"
    assert (await shop.purchases.assign_customer(purchase.id, "cus_second")).customer_id == "cus_first"
    moved = await shop.purchases.reassign_customer(purchase, "cus_third")
    assert await shop.purchases.reassign_customer(purchase, "cus_fourth") == moved
    assert moved.customer_id == "cus_third"
    assert moved.idempotency_key != purchase.idempotency_key


async def test_a_page_that_stripe_has_forgotten_is_not_offered_again(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.buy(account)
    del shop.stripe.sessions_by_id[first.session_id or ""]
    second = await shop.buy(account)
    assert second.session_id != first.session_id
    assert (await shop.get(first)).state == "failed"


async def test_a_key_with_a_saved_failure_does_not_keep_a_buyer_away(shop: Shop) -> None:
    account = await shop.books.account()
    shop.stripe.down = True
    with pytest.raises(StoreUnavailable):
        await shop.buy(account)
    shop.stripe.down = False
    ((key,),) = await shop.rows("SELECT idempotency_key FROM purchases")
    shop.stripe.poisoned_keys.add(key)
    with pytest.raises(StoreUnavailable):
        await shop.buy(account)
    await shop.age(60)
    with pytest.raises(StoreUnavailable):
        await shop.buy(account)
    assert (await shop.buy(account)).state == "open"


async def test_pitfall_07_the_client_names_a_package_and_no_price(shop: Shop) -> None:
    account = await shop.books.account()
    async with open_api(shop) as api:
        tampered = {
            "packageCode": "pro",
            "amount": 1,
            "priceCents": 1,
            "credits": 10**9,
            "usd": "0.01",
            "currency": "jpy",
            "quantity": 100,
        }
        answer = await api.client.post("/api/billing/checkout", json=tampered, headers=await api.key(account))
        assert answer.status_code == 201, answer.text
        unknown = await api.client.post(
            "/api/billing/checkout", json={"packageCode": "free"}, headers=await api.key(account)
        )
        assert unknown.status_code == 400
    (session,) = shop.stripe.sessions_by_id.values()
    assert (session.amount_subtotal, session.currency) == (9_999, "usd")
    assert answer.json()["millicredits"] == "109989000"


async def test_pitfall_09_adaptive_pricing_leaves_the_integrations_currency_and_foreign_balance_moves_are_not_cash(
    shop: Shop,
) -> None:
    raw = {
        "id": "cs_test_9",
        "mode": "payment",
        "payment_status": "paid",
        "livemode": False,
        "status": "complete",
        "currency": "usd",
        "amount_subtotal": 9_999,
        "amount_total": 9_999,
        "customer": "cus_1",
        "presentment_details": {"presentment_amount": 9_150, "presentment_currency": "eur"},
    }
    payment = payment_of_session(msgspec.convert(raw, CheckoutSession))
    assert (payment.currency, payment.total_cents) == ("usd", 9_999)
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "", withdraw=False)
    foreign = BalanceTransaction(id="txn_eur", amount=-9_150, currency="eur", fee=1_500)
    shop.stripe.disputes_by_id[dispute.id] = replace(
        shop.stripe.disputes_by_id[dispute.id], balance_transactions=(foreign,)
    )
    await shop.deliver()
    assert await shop.rows("SELECT * FROM transfers WHERE reference_id = 'txn_eur'") == []


async def test_pitfall_25_the_idempotency_key_is_ours_and_stays_the_same_over_retries(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.sessions_by_id.clear()
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE purchases SET state = 'created', session_id = NULL"))
    await shop.buy(account)
    assert [order.key for order in shop.stripe.orders] == [purchase.idempotency_key] * 2
    assert purchase.idempotency_key == f"{purchase.id}:1"


async def test_pitfall_30_portal_and_pages_are_the_callers_own_and_lead_back_to_us_alone(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    purchase = await shop.paid(account)
    async with open_api(shop) as api:
        mine, theirs = await api.acting(account), await api.acting(other)
        evil = {"returnUrl": "https://evil.com", "customer": "cus_000001", "return_url": "//evil.com"}
        answer = await api.client.post("/api/billing/portal", json=evil, headers=mine)
        assert (
            answer.json()["url"] == f"https://billing.stripe.test/{purchase.customer_id}?back=https://app.test/credits"
        )
        assert (await api.client.post("/api/billing/portal", json=evil, headers=theirs)).status_code == 404
        for wanted in (purchase.id, purchase.session_id):
            assert (await api.client.get(f"/api/billing/purchases/{wanted}", headers=mine)).json()[
                "state"
            ] == "credited"
            assert (await api.client.get(f"/api/billing/purchases/{wanted}", headers=theirs)).status_code == 404
        tampered = {"packageCode": "pro", "successUrl": "https://app.test@evil.com", "cancelUrl": "//evil.com"}
        await api.client.post("/api/billing/checkout", json=tampered, headers=mine)
    assert {(asked["success_url"], asked["cancel_url"]) for asked in shop.stripe.asked} == {
        ("https://app.test/ok?s={CHECKOUT_SESSION_ID}", "https://app.test/no")
    }


async def test_the_card_of_a_deleted_customer_does_not_come_back(shop: Shop) -> None:
    account = await account_with_card(shop)
    (first,) = await shop.purchases.of_account(account, 5)
    shop.stripe.deleted_customers.add(first.customer_id)
    await shop.paid(account)
    shop.stripe.emit("charge.updated", (await shop.get(first)).stripe_charge_id)
    await shop.deliver()
    buyer = await shop.customers.find(account)
    assert buyer is not None
    assert buyer.payment_method_id == ""


async def test_the_payment_page_sells_what_is_credited_to_the_last_credit(shop: Shop) -> None:
    account = await shop.books.account()
    await shop.buy(account, PLUS)
    await shop.buy(account, PRO)
    assert [order.title for order in shop.stripe.orders] == ["52,489.5 credits", "109,989 credits"]


async def test_a_failure_that_stripe_keeps_of_the_customer_locks_nobody_out(shop: Shop) -> None:
    """Not for the day that it is kept, however often another one comes: the next click has another key."""
    account = await shop.books.account()
    shop.stripe.keep_failures = 1
    purchase = await shop.buy(account)
    assert (purchase.state, purchase.customer_id) == ("open", (await buyer_of(shop, account)))
    other = await shop.books.account()
    shop.stripe.keep_failures = 4  # the account's key, and those of three clicks
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await shop.buy(other)
    assert (await shop.buy(other)).state == "open"
    states = sorted(row.state for row in await shop.purchases.of_account(other, 9))
    assert states == ["failed", "failed", "failed", "open"]


async def buyer_of(shop: Shop, account: str) -> str:
    buyer = await shop.customers.find(account)
    assert buyer is not None
    return buyer.customer_id


async def test_purchases_of_all_accounts_are_listed_newest_first_and_by_state(shop: Shop) -> None:
    made = [await shop.buy(await shop.books.account()) for _ in range(3)]
    paid = await shop.paid(await shop.books.account())
    listed = await shop.purchases.newest(9)
    assert {row.id for row in listed} == {paid.id, *(row.id for row in made)}
    assert [(row.created_at, row.id) for row in listed] == sorted(((r.created_at, r.id) for r in listed), reverse=True)
    first = await shop.purchases.newest(2)
    rest = await shop.purchases.newest(9, before=(first[-1].created_at, first[-1].id))
    assert [row.id for row in (*first, *rest)] == [row.id for row in listed]
    assert [row.id for row in await shop.purchases.newest(9, "credited")] == [paid.id]
