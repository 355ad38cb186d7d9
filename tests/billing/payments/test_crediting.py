"""A payment becomes credits once: when it is paid, for what was sold, whatever order, crash or picture it comes by."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from billing.ledger.flush import relay_once
from billing.payments.crediting import Receipt
from billing.payments.purchase_store import Stale
from billing.payments.stripe.objects import BalanceTransaction, CheckoutSession, payment_of_session
from proxy.customer_api.money_in import MoneyCounter
from proxy.observability.metrics import Metrics
from tests.support.fake_stripe import replace
from tests.support.shop import PRO, STARTER, Shop, open_shop, paid_page


async def test_pitfall_03_a_completed_session_that_is_not_paid_is_not_credited(shop: Shop) -> None:
    account, purchase = await paid_page(shop, delayed=True)
    await shop.deliver()
    assert (await shop.get(purchase)).state == "processing"
    assert await shop.balance(account) == 0
    shop.stripe.conclude(purchase.session_id or "", paid=True)
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    other, failing = await paid_page(shop, delayed=True)
    shop.stripe.conclude(failing.session_id or "", paid=False)
    await shop.deliver()
    assert (await shop.get(failing)).state == "failed"
    assert await shop.balance(other) == 0


async def test_pitfall_04_no_payment_required_grants_nothing(shop: Shop) -> None:
    account, purchase = await paid_page(shop, payment_status="no_payment_required", amount_total=0)
    await shop.deliver()
    assert (await shop.get(purchase)).state == "review"
    assert await shop.balance(account) == 0
    assert any("a person must decide" in finding for finding in await shop.findings())


async def test_pitfall_05_an_expired_session_ends_and_a_late_payment_still_wins(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    session_id = purchase.session_id or ""
    shop.stripe.expire(session_id)
    await shop.deliver()
    assert (await shop.get(purchase)).state == "expired"
    shop.stripe.sessions_by_id[session_id] = replace(shop.stripe.sessions_by_id[session_id], status="open")
    shop.stripe.pay(session_id)
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert "paid after it had expired" in caplog.text


async def test_pitfalls_05_and_14_are_counted_each_once_and_so_alert(shop: Shop) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    shop.sync._observer = MoneyCounter(metrics)

    def odd() -> tuple[float | None, float | None]:
        metrics.publish()
        late, unknown = (
            registry.get_sample_value("stripe_oddities_total", {"kind": kind})
            for kind in ("paid_late", "unknown_status")
        )
        return late, unknown

    first = await shop.paid(await shop.books.account())
    late = await shop.buy(await shop.books.account())
    session_id = late.session_id or ""
    shop.stripe.expire(session_id)
    await shop.deliver()
    assert odd() == (0, 0)
    shop.stripe.sessions_by_id[session_id] = replace(shop.stripe.sessions_by_id[session_id], status="open")
    shop.stripe.pay(session_id)
    await shop.deliver()
    assert odd() == (1, 0)
    dispute = shop.stripe.open_dispute(first.payment_intent_id or "", status="brand_new")
    await shop.deliver()
    assert odd() == (1, 1)
    for _ in range(2):
        await shop.sync.dispute(dispute.id)
        await shop.sync.session(session_id)
    assert odd() == (1, 1)


async def test_pitfall_06_what_a_session_says_of_itself_is_only_a_hint(shop: Shop) -> None:
    victim, attacker = await shop.books.account(), await shop.books.account()
    target = await shop.buy(victim, PRO)
    cheap = await shop.buy(attacker, STARTER)
    # a paid session that names somebody else's purchase: by reference, by metadata, with or without its customer
    for customer in (cheap.customer_id, target.customer_id):
        forged = CheckoutSession(
            id=shop.stripe.new_id("cs_test"),
            mode="payment",
            payment_status="paid",
            livemode=False,
            status="complete",
            currency="usd",
            amount_subtotal=9_999,
            amount_total=9_999,
            customer=customer,
            client_reference_id=target.id,
        )
        shop.stripe.sessions_by_id[forged.id] = forged
        shop.stripe.emit("checkout.session.completed", forged.id)
    await shop.deliver()
    assert await shop.balance(victim) == 0
    assert (await shop.get(target)).state == "open"
    # and each wrong field of its own session keeps it from being credited
    for wrong in (
        {"livemode": True},
        {"mode": "setup"},
        {"currency": "jpy"},
        {"customer": "cus_other"},
        {"amount_subtotal": 1},
    ):
        account, purchase = await paid_page(shop, **wrong)
        await shop.deliver()
        assert (await shop.get(purchase)).state == "review", wrong
        assert await shop.balance(account) == 0


async def test_pitfall_08_the_grant_is_the_packages_whatever_the_total(shop: Shop) -> None:
    account, purchase = await paid_page(shop, tax=800)
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert (await shop.get(purchase)).tax_cents == 800
    assert await shop.ledger_of("payable:tax") == 8_000_000
    discounted, _ = await paid_page(shop, amount_total=5_000)
    await shop.deliver()
    assert await shop.balance(discounted) == 0


async def test_pitfall_26_dying_between_stripe_and_sql_loses_no_payment(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    async with shop.books.database.write() as connection:  # the session was made, our commit of its id never was
        await connection.execute(text("UPDATE purchases SET state = 'created', session_id = NULL"))
    shop.stripe.pay(purchase.session_id or "")
    await shop.age(300)
    swept = await shop.sweeper.sweep(1, livemode=False)
    assert any(purchase.id in line for line in swept.fixed)
    assert await shop.balance(account) == 109_989_000
    # and one that Stripe never heard of ends, without ever being asked for again
    lost = await shop.buy(await shop.books.account())
    async with shop.books.database.write() as connection:
        await connection.execute(
            text(f"UPDATE purchases SET state = 'created', session_id = NULL WHERE id = '{lost.id}'")
        )
    shop.stripe.sessions_by_id.pop(lost.session_id or "")
    await shop.age(1_000)
    await shop.sweeper.sweep(1, livemode=False)
    assert (await shop.get(lost)).state == "failed"


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


async def test_a_stale_picture_is_not_applied_over_a_newer_one(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    old = shop.stripe.sessions_by_id[purchase.session_id or ""]
    shop.stripe.pay(purchase.session_id or "")
    await shop.deliver()
    with pytest.raises(Stale):
        await shop.crediting.settle(purchase.id, payment_of_session(old), Receipt(), purchase.revision)
    assert (await shop.get(purchase)).state == "credited"


@pytest.mark.slow
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


async def test_money_of_something_else_on_the_same_account_is_left_alone(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "", "succeeded")
    shop.stripe.emit("payment_intent.succeeded", intent.id)
    shop.stripe.give_back(intent.id, 500)
    shop.stripe.open_dispute(intent.id)
    await shop.deliver()
    assert {row[0] for row in await shop.rows("SELECT state FROM stripe_inbox")} == {"ignored"}
    assert await shop.rows("SELECT * FROM transfers") == []


async def test_a_fee_that_is_known_later_is_booked_once(shop: Shop) -> None:
    from billing.payments.stripe.objects import Intent, StripeCharge

    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "")
    intent = shop.stripe.intent_of(purchase.session_id or "")
    assert isinstance(intent.latest_charge, StripeCharge)
    fee = intent.latest_charge.balance_transaction
    assert isinstance(fee, BalanceTransaction)
    hidden: Intent = replace(intent, latest_charge=replace(intent.latest_charge, balance_transaction=None))
    shop.stripe.intents_by_id[intent.id] = hidden
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert await shop.ledger_of("fees") == 0
    shop.stripe.intents_by_id[intent.id] = intent
    shop.stripe.age(400)  # no longer on its way
    for number in range(2):
        swept = await shop.sweeper.sweep(1, livemode=False)
        assert len(swept.fixed) == (1 if number == 0 else 0)
    assert await shop.ledger_of("fees") == -fee.fee * 10_000


async def test_charge_updated_brings_the_fee(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    async with shop.books.database.write() as connection:
        from sqlalchemy import text

        await connection.execute(text("UPDATE purchases SET fee_booked = false"))
    shop.stripe.emit("charge.updated", purchase.stripe_charge_id)
    await shop.deliver()
    assert (await shop.get(purchase)).fee_booked is True


async def test_what_stripe_took_before_the_purchase_was_credited_is_booked_with_it(shop: Shop) -> None:
    """In its transaction: nothing has to be remembered for afterwards."""
    purchase = await shop.buy(await shop.books.account())
    session_id = purchase.session_id or ""
    shop.stripe.pay(session_id, amount_subtotal=1, amount_total=1)  # goes to review
    intent = shop.stripe.intent_of(session_id)
    dispute = shop.stripe.open_dispute(intent.id, 9_999)
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    assert await shop.ledger_of("cash") > 0  # fees only: what never came in does not go out
    shop.stripe.sessions_by_id[session_id] = replace(
        shop.stripe.sessions_by_id[session_id], amount_subtotal=9_999, amount_total=9_999
    )
    dispute_calls = shop.stripe.dispute
    shop.stripe.dispute = no_more  # type: ignore[method-assign]
    await shop.sync.session(session_id)
    shop.stripe.dispute = dispute_calls  # type: ignore[method-assign]
    assert await shop.ledger_of("disputes") == 0
    assert len(await shop.rows("SELECT 1 FROM transfers WHERE kind = 'dispute_cash'")) == 1
    assert await shop.findings() == []
    await shop.age(1_000)
    assert await shop.check_stripe() == []


async def no_more(_id: str) -> None:
    raise AssertionError("the dispute was asked for again")


async def test_the_fee_of_a_payment_in_review_is_booked(shop: Shop) -> None:
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "", amount_total=500)
    await shop.deliver()
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 9_999)
    await shop.deliver()
    assert await shop.ledger_of("fees") == -(30 + 9_999 * 29 // 1_000) * 10_000
