"""Every refusal is an OpenAI-shaped error; a 402 says the same on both levels."""

import json

import pytest

from proxy.web.rejections import (
    KeyLimit,
    Rejection,
    bad_gateway,
    forbidden,
    insufficient_credits,
    invalid,
    not_found,
    too_many,
    unauthorized,
    unavailable,
)

ALL = [
    invalid("m", "n"),
    unauthorized("m"),
    unauthorized("m", "key_expired"),
    forbidden("m", "c"),
    not_found("m", "c"),
    too_many("m", "c", 1500),
    unavailable("m", "c"),
    bad_gateway("m", "c"),
    insufficient_credits("balance", 1, 0, 0, None, "/credits", None),
]


@pytest.mark.parametrize("rejection", ALL, ids=lambda rejection: f"{rejection.status}-{rejection.code}")
def test_the_shape_is_openais(rejection: Rejection) -> None:
    error = json.loads(rejection.body())["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert isinstance(error["message"], str)
    assert 400 <= rejection.status < 600


@pytest.mark.parametrize(("milliseconds", "seconds"), [(1, "1"), (1000, "1"), (1001, "2"), (59_999, "60")])
def test_retry_after_is_whole_seconds_rounded_up(milliseconds: int, seconds: str) -> None:
    headers = dict(too_many("m", "c", milliseconds).headers())
    assert headers == {b"retry-after": seconds.encode(), b"retry-after-ms": str(milliseconds).encode()}


def test_a_rate_limit_never_says_to_retry_at_once() -> None:
    assert dict(too_many("m", "c", 0).headers())[b"retry-after"] == b"1"


@pytest.mark.parametrize("status", [402, 403])
def test_what_no_retry_can_help_says_so(status: int) -> None:
    assert (b"x-should-retry", b"false") in Rejection(status, "c", "m").headers()


def test_what_a_retry_may_help_does_not_forbid_it() -> None:
    for rejection in (too_many("m", "c", 1), unavailable("m", "c"), bad_gateway("m", "c")):
        assert b"x-should-retry" not in dict(rejection.headers())


def test_a_402_word_for_word() -> None:
    rejection = insufficient_credits("in_flight", 42_500, 10_000, 7_500, 310, "https://x/credits", 1_000)
    figures = {
        "requiredCredits": 42.5,
        "currentCredits": 10,
        "heldCredits": 7.5,
        "availableCredits": 2.5,
        "limitSource": "in_flight",
        "affordableOutputTokens": 310,
        "topUpUrl": "https://x/credits",
    }
    body = json.loads(rejection.body())
    message = body["error"].pop("message")
    assert body == {
        "error": {"type": "insufficient_credits", "param": None, "code": "insufficient_credits", **figures},
        **figures,
    }
    assert message == (
        "This request needs up to 42.5 credits. You have 10, but 7.5 are held by requests in flight: retry when they "
        "finish, or top up. With what is available, up to 310 output tokens are affordable: set a lower maximum. "
        "Top up: https://x/credits"
    )
    assert dict(rejection.headers()) == {b"retry-after": b"1", b"retry-after-ms": b"1000", b"x-should-retry": b"false"}


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (None, "This request needs up to 42.5 credits and 2.5 are available. Top up: https://x/credits"),
        (
            KeyLimit(1_500, "2026-12-01T00:00:00.000Z"),
            (
                "This request needs up to 42.5 credits; this API key's spend limit leaves 1.5. Use another key or raise the "
                "limit: your provider can do both. It starts anew at 2026-12-01T00:00:00.000Z. The account's credits: https://x/credits"
            ),
        ),
        (
            KeyLimit(-500, None),
            (
                "This request needs up to 42.5 credits; this API key's spend limit leaves 0. Use another key or raise the "
                "limit: your provider can do both. The account's credits: https://x/credits"
            ),
        ),
    ],
)
def test_a_402_names_what_is_in_the_way(limit: KeyLimit | None, message: str) -> None:
    source = "balance" if limit is None else "key_limit"
    rejection = insufficient_credits(source, 42_500, 10_000, 7_500, 0, "https://x/credits", None, limit)
    assert json.loads(rejection.body())["error"]["message"] == message


@pytest.mark.parametrize("url", ["/credits", "", "javascript:alert(1)"])
@pytest.mark.parametrize("source", ["balance", "in_flight", "key_limit"])
def test_a_402_names_no_address_that_nobody_can_follow(url: str, source: str) -> None:
    limit = KeyLimit(0, None) if source == "key_limit" else None
    message = insufficient_credits(source, 42_500, 10_000, 7_500, 7, url, None, limit).message
    assert "://" not in message
    assert message.endswith(".")
    assert not url or url not in message


def test_what_the_upstream_may_be_at_work_on_is_not_asked_for_again() -> None:
    """An SDK obeys x-should-retry before the status: a slow answer is not made three times."""
    assert (b"x-should-retry", b"false") in bad_gateway(
        "slow", "upstream_first_byte_timeout", 504, worked_on=True
    ).headers()
    assert bad_gateway("away", "upstream_connect").headers() == []
