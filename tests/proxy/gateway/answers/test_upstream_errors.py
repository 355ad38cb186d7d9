"""Upstream errors keep their reason in any shape; what is about our own account is the operator's to know."""

import json
from typing import Any

import pytest

from proxy.gateway.answers.account_problems import ACCOUNT_CODES, ACCOUNT_WORDS, PASSED_REASONS
from proxy.gateway.answers.events import RESPONSE_EVENTS, EventMeter
from proxy.gateway.answers.identity import redact_names
from proxy.gateway.answers.meter import StreamMeter
from proxy.gateway.answers.upstream_errors import (
    UpstreamFailure,
    error_in_answer,
    masked,
    masked_body,
    read_failure,
)
from proxy.observability.log import ACCOUNT_WORDS as TOLD
from proxy.observability.metrics import ACCOUNT_REASONS


def failure(status: int, body: bytes | dict[str, Any] | list[Any] | str) -> UpstreamFailure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_failure(status, raw, redact_names)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error": {"message": "m"}}', None),
        (429, b'{"error": {"code": "rate_limit_exceeded"}}', None),
        (401, b'{"error": {"message": "m"}}', "upstream_authentication_failed"),
        (429, b'{"error": {"code": "insufficient_quota"}}', "insufficient_quota"),
        (500, b"<html>", "upstream_error"),
        (500, b"", "upstream_error"),
        (500, b"[]", "upstream_error"),
        (500, b'{"error": "text"}', "upstream_error"),
        (500, b"\xff\xfe", "upstream_error"),
    ],
)
def test_which_upstream_errors_are_replaced_by_our_own_words(status: int, body: bytes, code: str | None) -> None:
    own = failure(status, body).rejection
    assert (own and (own.status, own.code)) == (code and (status, code))


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "Not Found"}, "Not Found."),
        (
            {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]},
            "body.model: Field required.",
        ),
        ({"message": "No such route!", "code": 5, "details": []}, "No such route!"),
        ({"error": "model overloaded"}, "model overloaded."),
        ({"error": "invalid_request", "error_description": "The scope is wrong."}, "The scope is wrong."),
        ({"errors": ["one", "two"]}, "one; two."),
        ({"errors": [{"title": "Bad", "detail": "Too long"}]}, "Too long."),
        ({"errors": {"model": ["is required"]}}, "model: is required."),
        ({"error": {"detail": "deeper"}}, "deeper."),
        ({"error": {"message": {"text": 1}, "reason": "odd"}}, "odd."),
        ([{"error": {"message": "a list"}}], "a list."),
        ("just text", "just text."),
        ({"object": "error", "message": "max_tokens too large", "code": 40303}, "max_tokens too large."),
        ({"type": "about:blank", "title": "Gone", "status": 1, "detail": "Moved away"}, "Moved away."),
        (b"plain text\r\n\r\nof  a server\x00", "plain text of a server."),
        (b"\xef\xbb\xbf" + b'{"detail": "with a mark"}', "with a mark."),
        (b'data: {"detail": "in an event"}\n\n', "in an event."),
    ],
    ids=str,
)
def test_an_error_of_any_shape_keeps_its_reason(status: int, body: Any, words: str) -> None:
    own = failure(status, body).rejection
    assert own is not None
    assert (own.status, own.code) == (status, "upstream_error")
    assert f": {words} Nothing was charged" in own.message
    assert ("try again" in own.message) == (status >= 500)


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html><html><body><h1>404</h1></body></html>",
        b"Oops <br> not found",
        b"<?xml version='1.0'?><Error/>",
        b"",
        b"{}",
        b"[1]",
        b"null",
        b'{"error": {"mess',
        b"\xff\xfe\x00",
        b'{"detail": "<html>no</html>"}',
        b'{"status": 404}',
        b'{"error": {}}',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_says_nothing_readable_is_told_by_its_status(body: bytes) -> None:
    own = failure(404, body).rejection
    assert own is not None
    assert own.message == "The upstream refused this request (status 404). Nothing was charged."


def test_a_long_reason_is_shortened_after_secrets_are_taken_out_of_it() -> None:
    secret = "sk-proj-abcdefghij0123456789"
    own = failure(400, {"detail": "x" * 280 + f" {secret} Bearer abcdef0123456789 " + "y" * 900}).rejection
    assert own is not None
    assert len(own.message) < 400
    assert "abcd" not in own.message
    assert "…" in own.message


