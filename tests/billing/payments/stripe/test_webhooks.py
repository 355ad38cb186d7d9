"""Webhooks: signed, stored as they came, answered once committed, and processed once whatever comes twice, late or odd.

The numbers are those of the 31 pitfalls of docs/stripe.md; the others stand with their rules: `git grep test_pitfall_`.
"""

import asyncio
import json
import time

import pytest
from sqlalchemy import text

from billing.money.errors import StoreUnavailable
from billing.payments.stripe.inbox import read_event
from billing.payments.stripe.signatures import BadSignature, sign, verify
from config.errors import ConfigError
from config.secrets import stripe_keys
from tests.support.money_api import SECRET, open_api, settings
from tests.support.shop import Shop, paid_page


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
        for at in (now - 301, now + 3_600 * 24 * 365):
            refused = await api.hook(body, at=at)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "signature_time")
        reserialized = json.dumps(json.loads(body), indent=1).encode()
        assert (await api.hook(reserialized, header=sign(body, SECRET, now))).status_code == 400
        assert (await api.hook(b"\xff\xfe", at=now)).status_code == 400
        assert (await api.hook(b" " * 300_000)).status_code == 413
        assert (await api.client.post("/webhooks/stripe", content=body)).status_code == 400
        two = [("stripe-signature", sign(body, SECRET, now)), ("stripe-signature", sign(body, SECRET, now))]
        assert (await api.client.post("/webhooks/stripe", content=body, headers=two)).status_code == 400
        assert await api.count("stripe_webhook_failures_total", reason="signature") == 3
        assert await api.count("stripe_webhook_failures_total", reason="clock") == 2
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
        "charge.updated", marker="ünïcode", data={"object": {"id": "ch_1"}, "previous_attributes": {"x": 1}}
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
