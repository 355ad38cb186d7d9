"""Deliveries: signatures the library accepts or refuses, and every kind of chaos."""

import asyncio
import time
from typing import Any

import pytest
import stripe

from tests.sandbox.stripe.conftest import SECRET, Box

NEW_SECRET = "whsec_the_new_one"


def construct(request: tuple[dict[str, str], bytes], secret: str = SECRET) -> stripe.Event:
    headers, body = request
    return stripe.Webhook.construct_event(body, headers.get("stripe-signature", ""), secret)


async def customers(box: Box, count: int) -> list[str]:
    return [(await box.v1.customers.create_async({})).id for _ in range(count)]


async def test_every_event_of_a_purchase_arrives_signed_and_as_the_api_shows_it(box: Box) -> None:
    paid = await box.paid()
    await box.drain()
    for request in box.receiver.requests:
        event = construct(request)
        assert event.livemode is False
        assert event.api_version == "2026-10-28.endive"
        same = await box.v1.events.retrieve_async(event.id)
        assert same.data.object == event.data.object
    assert sorted(box.receiver.types) == sorted(await box.types())
    completed = next(event for event in box.receiver.events if event["type"] == "checkout.session.completed")
    assert completed["data"]["object"]["id"] == paid.id
    assert completed["pending_webhooks"] == 1
    assert (await box.v1.events.retrieve_async(completed["id"])).pending_webhooks == 0
    assert box.receiver.requests[0][0]["user-agent"].startswith("Stripe/1.0")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"signature": "wrong_secret"}, "No signatures found matching"),
    ({"signature": "missing"}, "No Stripe-Signature header"),
    ({"signature": "malformed"}, "Unable to extract timestamp"),
    ({"signature": "v0_only"}, "No signatures found with expected scheme"),
    ({"timestamp_offset_s": -301}, "Timestamp outside the tolerance zone"),
]


@pytest.mark.parametrize(("chaos", "words"), REFUSED)
async def test_signatures_that_must_be_refused(box: Box, chaos: dict[str, Any], words: str) -> None:
    await box.chaos(**chaos)
    await customers(box, 1)
    await box.drain()
    with pytest.raises(stripe.SignatureVerificationError, match=words):
        construct(box.receiver.requests[0])


async def test_future_timestamps_and_false_fields_pass_the_library_s_check(box: Box) -> None:
    await box.chaos(timestamp_offset_s=86_400, livemode=True, api_version="2020-08-27")
    await customers(box, 1)
    await box.drain()
    event = construct(box.receiver.requests[0])
    assert (event.livemode, event.api_version) == (True, "2020-08-27")


async def test_a_rolled_secret_signs_beside_the_old_one_for_a_while(box: Box) -> None:
    endpoint = (await box.v1.webhook_endpoints.list_async({})).data[0]
    await box.control("POST", f"endpoints/{endpoint.id}/roll", {"secret": NEW_SECRET, "overlap_s": 100})
    await customers(box, 1)
    await box.drain()
    assert box.receiver.requests[0][0]["stripe-signature"].count("v1=") == 2
    construct(box.receiver.requests[0], SECRET)
    construct(box.receiver.requests[0], NEW_SECRET)
    await box.control("PUT", "clock", {"advance_s": 101})
    await customers(box, 1)
    await box.drain()
    construct(box.receiver.requests[1], NEW_SECRET)
    with pytest.raises(stripe.SignatureVerificationError):
        construct(box.receiver.requests[1], SECRET)


async def test_failures_are_retried_until_accepted_and_the_attempts_are_listed(box: Box) -> None:
    await box.chaos(retry_scale=0.0001, timeout_s=0.5)
    box.receiver.answers = [500, 302, 0, 404, 200]
    await customers(box, 1)
    await box.drain()
    listed = (await box.control("GET", "deliveries?type=customer.created"))["deliveries"]
    assert [attempt["status"] for attempt in listed[0]["attempts"]] == [500, 302, None, 404, 200]
    assert listed[0]["state"] == "delivered"
    assert len({body for _, body in box.receiver.requests}) == 1


async def test_it_gives_up_and_the_dashboard_can_send_again(box: Box) -> None:
    await box.chaos(retry_scale=0, max_attempts=3)
    box.receiver.answers = [500, 500, 500]
    await customers(box, 1)
    await box.drain()
    listed = (await box.control("GET", "deliveries"))["deliveries"]
    assert (listed[0]["state"], len(listed[0]["attempts"])) == ("failed", 3)
    event = (await box.v1.events.list_async({"delivery_success": False})).data[0]
    await box.control("POST", f"events/{event.id}/resend")
    await box.drain()
    assert box.receiver.events[-1]["id"] == event.id
    assert (await box.v1.events.retrieve_async(event.id)).pending_webhooks == 0


async def test_slow_receivers_time_out(box: Box) -> None:
    await box.chaos(timeout_s=0.05, max_attempts=1)
    box.receiver.delay_s = 0.3
    await customers(box, 1)
    await box.drain()
    attempt = (await box.control("GET", "deliveries"))["deliveries"][0]["attempts"][0]
    assert "Timeout" in attempt["error"]