ACCOUNT_ERRORS = [
    (400, {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}, "billing"),
    (400, {"message": "Billing hard limit has been reached", "type": "invalid_request_error", "code": None}, "billing"),
    (429, {"message": "You exceeded your current quota, please check your plan.", "code": None}, "quota"),
    (403, {"message": "Out of it", "type": "insufficient_quota"}, "quota"),
    (403, {"message": "Your project has reached its monthly spend limit.", "code": None}, "billing"),
    (
        429,
        {"message": "Your account is not active, please check your billing details.", "code": "billing_not_active"},
        "billing",
    ),
    (429, {"message": "Your account is not active, please check your billing details."}, "billing"),
    (
        401,
        {
            "message": "The OpenAI account associated with this API key has been deactivated.",
            "code": "account_deactivated",
        },
        "deactivated",
    ),
    (403, {"message": "Your access was terminated due to violation of our policies."}, "deactivated"),
    (401, {"message": "No such organization: org-abc.", "code": "invalid_organization"}, "organization"),
    (
        401,
        {
            "message": "OpenAI-Organization header should match organization for API key",
            "code": "mismatched_organization",
        },
        "organization",
    ),
    (401, {"message": "You must be a member of an organization to use the API."}, "organization"),
    (
        403,
        {"message": "Country, region, or territory not supported", "code": "unsupported_country_region_territory"},
        "region",
    ),
    (400, {"message": "Country, region, or territory not supported"}, "region"),
    (401, {"message": "Your IP address 1.2.3.4 is not authorized.", "code": "ip_not_authorized"}, "address"),
    (
        403,
        {"message": "You have insufficient permissions for this operation. Missing scopes: model.request."},
        "access",
    ),
    (403, {"message": "Project `proj_abc` does not have access to model `o3`", "code": "model_not_found"}, "access"),
    (
        400,
        {
            "message": "Your organization must be verified to generate reasoning summaries.",
            "param": "reasoning.summary",
            "code": "unsupported_value",
        },
        "access",
    ),
    (402, {"message": "Insufficient credits", "code": None}, "quota"),
    (402, {"message": "Payment required"}, "quota"),
    (401, {"message": "Incorrect API key provided: sk-abcd.", "code": "invalid_api_key"}, "key"),
    (500, {"message": "Out of it", "code": "insufficient_quota"}, "quota"),
]


@pytest.mark.parametrize(("status", "error", "reason"), ACCOUNT_ERRORS, ids=str)
def test_what_is_about_our_account_is_masked_and_named(status: int, error: dict[str, Any], reason: str) -> None:
    shapes: list[dict[str, Any]] = [{"error": error}, {"detail": error}, {"errors": [error]}, error]
    for shape in shapes:
        own, account = failure(status, shape)
        assert own is not None
        assert account == reason
        assert own.status == (429 if status == 402 else status)
        assert own.code in {"insufficient_quota", "upstream_authentication_failed", "upstream_account"}
        assert (own.code == "insufficient_quota") == (reason in {"quota", "billing"})
        assert error["message"] not in own.body().decode()
        assert "Contact your provider" in own.message
        assert "try again" not in own.message
        assert (b"x-should-retry", b"false") in own.headers()


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (
            404,
            {"message": "The model `x` does not exist or you do not have access to it.", "code": "model_not_found"},
            "",
        ),
        (400, {"message": "Invalid value: 'your billing hard limit'.", "param": "model", "code": "invalid_value"}, ""),
        (
            429,
            {"message": "Rate limit reached for gpt-4o in organization org-x.", "code": "rate_limit_exceeded"},
            "rate_limit",
        ),
        (429, {"message": "You have exceeded your rate limit.", "code": "rate_limit_exceeded"}, "rate_limit"),
        (403, {"message": "This is not allowed.", "code": None}, "forbidden"),
        (403, {"message": "This is not allowed.", "param": "voice"}, ""),
        (400, {"message": "The response was filtered.", "code": "content_policy_violation"}, ""),
    ],
    ids=str,
)
def test_what_is_about_the_request_passes_as_it_is(status: int, error: dict[str, Any], reason: str) -> None:
    assert failure(status, {"error": error}) == UpstreamFailure(None, reason)


