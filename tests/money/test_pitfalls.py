"""The 31 Stripe pitfalls of ledger-and-stripe.md 2, each with its test, by number."""

import ast
import asyncio
import json
import logging
import time

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from billing.money.errors import NotYet, StoreUnavailable
from billing.payments.purchase_store import Purchase
from billing.payments.stripe.inbox import read_event
from billing.payments.stripe.objects import BalanceTransaction, Dispute, Session, payment_of_session
from billing.payments.stripe.signatures import BadSignature, sign, verify
from config.errors import ConfigError
from config.secrets import stripe_keys
from proxy.customer_api.money_in import MoneyCounter
from proxy.observability.metrics import Metrics
from tests.money.api import SECRET, open_api, settings
from tests.money.shop import PRO, STARTER, Shop
from tests.support.servers import ROOT

replace = msgspec.structs.replace


def event_body(kind: str = "checkout.session.completed", object_id: str = "cs_test_1", **changes: object) -> bytes:
    envelope = {
        "id": "evt_1",
        "object": "event",
        "type": kind,
        "created": int(time.time()),
        "livemode": False,
        "api_version": "2026-10-28.endive",
        "data": {"object": {"id": object_id, "object": "checkout.session"}},
    }
    return json.dumps({**envelope, **changes}).encode()


async def paid_page(shop: Shop, **wrong: object) -> tuple[str, Purchase]:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "", **wrong)
    return account, purchase