async def test_the_connection_is_cut_after_the_request_was_read(box: Box) -> None:
    await box.chaos(cut=1.0, cut_after_ms=20, retry_scale=0, max_attempts=2)
    await customers(box, 1)
    await box.drain()
    assert len(box.receiver.requests) == 2
    construct(box.receiver.requests[0])
    listed = (await box.control("GET", "deliveries"))["deliveries"]
    assert (listed[0]["state"], listed[0]["attempts"][0]["error"]) == ("failed", "cut by the sandbox")


async def test_copies_come_shuffled_and_in_parallel(box: Box) -> None:
    await box.chaos(copies_min=1, copies_max=5, shuffle_ms=300, parallel=4, seed=7)
    box.receiver.delay_s = 0.005
    made = await customers(box, 20)
    await box.drain()
    arrived = [event["data"]["object"]["id"] for event in box.receiver.events]
    assert set(arrived) == set(made)
    assert 20 < len(arrived) <= 100
    assert all(1 <= arrived.count(name) <= 5 for name in made)
    assert list(dict.fromkeys(arrived)) != made
    assert 2 <= box.receiver.busiest <= 4


async def test_a_seed_repeats_what_is_dropped_and_how_often_it_is_sent(box: Box) -> None:
    await box.chaos(copies_max=5, drop=0.3, seed=11)
    await customers(box, 30)
    await box.drain()
    listed = (await box.control("GET", "deliveries"))["deliveries"]
    dropped = [sending for sending in listed if sending["state"] == "dropped"]
    assert 3 <= len(dropped) <= 16
    assert all(sending["attempts"] == [] for sending in dropped)
    lost = [
        event.id async for event in (await box.v1.events.list_async({"delivery_success": False})).auto_paging_iter()
    ]
    assert sorted(lost) == sorted(sending["event"] for sending in dropped)
    from sandbox.stripe import Settings, start
    from sandbox.stripe.account.settings import Delivery, Live, Webhook

    live = Live(delivery=Delivery(copies_max=5, drop=0.3, seed=11))
    twin = await start(Settings(webhooks=(Webhook(url=box.receiver.url),), live=live))
    for _ in range(30):
        await box.http.post(f"{twin.url}/v1/customers", headers={"authorization": "Bearer sk_test_sandbox"})
    assert [(one.state == "dropped", one.copies) for one in twin.deliveries.sendings] == [
        (one["state"] == "dropped", one["copies"]) for one in listed
    ]
    await twin.close()


async def test_paused_deliveries_wait(box: Box) -> None:
    await box.chaos(paused=True)
    await customers(box, 3)
    await asyncio.sleep(0.1)
    assert box.receiver.requests == []
    await box.chaos(paused=False)
    await box.drain()
    assert len(box.receiver.requests) == 3


async def test_endpoints_by_the_api_get_only_what_they_ask_for(box: Box) -> None:
    made = await box.v1.webhook_endpoints.create_async(
        {
            "url": f"{box.receiver.url}/two",
            "enabled_events": ["checkout.session.completed"],
            "api_version": "2026-08-26.dahlia",
        }
    )
    assert made.secret.startswith("whsec_")
    assert not hasattr(await box.v1.webhook_endpoints.retrieve_async(made.id), "secret")
    await box.paid()
    await box.drain()
    listed = (await box.control("GET", f"deliveries?endpoint={made.id}"))["deliveries"]
    assert [sending["type"] for sending in listed] == ["checkout.session.completed"]
    versions = {event["api_version"] for event in box.receiver.events if event["type"] == "checkout.session.completed"}
    assert versions == {"2026-08-26.dahlia", "2026-10-28.endive"}
    await box.v1.webhook_endpoints.update_async(made.id, {"disabled": True})
    await box.v1.webhook_endpoints.delete_async(made.id)
    assert len((await box.v1.webhook_endpoints.list_async({})).data) == 1


async def test_any_event_and_any_bytes_by_control(box: Box) -> None:
    customer = (await customers(box, 1))[0]
    await box.control("POST", "events", {"type": "moon.phase_changed", "object": {"id": "x_1", "object": "moon"}})
    await box.control(
        "POST", "events", {"type": "customer.updated", "object": customer, "fields": {"email": "stale@example.com"}}
    )
    await box.drain()
    assert construct(box.receiver.requests[-2]).type == "moon.phase_changed"
    assert box.receiver.events[-1]["data"]["object"]["email"] == "stale@example.com"
    sent = await box.control("POST", "send", {"body": '{"object": "v2.core.event", "id": "evt_x"}'})
    assert sent["status"] == 200
    with pytest.raises(ValueError, match="parse_event_notification|thin|v2"):
        construct(box.receiver.requests[-1])
    await box.control("POST", "send", {"body": "not json"})
    with pytest.raises(ValueError, match="Expecting value"):
        construct(box.receiver.requests[-1])


async def test_hundreds_of_events_arrive_soon(box: Box) -> None:
    await box.chaos(copies_max=2, shuffle_ms=50)
    started = time.monotonic()
    for _ in range(400):
        box.server.world.emit("customer.created", {"id": "cus_1", "object": "customer"})
    await box.drain()
    assert len(set(event["id"] for event in box.receiver.events)) == 400
    assert time.monotonic() - started < 15