def test_a_reason_that_the_operator_is_told_is_a_word_of_the_metric() -> None:
    reasons = {*ACCOUNT_CODES.values(), *(reason for reason, _ in ACCOUNT_WORDS), *PASSED_REASONS}
    assert reasons == set(ACCOUNT_REASONS) == set(TOLD)


HARD_LIMIT = {
    "message": "Billing hard limit has been reached",
    "type": "invalid_request_error",
    "code": "billing_hard_limit_reached",
}


@pytest.mark.parametrize(
    "payload",
    [
        {"error": HARD_LIMIT},
        {"type": "error", **{name: value for name, value in HARD_LIMIT.items() if name != "type"}},
        {"type": "error", "event_id": "e", "error": HARD_LIMIT},
        {"type": "response.failed", "response": {"status": "failed", "error": HARD_LIMIT}},
        {"type": "response.done", "response": {"status": "failed", "status_details": {"error": HARD_LIMIT}}},
        {"object": "response", "status": "failed", "error": HARD_LIMIT, "output": []},
    ],
    ids=str,
)
def test_an_error_inside_an_answer_is_masked_where_it_stands(payload: dict[str, Any]) -> None:
    account, shown = masked(json.loads(json.dumps(payload)))
    assert account == "billing"
    text = json.dumps(shown)
    assert "illing" not in text
    assert '"insufficient_quota"' in text
    assert text.count('"type": "error"') == json.dumps(payload).count('"type": "error"')


def test_an_error_inside_an_answer_that_is_about_the_request_stays_as_it_is() -> None:
    payload = {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "sorry"}}}
    assert masked(payload) == ("", None)
    named = {"error": {"message": "Bad org-abcdef.", "code": None}}
    assert masked(named) == ("", {"error": {"message": "Bad org-***.", "code": None}})


def test_a_whole_answer_with_such_an_error_in_it_is_masked() -> None:
    body = json.dumps({"id": "r", "status": "failed", "error": HARD_LIMIT, "output": []}).encode()
    account, shown = masked_body(body)
    assert (account, json.loads(shown)["error"]["code"]) == ("billing", "insufficient_quota")
    plain = b'{"error" : null, "output": ["\\"error\\": {"]}'
    assert masked_body(plain) == ("", plain)


def test_a_200_that_is_such_an_error_is_a_502_in_our_words() -> None:
    account, own = error_in_answer(json.dumps({"error": HARD_LIMIT}).encode())
    assert (account, own.status, own.code) == ("billing", 502, "insufficient_quota")
    for body, words in (
        (b'{"error": "went wrong"}', "an error: went wrong. Nothing"),
        (b'{"error": {"message": "no luck"}}', "an error: no luck. Nothing"),
        (b"", "no answer. Nothing"),
    ):
        account, own = error_in_answer(body)
        assert (account, own.code) == ("", "upstream_error")
        assert words in own.message


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_error_events_of_streams_are_masked_however_they_are_cut(size: int) -> None:
    chat = b'data: {"choices":[]}\n\n' + b"data: " + json.dumps({"error": HARD_LIMIT}).encode() + b"\n\n"
    failed = {"type": "response.failed", "response": {"id": "r", "status": "failed", "error": HARD_LIMIT, "output": []}}
    typed = b"event: response.failed\ndata: " + json.dumps(failed).encode() + b"\n\n"
    bare = b"event: error\ndata: " + json.dumps({"error": HARD_LIMIT}).encode() + b"\r\n\r\n"
    for meter, stream in (
        (StreamMeter(hide_usage=False), chat),
        (EventMeter(RESPONSE_EVENTS, 1), typed),
        (EventMeter(RESPONSE_EVENTS, 1), bare),
    ):
        passed = b"".join(meter.feed(stream[at : at + size]) for at in range(0, len(stream), size))
        meter.end()
        passed += b"".join(meter.tail) + meter.rest()
        assert (meter.account, meter.failed) == ("billing", True)
        assert b"illing" not in passed
        assert passed.count(b"insufficient_quota") == 1
        assert passed.startswith(stream[: stream.index(b"data:")])


def test_an_error_event_about_the_request_passes_byte_for_byte() -> None:
    event = b'event: error\r\ndata:{"type":"error","code":"server_error","message":"no"}\r\n\r\n'
    meter = EventMeter(RESPONSE_EVENTS, 1)
    assert meter.feed(event) == event
    assert meter.failed
