"""Browser voice: from a secret to hangup, charged by the sandbox's record; without a sideband nothing is connected."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI, PermissionDeniedError
from openai.types.realtime.realtime_session_create_response import RealtimeSessionCreateResponse

from tests.support import web
from tests.support.served import Customer
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until
from tests.support.voice import (
    COMMIT,
    OFFER,
    RESPOND,
    SPEAK,
    TEXT,
    VOICE,
    answers,
    bill,
    call_of,
    calls,
    charge_of,
    control,
    hang_up,
    leave,
    make_secret,
    open_call,
    play,
    says,
    secret_of,
    wait_answers,
    wait_ended,
)

START = 100_000_000


@pytest.fixture
def fresh(served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox) -> Customer:
    return new_customer(served(), "10000")


def test_a_call_is_charged_by_the_upstreams_own_record(stack: Tollkeeper, sandbox: Sandbox) -> None:
    account = stack.account("100000")
    account.wait_balance(START)
    heard = {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": None}}
    call_id = call_of(account, audio=heard)
    assert {name: calls(sandbox)[call_id][name] for name in ("running", "events", "sidebands")} == {
        "running": True,
        "events": 0,
        "sidebands": 1,
    }
    assert account.held() > 0
    play(sandbox, call_id, SPEAK, SPEAK, COMMIT, RESPOND)
    wait_answers(sandbox, call_id, 2)
    play(sandbox, call_id, says("and now?"), RESPOND)
    wait_answers(sandbox, call_id, 3)
    answer = hang_up(account, call_id)  # what is still on its way to us is taken
    assert (answer.status_code, calls(sandbox)[call_id]["running"]) == (200, False)
    wait_until(lambda: account.held() == 0, 10, "nothing is held")
    rows = wait_until(lambda: len(found := account.usage()) >= 3 and found, 15, "three rows")
    expected = bill(wait_answers(sandbox, call_id, 3))
    assert sum(int(row["chargedMillicredits"]) for row in rows) == expected > 0
    assert {row["usageSource"] for row in rows} == {"upstream"}
    account.wait_balance(START - expected)
    assert stack.cli("reconcile") == {"ok": True, "findings": []}
    for line in request_lines(stack):
        assert line["held_millicredits"] >= line["charged_millicredits"]


def request_lines(server: Tollkeeper) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request" and line["charged_millicredits"]]


def test_a_key_opens_calls_too_as_a_form_or_with_the_model_in_the_query(fresh: Customer, sandbox: Sandbox) -> None:
    raw = open_call(fresh.server, fresh.api_key, query=f"?model={VOICE}")
    assert raw.status_code == 201, raw.text
    fields = {"sdp": (None, OFFER), "session": (None, json.dumps({"type": "realtime", "model": VOICE}))}
    form = web.post(f"{fresh.server.v1}/realtime/calls", files=fields, headers=fresh.headers, timeout=20)
    assert form.status_code == 201, form.text
    for answer in (raw, form):
        assert answer.headers["content-type"] == "application/sdp"
        assert hang_up(fresh, answer.headers["location"].rpartition("/")[2]).status_code == 200
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")


def test_the_call_is_opened_with_the_operators_key_and_within_our_limits(fresh: Customer, sandbox: Sandbox) -> None:
    made = make_secret(fresh, session={"type": "realtime", "model": VOICE, "instructions": "Be brief."})
    assert made["value"].startswith("ek_")
    assert made["session"]["max_output_tokens"] == 4_096
    call_id = open_call(fresh.server, made["value"]).headers["location"].rpartition("/")[2]
    (row,) = [row for row in sandbox.record() if row["path"] == "/v1/realtime/calls" and row["method"] == "POST"]
    sent = json.loads(row["requestBody"]["session"])
    assert row["requestBody"]["sdp"] == OFFER
    assert sent["instructions"] == "Be brief."
    assert sent["truncation"]["token_limits"] == {"post_instructions": 16_000}
    assert "sk-canary" in row["requestHeaders"]["authorization"]
    hang_up(fresh, call_id)


def test_without_a_sideband_nothing_is_connected(fresh: Customer, sandbox: Sandbox) -> None:
    before = set(calls(sandbox))
    sandbox.settings(sideband_status=403)
    try:
        answer = open_call(fresh.server, secret_of(fresh))
    finally:
        sandbox.settings(sideband_status=0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "sideband_failed")
    assert "v=0" not in answer.text
    (call_id,) = set(calls(sandbox)) - before
    assert not calls(sandbox)[call_id]["running"], "it was hung up before we answered"
    assert fresh.held() == 0


def test_what_the_upstream_refuses_holds_nothing(fresh: Customer) -> None:
    answer = open_call(fresh.server, secret_of(fresh), offer="no offer")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_offer")
    assert fresh.held() == 0


def test_an_upstream_that_hears_nothing_of_us_holds_nothing(fresh: Customer, always: Callable[..., None]) -> None:
    secret = secret_of(fresh)
    always(status=503)
    answer = open_call(fresh.server, secret)
    assert answer.status_code == 503
    assert fresh.held() == 0


# -- money ------------------------------------------------------------------------------------------


def test_a_call_without_money_is_a_402(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    poor = new_customer(served(), "1")
    answer = open_call(poor.server, secret_of(poor))
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_credits")
    assert answer.headers["access-control-allow-origin"] == "*"


def test_little_money_gives_a_call_with_lower_limits_and_its_end_hangs_up(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    poor = new_customer(served(), "250")
    call_id = call_of(poor, output_modalities=["text"])
    (row,) = [row for row in sandbox.record() if row["path"] == "/v1/realtime/calls" and row["method"] == "POST"]
    sent = json.loads(row["requestBody"]["session"])
    assert (sent["max_output_tokens"], sent["truncation"]["token_limits"]["post_instructions"]) == (1_024, 4_000)
    said = sandbox_says(output_tokens=1_000)
    for number in range(1, 6):
        if not calls(sandbox)[call_id]["running"]:
            break
        play(sandbox, call_id, says(said), RESPOND)
        wait_answers(sandbox, call_id, number)
        wait_until(lambda: not calls(sandbox)[call_id]["running"] or poor.held() > 0, 10, "held again, or ended")
    wait_ended(sandbox, call_id)
    expected = bill(answers(sandbox, call_id))
    wait_until(lambda: poor.held() == 0, 10, "nothing is held")
    poor.wait_balance(250_000 - expected)
    assert poor.balance() >= 0


def test_limits_that_the_browser_raises_are_held_for(fresh: Customer, sandbox: Sandbox) -> None:
    call_id = call_of(fresh, **TEXT)
    held = fresh.held()
    play(sandbox, call_id, {"type": "session.update", "session": {"max_output_tokens": "inf", "truncation": "auto"}})
    # 128,000 tokens of sound at 32 and 32,000 of speech at 64 USD a million
    wait_until(lambda: fresh.held() == 128_000 * 32 + 32_000 * 64 > held, 10, "all of it is held for")
    play(sandbox, call_id, says(sandbox_says(output_tokens=6_000)), RESPOND)
    (row,) = wait_answers(sandbox, call_id, 1)
    assert row["usage"]["output_tokens"] == 6_000
    hang_up(fresh, call_id)
    fresh.wait_balance(10_000_000 - charge_of(row["usage"]))


def test_limits_that_there_is_no_money_for_are_set_again(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    poor = new_customer(served(), "1000")
    call_id = call_of(poor, **TEXT)
    play(sandbox, call_id, {"type": "session.update", "session": {"max_output_tokens": "inf"}})
    sent = wait_until(
        lambda: [row for row in session_of(sandbox, call_id) if row["max_output_tokens"] == 4_096], 10, "set again"
    )
    assert sent[-1]["truncation"]["token_limits"]["post_instructions"] == 16_000
    play(sandbox, call_id, says(sandbox_says(output_tokens=6_000)), RESPOND)
    (row,) = wait_answers(sandbox, call_id, 1)
    assert row["usage"]["output_tokens"] == 4_096
    hang_up(poor, call_id)
    poor.wait_balance(1_000_000 - charge_of(row["usage"]))


def session_of(sandbox: Sandbox, call_id: str) -> list[dict[str, Any]]:
    """The session of a call, as the sandbox has it now."""
    return [row["session"] for row in web.get(control(sandbox), timeout=10).json()["calls"] if row["id"] == call_id]


def test_a_response_beyond_what_could_be_held_for_is_stopped(
    served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer], sandbox: Sandbox
) -> None:
    """The browser raises its cap and asks at once: the response has begun before our limits are there again."""
    poor = new_customer(served(), "1000")
    call_id = call_of(poor, **TEXT)
    update = {"type": "session.update", "session": {"max_output_tokens": "inf"}}
    said = sandbox_says(output_tokens=20_000, chunk_interval_ms=2)
    play(sandbox, call_id, says(said), update, RESPOND)
    wait_ended(sandbox, call_id)
    (row,) = wait_answers(sandbox, call_id, 1)
    assert row["usage"]["output_tokens"] < 20_000
    wait_until(lambda: poor.held() == 0, 10, "nothing is held")
    poor.wait_balance(1_000_000 - charge_of(row["usage"]))


def test_a_response_apart_beside_another_is_held_for_and_charged(fresh: Customer, sandbox: Sandbox) -> None:
    call_id = call_of(fresh, **TEXT)
    apart = {"conversation": "none", "input": [says("classify this")["item"]], "output_modalities": ["text"]}
    play(sandbox, call_id, says("hello " * 200), RESPOND)
    wait_answers(sandbox, call_id, 1)
    play(sandbox, call_id, {"type": "response.create", "response": apart})
    rows = wait_answers(sandbox, call_id, 2)
    hang_up(fresh, call_id)
    fresh.wait_balance(10_000_000 - bill(rows))


@pytest.mark.parametrize(
    "session",
    [
        {"prompt": {"id": "pmpt_1"}},
        {"tools": [{"type": "mcp", "server_label": "x", "server_url": "https://x.test"}]},
        {"audio": {"input": {"transcription": {"model": "gpt-of-nobody"}}}},
        {"model": "gpt-realtime-2.1-mini"},
    ],
    ids=["prompt", "tool", "transcriber", "model"],
)
def test_what_is_not_sold_ends_a_call_that_its_browser_turns_to_it(
    fresh: Customer, sandbox: Sandbox, session: dict[str, Any]
) -> None:
    call_id = call_of(fresh)
    play(sandbox, call_id, {"type": "session.update", "session": session})
    wait_ended(sandbox, call_id)
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")


def test_turns_that_the_server_detects_are_held_for_and_charged(fresh: Customer, sandbox: Sandbox) -> None:
    heard = {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": {"type": "server_vad"}}}
    call_id = call_of(fresh, audio=heard)
    play(sandbox, call_id, SPEAK)
    wait_answers(sandbox, call_id, 2)
    play(sandbox, call_id, SPEAK)
    rows = wait_answers(sandbox, call_id, 4)
    hang_up(fresh, call_id)
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")
    fresh.wait_balance(10_000_000 - bill(rows))


# -- ends -------------------------------------------------------------------------------------------


def test_a_browser_that_leaves_ends_its_call_and_pays_for_what_was_said(fresh: Customer, sandbox: Sandbox) -> None:
    call_id = call_of(fresh)
    play(sandbox, call_id, says(sandbox_says(output_tokens=400, chunk_interval_ms=10)), RESPOND)
    wait_until(lambda: any(row["chunksSent"] > 20 for row in spoken(sandbox, call_id)), 10, "it speaks")
    leave(sandbox, call_id)
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")
    (row,) = wait_until(lambda: spoken(sandbox, call_id), 5, "the record")
    charged = 10_000_000 - fresh.balance()
    # counted: nobody said what it was
    assert 0 < charged < charge_of(row["usage"]) * 2


def spoken(sandbox: Sandbox, call_id: str) -> list[dict[str, Any]]:
    return [row for row in sandbox.record() if row.get("callId") == call_id and row["method"] == "WS"]


def test_hanging_up_in_the_middle_of_an_answer_charges_its_usage(fresh: Customer, sandbox: Sandbox) -> None:
    call_id = call_of(fresh)
    play(sandbox, call_id, says(sandbox_says(output_tokens=2_000, chunk_interval_ms=10)), RESPOND)
    wait_until(lambda: any(row["chunksSent"] > 20 for row in spoken(sandbox, call_id)), 10, "it speaks")
    assert hang_up(fresh, call_id).status_code == 200
    (row,) = wait_answers(sandbox, call_id, 1)
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")
    fresh.wait_balance(10_000_000 - charge_of(row["usage"]))


def test_a_sideband_that_breaks_off_hangs_up(fresh: Customer, sandbox: Sandbox) -> None:
    call_id = call_of(fresh, **TEXT)
    said = sandbox_says(output_tokens=500, chunk_interval_ms=5, cut={"after_chunks": 10})
    play(sandbox, call_id, says(said), RESPOND)
    wait_ended(sandbox, call_id)
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")


def test_a_server_that_stops_hangs_up_and_settles(make_tollkeeper: Callable[..., Tollkeeper], sandbox: Sandbox) -> None:
    server = make_tollkeeper().start()
    account = server.account("10000")
    account.wait_balance(10_000_000)
    call_id = call_of(account)
    play(sandbox, call_id, says(sandbox_says(output_tokens=2_000, chunk_interval_ms=10)), RESPOND)
    wait_until(lambda: any(row["chunksSent"] > 20 for row in spoken(sandbox, call_id)), 10, "it speaks")
    assert server.stop() == 0
    assert not calls(sandbox)[call_id]["running"]
    (row,) = answers(sandbox, call_id)
    server.start()
    assert account.held() == 0
    account.wait_balance(10_000_000 - charge_of(row["usage"]))


# -- who --------------------------------------------------------------------------------------------


def test_a_strangers_call_is_a_404(fresh: Customer, new_customer: Callable[..., Customer], sandbox: Sandbox) -> None:
    call_id = call_of(fresh)
    stranger = new_customer(fresh.server, "10")
    refused, never = hang_up(stranger, call_id), hang_up(stranger, "rtc_never_was")
    assert refused.status_code == never.status_code == 404
    assert refused.json() == never.json()
    assert calls(sandbox)[call_id]["running"]
    hang_up(fresh, call_id)


@pytest.mark.parametrize("secret", ["ek_forged", "ek_" + "A" * 43])
def test_a_forged_secret_is_a_401(fresh: Customer, secret: str) -> None:
    answer = open_call(fresh.server, secret)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_secret_opens_nothing_but_calls(fresh: Customer) -> None:
    headers = {"Authorization": f"Bearer {secret_of(fresh)}"}
    for path, body in (("/chat/completions", fresh.body()), ("/realtime/client_secrets", {})):
        answer = web.post(fresh.server.v1 + path, json=body, headers=headers, timeout=10)
        assert answer.status_code == 401, path


def test_a_revoked_key_ends_its_secrets_and_its_calls(embedded: Tollkeeper, sandbox: Sandbox) -> None:
    account = embedded.account("10000")
    account.wait_balance(10_000_000)
    secret = secret_of(account)
    call_id = open_call(embedded, secret).headers["location"].rpartition("/")[2]
    (key,) = embedded.cli("key", "list", account.account_id)["data"]
    embedded.cli("key", "revoke", key["keyId"])
    wait_ended(sandbox, call_id)
    wait_until(lambda: open_call(embedded, secret).status_code == 401, 10, "the secret is no good any more")


def test_a_page_of_any_origin_may_open_a_call(fresh: Customer, sandbox: Sandbox) -> None:
    asked = {
        "Origin": "https://app.test",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    allowed = web.request("OPTIONS", f"{fresh.server.v1}/realtime/calls", headers=asked, timeout=10)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "*"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    opened = open_call(fresh.server, secret_of(fresh), Origin="https://app.test")
    assert opened.headers["access-control-allow-origin"] == "*"
    assert "location" in opened.headers["access-control-expose-headers"]
    hang_up(fresh, opened.headers["location"].rpartition("/")[2])


@pytest.fixture(autouse=True)
def _no_call_is_left(sandbox: Sandbox) -> Iterator[None]:
    yield
    sandbox.settings(sideband_status=0, directive={})


def test_the_sdk_makes_secrets_opens_calls_and_hangs_up(fresh: Customer, sandbox: Sandbox) -> None:
    client = OpenAI(base_url=fresh.server.v1, api_key=fresh.api_key, max_retries=0)
    secret = client.realtime.client_secrets.create(
        expires_after={"anchor": "created_at", "seconds": 60}, session={"type": "realtime", "model": VOICE}
    )
    assert isinstance(secret.session, RealtimeSessionCreateResponse)
    assert (secret.session.model, secret.session.object) == (VOICE, "realtime.session")
    assert 50 < secret.expires_at - time.time() <= 60
    opened = client.realtime.calls.create(sdp=OFFER, session={"type": "realtime", "model": VOICE})
    assert opened.text.startswith("v=0")
    call_id = opened.response.headers["location"].rpartition("/")[2]
    client.realtime.calls.hangup(call_id)
    assert not calls(sandbox)[call_id]["running"]
    with pytest.raises(PermissionDeniedError, match="telephone"):
        client.realtime.calls.accept(call_id, type="realtime")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"session": "x"}, "session"),
        ({"session": {"type": "realtime", "model": VOICE}, "expires_after": {"seconds": 9}}, "expires_after.seconds"),
        (
            {"session": {"type": "realtime", "model": VOICE}, "expires_after": {"seconds": 7_201}},
            "expires_after.seconds",
        ),
        ({"session": {"type": "realtime", "model": VOICE}, "expires_after": {"anchor": "later"}}, "expires_after"),
        ({"session": {"type": "realtime", "model": VOICE}, "scope": "all"}, "scope"),
    ],
    ids=str,
)
def test_a_secret_that_cannot_be_made_says_why(fresh: Customer, body: dict[str, Any], param: str) -> None:
    assert make_secret(fresh, 400, **body)["error"]["param"] == param


@pytest.mark.parametrize("body", [{}, {"session": {"type": "realtime", "instructions": "Be brief."}}], ids=str)
def test_a_secret_without_a_model_leaves_it_to_the_call(
    fresh: Customer, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    made = make_secret(fresh, **body)
    assert "model" not in made["session"]
    unnamed = open_call(fresh.server, made["value"])
    assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "model")
    unknown = open_call(fresh.server, made["value"], query="?model=gpt-of-nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert fresh.held() == 0
    opened = open_call(fresh.server, made["value"], query=f"?model={VOICE}")
    assert opened.status_code == 201, opened.text
    (session,) = session_of(sandbox, opened.headers["location"].rpartition("/")[2])
    assert (session["model"], session["max_output_tokens"]) == (VOICE, 4_096)
    assert fresh.held() > 0
    hang_up(fresh, opened.headers["location"].rpartition("/")[2])


def test_a_secret_fixes_its_session(fresh: Customer) -> None:
    secret = secret_of(fresh)
    fields = {"sdp": (None, OFFER), "session": (None, json.dumps({"type": "realtime", "model": VOICE}))}
    headers = {"Authorization": f"Bearer {secret}"}
    form = web.post(f"{fresh.server.v1}/realtime/calls", files=fields, headers=headers, timeout=20)
    other = open_call(fresh.server, secret, query="?model=gpt-realtime-2.1-mini")
    assert (form.status_code, other.status_code) == (400, 400)
    assert fresh.held() == 0
