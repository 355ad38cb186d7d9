"""Health as answers tell it: what opens a circuit, what gives a model a rest, and for how long."""

import time
from email.utils import formatdate
from typing import Any

import pytest

from config.secrets import Secret
from config.settings import Upstream, UpstreamEntry
from proxy.gateway.answers.redact import ResponseRedactor
from proxy.gateway.upstream.connection import Head
from proxy.gateway.upstream.judgement import failure_in, judge, rest_of_limits, retry_after
from proxy.gateway.upstream.member import Member

MODEL = "gpt-4o"
REDACTOR = ResponseRedactor(())


def head(status: int = 429, **headers: str) -> Head:
    return Head(status, [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()])


async def member() -> Member:
    found = Member(Upstream(), UpstreamEntry(name="a", base_url="http://x/v1"), Secret("k"), "test")
    await found.pool.close()
    return found


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b'{"error": {"code": "invalid_api_key", "message": "Incorrect API key"}}', "key"),
        (429, b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}', "quota"),
        (429, b'{"error": {"code": "rate_limit_exceeded", "message": "Rate limit reached"}}', "rate_limit"),
        (429, b"slow down", "rate_limit"),
        (503, b"<html>", "status_5xx"),
        (404, b'{"error": {"code": "DeploymentNotFound", "message": "none"}}', "model_missing"),
        (404, b'{"error": {"code": "model_not_found", "message": "none"}}', "model_missing"),
        (400, b'{"error": {"code": "invalid_value", "message": "The prompt is odd", "param": "messages"}}', ""),
        (404, b'{"error": {"code": "response_not_found", "message": "none", "param": "id"}}', ""),
    ],
)
def test_an_error_is_the_upstreams_or_the_requests(status: int, body: bytes, reason: str) -> None:
    assert failure_in(status, body, REDACTOR) == reason


def test_a_wait_is_said_in_milliseconds_seconds_or_by_a_date() -> None:
    assert retry_after(head(retry_after_ms="1500", retry_after="9")) == 1.5
    assert retry_after(head(retry_after="9")) == 9
    assert 25 < retry_after(head(retry_after=formatdate(time.time() + 30, usegmt=True))) <= 30
    for odd in ("", "soon", "-3", "nan", formatdate(time.time() - 30, usegmt=True)):
        assert retry_after(head(retry_after=odd)) == 0, odd


def test_a_limit_that_is_used_up_rests_until_its_reset() -> None:
    used_up: dict[str, str] = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1m2.5s"}
    assert rest_of_limits(head(**used_up)) == 62.5
    assert rest_of_limits(head(**used_up | {"x_ratelimit_remaining_requests": "1"})) == 0
    tokens = {"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "300ms"}
    assert rest_of_limits(head(**tokens)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("headers", "rests"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "20s"}, 20.0),
        ({}, 2.0),
    ],
)
async def test_a_rate_limit_rests_its_model_for_as_long_as_its_headers_say(headers: Any, rests: float) -> None:
    one = await member()
    judge(one, head(**headers), "rate_limit", MODEL, 100.0)
    assert one.circuit.rests(MODEL, 100.0 + rests - 0.1)
    assert not one.circuit.rests(MODEL, 100.0 + rests)
    assert one.circuit.reason == ""


async def test_a_refusal_of_our_key_opens_the_circuit_and_an_error_of_the_requests_is_an_answer() -> None:
    one = await member()
    judge(one, head(401), "key", MODEL, 100.0)
    assert one.circuit.reason == "key"
    judge(one, head(400), "", MODEL, 101.0)
    assert one.circuit.reason == ""
