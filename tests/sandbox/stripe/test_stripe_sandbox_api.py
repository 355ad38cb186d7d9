"""Idempotency as Stripe has it, ordered failures, and the process on the command line."""

import asyncio
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
import stripe

from tests.sandbox.stripe.conftest import KEY, Box

CUSTOMER = "email=a@example.com"


async def make(box: Box, key: str = "k1", body: str = CUSTOMER, path: str = "customers") -> httpx.Response:
    return await box.raw("POST", f"/v1/{path}", body, idempotency_key=key)


async def test_the_same_request_is_replayed_and_another_one_refused(box: Box) -> None:
    first, second = await make(box), await make(box)
    assert first.json() == second.json()
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["original-request"] == first.headers["request-id"]
    assert second.headers["request-id"] != first.headers["request-id"]
    for body, path in (("email=b@example.com", "customers"), ("name=x", "products")):
        other = await make(box, body=body, path=path)
        assert other.status_code == 400
        assert other.json()["error"]["type"] == "idempotency_error"
    assert len((await box.v1.customers.list_async({})).data) == 1
    await box.control("PUT", "clock", {"advance_s": 86_401})
    assert (await make(box)).json()["id"] != first.json()["id"]
    assert (await make(box, "x" * 256)).status_code == 400


async def test_two_at_once_make_one_and_the_other_is_told_to_wait(box: Box) -> None:
    await box.settings(api_latency_ms=100)
    answers = await asyncio.gather(*(make(box) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["error"]["code"] == "idempotency_key_in_use"
    assert len((await box.v1.customers.list_async({})).data) == 1


async def test_refusals_of_parameters_are_not_saved_but_declines_are(box: Box) -> None:
    assert (await make(box, body="nonsense=1")).status_code == 400
    assert (await make(box)).status_code == 200
    body = "amount=500&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined&return_url=http://x.example/"
    declined, again = await make(box, "k2", body, "payment_intents"), await make(box, "k2", body, "payment_intents")
    assert (declined.status_code, again.headers["idempotent-replayed"]) == (402, "true")
    assert declined.json()["error"]["charge"] == again.json()["error"]["charge"]


async def test_the_sdk_gets_idempotency_errors_and_events_name_their_request(box: Box) -> None:
    made = await box.v1.customers.create_async({"email": "a@example.com"}, {"idempotency_key": "once"})
    with pytest.raises(stripe.IdempotencyError):
        await box.v1.customers.create_async({"email": "b@example.com"}, {"idempotency_key": "once"})
    event = (await box.v1.events.list_async({"type": "customer.created"})).data[0]
    assert event.request.idempotency_key == "once"
    assert event.request.id == made.last_response.request_id
    assert event.data.object["id"] == made.id


# kind, after, saved -> is a customer made; what a second try with the same key gets
FAULTS: list[tuple[dict[str, Any], type[Exception], int, int]] = [
    ({"status": 500}, stripe.APIError, 0, 200),
    ({"status": 500, "after": True}, stripe.APIError, 1, 200),
    ({"status": 500, "after": True, "saved": True}, stripe.APIError, 1, 500),
    ({"status": 503}, stripe.APIError, 0, 200),
    ({"status": 429, "code": "rate_limit"}, stripe.RateLimitError, 0, 200),
    ({"kind": "reset"}, stripe.APIConnectionError, 0, 200),
    ({"kind": "reset", "after": True}, stripe.APIConnectionError, 1, 200),
    ({"kind": "timeout", "hang_s": 0.1}, stripe.APIConnectionError, 0, 200),
    ({"kind": "timeout", "hang_s": 0.1, "after": True}, stripe.APIConnectionError, 1, 200),
]


@pytest.mark.parametrize(("fault", "error", "made", "second"), FAULTS)
async def test_ordered_failures_before_and_after_the_work(
    box: Box, fault: dict[str, Any], error: type[Exception], made: int, second: int
) -> None:
    await box.control("POST", "faults", {"path": "customers$", "method": "POST", **fault})
    with pytest.raises(error):
        await box.v1.customers.create_async({}, {"idempotency_key": "k"})
    listed = await box.v1.customers.list_async({})
    assert len(listed.data) == made
    again = await make(box, "k", "")
    assert again.status_code == second
    assert len((await box.v1.customers.list_async({})).data) == 1
    assert (await box.control("GET", "faults"))["faults"] == []


async def test_the_sdk_retries_over_lost_answers_without_doing_it_twice(box: Box) -> None:
    paid = await box.paid(999)
    patient = stripe.StripeClient(
        KEY, base_addresses={"api": box.server.url}, http_client=stripe.HTTPXClient(), max_network_retries=3
    )
    await box.control("POST", "faults", {"kind": "reset", "after": True, "path": "refunds", "count": 2})
    refund = await patient.v1.refunds.create_async({"payment_intent": paid.payment_intent.id, "amount": 100})
    assert refund.amount == 100
    assert (await box.record())["totals"]["refunded"] == 100
    await patient._requestor._client.close_async()


async def test_faults_can_be_seen_cleared_and_refused(box: Box) -> None:
    await box.control("POST", "faults", {"count": 3, "status": 502})
    assert (await box.raw("GET", "/v1/balance")).status_code == 502
    assert (await box.control("GET", "faults"))["faults"][0]["count"] == 2
    assert (await box.control("DELETE", "faults"))["faults"] == []
    assert (await box.raw("GET", "/v1/balance")).status_code == 200
    for bad in ({"count": 0}, {"status": 200}, {"path": "("}, {"kind": "x"}, {"saved": True}, {"extra": 1}):
        await box.control("POST", "faults", bad, status=400)


async def test_settings_are_merged_and_checked(box: Box) -> None:
    await box.chaos(copies_max=3)
    shown = await box.settings(fee_fixed=25, delivery={"drop": 0.5})
    assert (shown["delivery"]["copies_max"], shown["delivery"]["drop"], shown["fee_fixed"]) == (3, 0.5, 25)
    for bad in (
        {"nonsense": 1},
        {"delivery": {"copies_max": 6}},
        {"delivery": {"drop": 2}},
        {"delivery": 1},
        {"fee_fixed": -1},
    ):
        await box.control("PUT", "settings", bad, status=400)
    await box.control("GET", "nothing", status=404)


def test_the_command_line_prints_its_url_and_ends_on_sigterm(tmp_path: Any) -> None:
    command = [
        sys.executable,
        "-m",
        "sandbox.stripe",
        "--port",
        "0",
        "--record",
        str(tmp_path / "r.jsonl"),
        "--seed",
        "1",
    ]
    command += [
        "--webhook",
        "http://127.0.0.1:9/",
        "--webhook-secret",
        "whsec_x",
        "--settings",
        '{"delivery": {"max_attempts": 1}}',
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("stripe sandbox listening on http://127.0.0.1:")
        url = line.split()[-1]
        client = stripe.StripeClient(KEY, base_addresses={"api": url})
        assert client.v1.accounts.retrieve_current().id.startswith("acct_")
        assert [hook.url for hook in client.v1.webhook_endpoints.list({}).data] == ["http://127.0.0.1:9/"]
        started = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - started < 5
    bad = subprocess.run([*command[:3], "--settings", '{"fee_fixed": -1}'], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "at least 0" in bad.stderr
