"""Buying, refunding, disputing, in every order: SQL on both databases, FakeStripe on the other side."""

import asyncio
from typing import Any

import pytest

from billing.ledger.flush import relay_once
from billing.money.errors import NotYet, StoreUnavailable, TooManyCheckouts
from billing.payments.purchase_store import Receipt, Stale
from billing.payments.stripe.gateway import Order
from billing.payments.stripe.objects import payment_of_session
from tests.money.fake_stripe import FakeStripe, replace
from tests.money.shop import PRO, STARTER, TERMS, Shop, open_shop


async def test_a_purchase_is_credited_once_and_live_in_the_balance_store(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    assert purchase.state == "credited"
    assert await shop.balance(account) == 109_989_000
    await relay_once(shop.books.store, shop.books.ledger)
    assert (await shop.books.store.read(account)).balance == 109_989_000
    rows = await shop.rows(
        "SELECT debit_account, credit_account, amount_millicredits, kind, reference_id FROM transfers ORDER BY id"
    )
    fee = 30 + 9_999 * 29 // 1_000
    assert rows == [
        ("cash", f"customer:{account}", 99_990_000, "purchase", purchase.id),
        ("promo", f"customer:{account}", 9_999_000, "purchase_bonus", purchase.id),
        ("fees", "cash", fee * 10_000, "stripe_fee", rows[2][4]),
    ]
    assert purchase.receipt_url.startswith("https://")
    assert await shop.findings() == []


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


async def test_a_stale_picture_is_not_applied_over_a_newer_one(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    old = shop.stripe.sessions_by_id[purchase.session_id or ""]
    shop.stripe.pay(purchase.session_id or "")
    await shop.deliver()
    with pytest.raises(Stale):
        await shop.sales.settle(purchase.id, payment_of_session(old), Receipt(), purchase.revision)
    assert (await shop.get(purchase)).state == "credited"


async def test_many_workers_at_once_credit_once(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "")
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 100)
    shop.stripe.open_dispute(shop.stripe.intent_of(purchase.session_id or "").id, 500)
    for event, payload in shop.stripe.events_made:
        await shop.inbox.store(event, payload, "webhook")
    await asyncio.gather(*(open_shop(shop.books, shop.stripe).worker.step() for _ in range(6)))
    await shop.work()
    cents = 9_999 - 600
    assert await shop.balance(account) == cents * 10_000 + 9_999_000 - 9_999_000 * 600 // 9_999
    assert await shop.findings() == []


async def test_partial_refunds_and_one_that_fails(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    intent = purchase.payment_intent_id or ""
    refunds = [shop.stripe.give_back(intent, cents) for cents in (3_333, 3_333, 3_333)]
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("cash") == (30 + 9_999 * 29 // 1_000) * 10_000  # all that is gone is the fee
    shop.stripe.change_refund(refunds[1].id, "failed")
    await shop.deliver()
    assert await shop.balance(account) == 33_330_000 + 9_999_000 - 9_999_000 * 6_666 // 9_999
    shop.stripe.give_back(intent, 3_333)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


async def test_a_refund_of_spent_credits_goes_below_zero_until_cured(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    await shop.books.correct(account, -9_000_000)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    assert await shop.balance(account) == -9_000_000
    await relay_once(shop.books.store, shop.books.ledger)
    assert (await shop.books.store.read(account)).balance == -9_000_000
    await shop.paid(account, STARTER)
    assert await shop.balance(account) == 990_000


async def test_tax_is_owed_on_and_goes_back_with_the_refund(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER, tax=190)
    assert (purchase.total_cents, purchase.tax_cents) == (1_189, 190)
    assert await shop.ledger_of("payable:tax") == 1_900_000
    shop.stripe.give_back(purchase.payment_intent_id or "", 1_189)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("payable:tax") == 0
    assert await shop.findings() == []


@pytest.mark.parametrize("end", ["won", "lost", "warning_closed", "prevented"])
async def test_a_dispute_holds_the_credits_and_ends(shop: Shop, end: str) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "", withdraw=end in ("won", "lost"))
    await shop.deliver()
    assert await shop.balance(account) == 0
    shop.stripe.close_dispute(dispute.id, end)
    await shop.deliver()
    assert await shop.balance(account) == (109_989_000 if end in ("won", "warning_closed") else 0)
    assert await shop.ledger_of("disputes") == 0
    assert await shop.findings() == []


async def test_an_unknown_dispute_status_keeps_the_hold_and_alerts(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
    await shop.deliver()
    shop.stripe.close_dispute(dispute.id, "arbitration_2031")
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert "arbitration_2031" in caplog.text


async def test_a_refund_during_a_dispute_takes_nothing_twice(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    intent = purchase.payment_intent_id or ""
    dispute = shop.stripe.open_dispute(intent)
    await shop.deliver()
    refund = shop.stripe.give_back(intent, 9_999)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("platform_loss") == -99_990_000  # the bank took it and we sent it: that is our loss
    shop.stripe.close_dispute(dispute.id, "won")
    await shop.deliver()
    assert await shop.balance(account) == 0  # now the refund holds it
    assert await shop.ledger_of("platform_loss") == 0
    shop.stripe.change_refund(refund.id, "failed")
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert await shop.ledger_of("disputes") == 0
    assert await shop.findings() == []


async def test_lost_disputes_block_an_account_by_configuration(sql) -> None:
    shop = open_shop(sql, block_after=2)
    account = await sql.account()
    for expected in ("active", "blocked"):
        purchase = await shop.paid(account)
        dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
        shop.stripe.close_dispute(dispute.id, "lost")
        await shop.deliver()
        assert (await sql.accounts.get(account)).status == expected


async def test_a_refund_known_before_its_purchase_settles_the_purchase_first(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "")
    shop.delivered = len(shop.stripe.events_made)  # the payment's own events are late
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 9_999)
    await shop.deliver()
    assert (await shop.get(purchase)).state == "credited"
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


async def test_a_refund_that_names_a_purchase_we_do_not_know_is_parked(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "pur_unknown", "succeeded")
    refund = shop.stripe.give_back(intent.id, 500)
    with pytest.raises(NotYet):
        await shop.sync.refund(refund.id)
    await shop.deliver()
    assert {row[0] for row in await shop.rows("SELECT state FROM stripe_inbox")} == {"parked"}


async def test_money_of_something_else_on_the_same_account_is_left_alone(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "", "succeeded")
    shop.stripe.emit("payment_intent.succeeded", intent.id)
    shop.stripe.give_back(intent.id, 500)
    shop.stripe.open_dispute(intent.id)
    await shop.deliver()
    assert {row[0] for row in await shop.rows("SELECT state FROM stripe_inbox")} == {"ignored"}
    assert await shop.rows("SELECT * FROM transfers") == []


async def test_a_fee_that_is_known_later_is_booked_once(shop: Shop) -> None:
    from billing.payments.stripe.objects import BalanceTransaction, Charge, Intent

    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "")
    intent = shop.stripe.intent_of(purchase.session_id or "")
    assert isinstance(intent.latest_charge, Charge)
    fee = intent.latest_charge.balance_transaction
    assert isinstance(fee, BalanceTransaction)
    hidden: Intent = replace(intent, latest_charge=replace(intent.latest_charge, balance_transaction=None))
    shop.stripe.intents_by_id[intent.id] = hidden
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert await shop.ledger_of("fees") == 0
    shop.stripe.intents_by_id[intent.id] = intent
    for number in range(2):
        swept = await shop.sweeper.sweep(1, livemode=False)
        assert len(swept.fixed) == (1 if number == 0 else 0)
    assert await shop.ledger_of("fees") == -fee.fee * 10_000


async def test_a_payment_in_review_is_done_with_once_it_was_refunded(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "", amount_total=500)
    await shop.deliver()
    assert any("a person must decide" in finding for finding in await shop.findings())
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 500)
    await shop.deliver()
    assert await shop.findings() == []
    assert await shop.balance(account) == 0


@pytest.mark.parametrize("disputed", [0, 2_000])
async def test_claims_noted_before_the_purchase_is_credited_count_when_it_is(shop: Shop, disputed: int) -> None:

    account = await shop.books.account()
    purchase = await shop.buy(account)
    session_id = purchase.session_id or ""
    shop.stripe.pay(session_id, amount_subtotal=1, amount_total=1)  # review
    intent = shop.stripe.intent_of(session_id)
    shop.stripe.give_back(intent.id, 1_000)
    if disputed:
        shop.stripe.open_dispute(intent.id, disputed)
    await shop.deliver()
    assert {row[0] for row in await shop.rows("SELECT kind FROM transfers")} == {
        "stripe_fee"
    }  # which Stripe keeps in any case
    shop.stripe.sessions_by_id[session_id] = replace(
        shop.stripe.sessions_by_id[session_id], amount_subtotal=9_999, amount_total=9_999
    )
    await shop.sync.session(session_id)
    back = 1_000 + disputed
    assert await shop.balance(account) == (9_999 - back) * 10_000 + 9_999_000 - 9_999_000 * back // 9_999
    assert await shop.ledger_of("disputes") == 0  # the credits held and the money withdrawn, both
    assert await shop.findings() == []


async def test_charge_updated_brings_the_fee(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    async with shop.books.database.write() as connection:
        from sqlalchemy import text

        await connection.execute(text("UPDATE purchases SET fee_booked = false"))
    shop.stripe.emit("charge.updated", purchase.charge_id)
    await shop.deliver()
    assert (await shop.get(purchase)).fee_booked is True


async def test_a_customer_deleted_at_stripe_is_made_again(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.paid(account)
    shop.stripe.deleted_customers.add(first.customer_id)
    second = await shop.paid(account)
    assert second.customer_id != first.customer_id
    assert await shop.balance(account) == 2 * 109_989_000
    buyer = await shop.buyers.find(account)
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
@pytest.mark.parametrize("step", ["create_customer", "replace", "readdressed", "create_session", "opened"])
async def test_a_deleted_customer_and_a_crash_leave_one_page(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    account = await shop.books.account()
    first = await shop.paid(account)
    shop.stripe.deleted_customers.add(first.customer_id)
    part: Any = next(part for part in (shop.stripe, shop.buyers, shop.sales) if hasattr(part, step))
    monkeypatch.setattr(part, step, dying(shop.stripe, getattr(part, step), before=before))
    with pytest.raises(Crash):
        await shop.buy(account)
    page = await shop.buy(account)
    assert [one.id for one in shop.stripe.sessions_by_id.values() if one.status == "open"] == [page.session_id]
    buyer = await shop.buyers.find(account)
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
    purchase = await shop.sales.begin(account, PRO, livemode=False, save_method=False, reuse_ms=600_000, hourly_limit=0)
    assert (await shop.sales.addressed(purchase.id, "cus_first")).customer_id == "cus_first"
    assert (await shop.sales.addressed(purchase.id, "cus_second")).customer_id == "cus_first"
    moved = await shop.sales.readdressed(purchase, "cus_third")
    assert await shop.sales.readdressed(purchase, "cus_fourth") == moved
    assert moved.customer_id == "cus_third"
    assert moved.idempotency_key != purchase.idempotency_key


async def test_a_page_that_stripe_has_forgotten_is_not_offered_again(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.buy(account)
    del shop.stripe.sessions_by_id[first.session_id or ""]
    second = await shop.buy(account)
    assert second.session_id != first.session_id
    assert (await shop.get(first)).state == "failed"


async def test_the_three_way_check_finds_each_tampering_and_nothing_else(shop: Shop) -> None:
    from sqlalchemy import text

    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 500)
    await shop.deliver()
    await shop.age(1_000)

    async def checks(*statements: str) -> set[str]:
        async with shop.books.database.write() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        return {finding.partition(":")[0] for finding in [*await shop.findings(), *await shop.check_stripe()]}

    assert await checks() == set()
    assert await checks("UPDATE claims SET amount_cents = 600") == {
        "claim vs what it should take",
        "refund succeeded at Stripe (cents)",
    }
    assert await checks("UPDATE claims SET amount_cents = 500, booked_paid = booked_paid + 1") == {
        "claim vs what it should take",
        "claim vs its transfers",
    }
    assert await checks(
        "UPDATE claims SET booked_paid = booked_paid - 1", "UPDATE purchases SET bonus_millicredits = 1"
    ) == {"purchase vs its transfers"}
    lost = {
        "purchase transfer without a credited purchase",
        "paid at Stripe vs credited purchase (cents)",
        "claim vs what it should take",
    }
    assert await checks("UPDATE purchases SET bonus_millicredits = 0, state = 'expired'") == lost
    await checks("UPDATE purchases SET state = 'credited'")
    del shop.stripe.sessions_by_id[purchase.session_id or ""]
    shop.stripe.intents_by_id[purchase.payment_intent_id or ""] = replace(
        shop.stripe.intents_by_id[purchase.payment_intent_id or ""], status="canceled"
    )
    assert await checks() == {"credited purchase vs paid at Stripe (cents)"}
    shop.stripe.change_refund(refund.id, "failed")
    assert "refund failed at Stripe (cents)" in await checks()


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