async def test_pitfall_01_duplicates_and_two_deliveries_at_once_credit_once(shop: Shop) -> None:
    account, _ = await paid_page(shop)
    async with open_api(shop) as api:
        bodies = [payload for _, payload in shop.stripe.events_made] * 4
        answers = await asyncio.gather(*(api.hook(body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200}
    await shop.work()
    assert len(await shop.rows("SELECT event_id FROM stripe_inbox")) == len(shop.stripe.events_made)
    assert await shop.balance(account) == 109_989_000
    # several events of one payment, and the same again after a long time: still one purchase transfer
    await shop.inbox.replay(shop.stripe.events_made[0][0].id)
    await shop.work()
    assert await shop.balance(account) == 109_989_000


async def test_pitfall_02_events_out_of_order_and_a_refund_before_its_purchase(shop: Shop) -> None:
    account, purchase = await paid_page(shop)
    intent = shop.stripe.intent_of(purchase.session_id or "")
    refund = shop.stripe.give_back(intent.id, 5_000)
    shop.stripe.change_refund(refund.id, "failed")
    for event, payload in reversed(shop.stripe.events_made):
        await shop.inbox.store(event, payload, "webhook")
        await shop.work()
    assert await shop.balance(account) == 109_989_000
    assert await shop.findings() == []


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
        forged = Session(
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


async def test_pitfall_08_the_grant_is_the_packages_whatever_the_total(shop: Shop) -> None:
    account, purchase = await paid_page(shop, tax=800)
    await shop.deliver()
    assert await shop.balance(account) == 109_989_000
    assert (await shop.get(purchase)).tax_cents == 800
    assert await shop.ledger_of("payable:tax") == 8_000_000
    discounted, _ = await paid_page(shop, amount_total=5_000)
    await shop.deliver()
    assert await shop.balance(discounted) == 0


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
    payment = payment_of_session(msgspec.convert(raw, Session))
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


async def test_pitfall_10_refunds_go_by_the_refund_object_not_by_the_charges_cumulative_figure(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    for cents in (100, 200):
        shop.stripe.give_back(purchase.payment_intent_id or "", cents)  # refund.created and charge.refunded for each
    await shop.deliver()
    assert await shop.balance(account) == 9_990_000 - 3_000_000
    assert len(await shop.rows("SELECT id FROM claims")) == 2


async def test_pitfall_11_partial_refunds_sum_to_the_whole(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, PRO, tax=777)
    for cents in (1, 3_333, 10_776 - 3_335, 1):
        shop.stripe.give_back(purchase.payment_intent_id or "", cents)
        await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("promo") == 0
    assert await shop.ledger_of("payable:tax") == 0


@pytest.mark.parametrize("end", ["failed", "canceled"])
async def test_pitfall_12_a_refund_that_fails_afterwards_gives_the_credits_back_once(shop: Shop, end: str) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 9_999)
    await shop.deliver()
    assert await shop.balance(account) == 0
    for _ in range(3):
        shop.stripe.change_refund(refund.id, end)
        await shop.deliver()
    assert await shop.balance(account) == 109_989_000


async def test_pitfall_13_spent_credits_go_below_zero_and_are_never_clamped(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    await shop.books.correct(account, -9_990_000)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    assert await shop.balance(account) == -9_990_000
    assert await shop.findings() == []


async def test_pitfall_14_a_disputes_credits_and_a_disputes_money_are_two_things(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    dispute = shop.stripe.open_dispute(
        purchase.payment_intent_id or "", status="warning_needs_response", withdraw=False
    )
    await shop.deliver()
    assert await shop.balance(account) == 0  # held from the first warning on, though no money has moved
    assert await shop.rows("SELECT kind FROM transfers WHERE kind = 'dispute_cash'") == []
    shop.stripe.disputes_by_id[dispute.id] = replace(shop.stripe.disputes_by_id[dispute.id], status="needs_response")
    shop.stripe.move_funds(dispute.id, -9_999, 1_500)
    await shop.deliver()
    assert [
        row[0] for row in await shop.rows("SELECT amount_millicredits FROM transfers WHERE kind = 'dispute_cash'")
    ] == [99_990_000]
    assert await shop.ledger_of("fees") == -((30 + 9_999 * 29 // 1_000) + 1_500) * 10_000
    shop.stripe.close_dispute(dispute.id, "lost")
    await shop.deliver()
    assert await shop.ledger_of("disputes") == 0
    assert await shop.balance(account) == 0


async def test_pitfall_15_a_dispute_on_top_of_a_refund_takes_no_more_than_was_sold(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    shop.stripe.give_back(purchase.payment_intent_id or "", 6_000)
    shop.stripe.open_dispute(purchase.payment_intent_id or "", 9_999)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


async def test_pitfall_16_another_api_version_is_stored_and_processed_all_the_same(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    account, purchase = await paid_page(shop)
    body = event_body(object_id=purchase.session_id or "", api_version="2019-02-19")
    async with open_api(shop) as api:
        for counted in (1, 2):  # a repeated delivery is one more
            assert (await api.hook(body)).status_code == 200
            assert await api.count("stripe_event_version_mismatches_total") == counted
        assert "evt_1 (checkout.session.completed) has API version 2019-02-19, not 2026-10-28.endive" in caplog.text
        assert (await api.hook(event_body(id="evt_ours"))).status_code == 200
        assert await api.count("stripe_event_version_mismatches_total") == 2
    await shop.work()
    assert await shop.balance(account) == 109_989_000
    assert await shop.rows("SELECT api_version FROM stripe_inbox ORDER BY api_version") == [
        ("2019-02-19",),
        ("2026-10-28.endive",),
    ]


async def test_pitfall_17_an_event_of_the_other_mode_is_refused(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    async with open_api(shop) as api:
        assert (await api.hook(event_body(livemode=True))).status_code == 400
        assert await api.count("stripe_webhook_failures_total", reason="livemode") == 1
    async with open_api(shop, settings(stripe={"livemode": True})) as api:
        assert (await api.hook(event_body(livemode=False))).status_code == 400
    assert await shop.rows("SELECT * FROM stripe_inbox") == []
    assert "livemode" in caplog.text
    with pytest.raises(ConfigError):
        stripe_keys(
            settings(stripe={"livemode": True}), {"STRIPE_API_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRET": SECRET}
        )


async def test_pitfall_18_the_raw_body_within_the_tolerance_both_ways_under_a_cap(shop: Shop) -> None:
    now = int(time.time())
    async with open_api(shop) as api:
        body = event_body()
        assert (await api.hook(body, at=now - 301)).status_code == 400
        assert (await api.hook(body, at=now + 3_600 * 24 * 365)).status_code == 400
        reserialized = json.dumps(json.loads(body), indent=1).encode()
        assert (await api.hook(reserialized, header=sign(body, SECRET, now))).status_code == 400
        assert (await api.hook(b"\xff\xfe", at=now)).status_code == 400
        assert (await api.hook(b" " * 300_000)).status_code == 413
        assert (await api.client.post("/webhooks/stripe", content=body)).status_code == 400
        two = [("stripe-signature", sign(body, SECRET, now)), ("stripe-signature", sign(body, SECRET, now))]
        assert (await api.client.post("/webhooks/stripe", content=body, headers=two)).status_code == 400
        assert await api.count("stripe_webhook_failures_total", reason="signature") == 5
        assert await api.count("stripe_webhook_failures_total", reason="too_large") == 1
        assert await shop.rows("SELECT * FROM stripe_inbox") == []
        assert (await api.hook(body)).status_code == 200


async def test_pitfall_19_there_is_no_start_and_no_verification_without_a_secret(shop: Shop) -> None:
    body = event_body()
    with pytest.raises(BadSignature):
        verify(body, sign(body, "", 1), [""], 1, 300)
    for secret in ("", "whsec_", " , "):
        with pytest.raises(ConfigError):
            stripe_keys(settings(), {"STRIPE_API_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRET": secret})
    async with open_api(shop, secrets=()) as api:
        answer = await api.hook(body, secret="")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "stripe_not_configured")


async def test_pitfall_20_two_secrets_while_rotating(shop: Shop) -> None:
    async with open_api(shop, secrets=("whsec_new", "whsec_old")) as api:
        assert (await api.hook(event_body(id="evt_a"), secret="whsec_old")).status_code == 200
        assert (await api.hook(event_body(id="evt_b"), secret="whsec_new")).status_code == 200
        assert (await api.hook(event_body(id="evt_c"), secret="whsec_gone")).status_code == 400
        both = event_body(id="evt_d")
        header = (
            sign(both, "whsec_gone", int(time.time())) + "," + sign(both, "whsec_new", int(time.time())).split(",")[1]
        )
        assert (await api.hook(both, header=header)).status_code == 200


async def test_pitfall_21_thin_events_are_stored_counted_and_left_alone(shop: Shop) -> None:
    thin = {
        "id": "evt_65R9",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-11-23T17:46:22.134Z",
        "livemode": False,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    }
    async with open_api(shop) as api:
        assert (await api.hook(json.dumps(thin).encode())).status_code == 200
        assert await api.count("stripe_webhook_events_total", type="other") == 1
        assert await api.count("stripe_event_version_mismatches_total") == 0  # these have none
    await shop.work()
    assert await shop.rows("SELECT state FROM stripe_inbox") == [("ignored",)]


async def test_pitfall_22_events_are_kept_as_they_came_never_as_library_objects(shop: Shop) -> None:
    body = event_body(
        "invoice.paid", marker="ünïcode", data={"object": {"id": "in_1"}, "previous_attributes": {"x": 1}}
    )
    async with open_api(shop) as api:
        assert (await api.hook(body)).status_code == 200
    assert await shop.rows("SELECT payload FROM stripe_inbox") == [(body.decode(),)]
    for wrong in (b"[]", b"null", b"{}", b'{"id": "evt_1"}', b'{"id": 7, "type": "x", "created": 1}', b"\xff"):
        with pytest.raises(ValueError):
            read_event(wrong)


async def test_pitfall_23_stripe_gets_its_2xx_after_the_commit_and_the_work_waits_for_stripe(shop: Shop) -> None:
    account, _ = await paid_page(shop)
    shop.stripe.down = True
    async with open_api(shop) as api:
        for _, payload in shop.stripe.events_made:
            assert (await api.hook(payload)).status_code == 200
        await shop.work()
        assert await shop.balance(account) == 0
        assert (await shop.inbox.depth()).waiting == 2
        shop.stripe.down = False
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE stripe_inbox SET next_at = 0"))
        await shop.work()
        assert await shop.balance(account) == 109_989_000
        # and what cannot be committed is a 5xx, so that Stripe sends it again
        await shop.books.database.engine.dispose()
        shop.inbox.store = unavailable  # type: ignore[method-assign]
        api.money.inbox = shop.inbox
        assert (await api.hook(event_body())).status_code == 503
        assert await api.count("stripe_webhook_failures_total", reason="store") == 1
        # so is a fault of ours, once it is known that Stripe has sent it
        shop.inbox.store = broken  # type: ignore[method-assign]
        with pytest.raises(KeyError):
            await api.hook(event_body())
        assert (await api.hook(event_body(), secret="whsec_other")).status_code == 400
        assert await api.count("stripe_webhook_failures_total", reason="internal") == 1


async def broken(*_: object) -> bool:
    raise KeyError("a fault of ours")


async def unavailable(*_: object) -> bool:
    raise StoreUnavailable("sql", "away")


async def test_pitfall_24_the_sweeper_finds_missed_events_and_objects_whose_event_was_never_made(shop: Shop) -> None:
    account, purchase = await paid_page(shop)
    shop.delivered = len(shop.stripe.events_made)  # lost, all of them
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert swept.missed_events == 2
    await shop.work()
    assert await shop.balance(account) == 109_989_000
    never, _ = await paid_page(shop)
    refunded = shop.stripe.give_back((await shop.get(purchase)).payment_intent_id or "", 9_999)
    shop.stripe.events_made.clear()  # Stripe itself has none
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert any(refunded.id in line for line in swept.fixed)
    assert len(swept.fixed) == 2
    assert await shop.balance(account) == 0
    assert await shop.balance(never) == 109_989_000
    again = await shop.sweeper.sweep(30, livemode=False)
    assert (again.fixed, again.missed_events) == ((), 0)


async def test_pitfall_25_the_idempotency_key_is_ours_and_stays_the_same_over_retries(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.sessions_by_id.clear()
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE purchases SET state = 'created', session_id = NULL"))
    await shop.buy(account)
    assert [order.key for order in shop.stripe.orders] == [purchase.idempotency_key] * 2
    assert purchase.idempotency_key == f"{purchase.id}:1"


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


def test_pitfall_28_stripes_own_credit_grants_are_not_used() -> None:
    source = (ROOT / "billing" / "payments" / "stripe" / "gateway.py").read_text()
    assert "credit_grants" not in source
    assert "billing.credit" not in source


async def test_pitfall_29_receipts_are_fetched_on_demand_for_their_owner(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    purchase = await shop.paid(account)
    async with open_api(shop) as api:
        path = f"/api/billing/purchases/{purchase.id}/receipt"
        answer = await api.client.get(path, headers=await api.key(account))
        assert (answer.status_code, answer.headers["location"]) == (303, purchase.receipt_url)
        assert (await api.client.get(path, headers=await api.key(other))).status_code == 404
        shop.stripe.down = True  # then the one we kept
        assert (await api.client.get(path, headers=await api.key(account))).headers["location"] == purchase.receipt_url


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


def test_pitfall_31_every_call_to_stripe_is_asynchronous() -> None:
    tree = ast.parse((ROOT / "billing" / "payments" / "stripe" / "gateway.py").read_text())
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    spoken = [call for call in calls if call.startswith("self._v1.")]
    assert len(spoken) >= 8
    assert all(call.endswith("_async") for call in spoken)
    assert "stripe.HTTPXClient" in calls


async def test_a_refused_currency_waits_for_a_person(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 100)
    shop.stripe.refunds_by_id[refund.id] = replace(refund, currency="eur")
    with pytest.raises(NotYet):
        await shop.sync.refund(refund.id)
    with caplog.at_level(logging.WARNING):
        await shop.deliver()
    assert "cannot take back" in caplog.text
    assert isinstance(shop.stripe.open_dispute(purchase.payment_intent_id or ""), Dispute)
