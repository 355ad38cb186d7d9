"""Upstream errors pass without our account's identity and cost nothing; our own key is seen nowhere."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.raw_upstream import RawUpstream
from tests.support.served import Customer, metric, wait_log
from tests.support.servers import UPSTREAM_KEY, Serve, Tollkeeper, wait_until
from tests.support.wire import events_of, text_of

CustomerOf = Callable[[Tollkeeper], Customer]

SHOWN_HEADERS = {
    *("date", "content-type", "content-length", "transfer-encoding", "connection", "cache-control", "x-request-id"),
    *("openai-processing-ms", "openai-version", "retry-after", "retry-after-ms", "x-should-retry"),
    *("x-credits-held", "x-credits-charged", "x-credits-remaining"),
}
IDENTITY = (
    "canary",
    "org-",
    "proj_",
    "x-ratelimit",
    "set-cookie",
    "cf-",
    "cloudflare",
    "strict-transport",
    "alt-svc",
    UPSTREAM_KEY,
)


def assert_nothing_of_ours(answer: httpx.Response) -> None:
    assert set(answer.headers) <= SHOWN_HEADERS
    raw = (
        b"".join(name + b": " + value + b"\n" for name, value in answer.headers.raw).decode().lower()
        + answer.text.lower()
    )
    assert not [word for word in IDENTITY if word in raw]


def assert_free(customer: Customer, request_id: str) -> None:
    wait_until(lambda: customer.held() == 0, 10, "the hold is released")
    assert customer.transfers(request_id) == {}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("status", "directive", "kind", "code"),
    [
        (400, {}, "invalid_request_error", "invalid_value"),
        (400, {"error": "400_context"}, "invalid_request_error", "context_length_exceeded"),
        (403, {"error": {"message": "Not this.", "type": "x", "param": "voice", "code": None}}, "x", None),
        (404, {}, "invalid_request_error", "model_not_found"),
        (409, {}, "invalid_request_error", None),
        (422, {}, "invalid_request_error", None),
        (429, {}, "tokens", "rate_limit_exceeded"),
        (500, {}, "server_error", None),
        (503, {}, "server_error", None),
        (529, {}, "server_error", None),
    ],
    ids=json.dumps,
)
def test_an_upstream_error_passes_and_costs_nothing(
    customer: Customer, status: int, directive: dict[str, Any], kind: str, code: str | None, stream: bool
) -> None:
    before = customer.balance()
    hints = {"retry-after": "7", "retry-after-ms": "7000", "x-should-retry": "true"}
    answer = customer.post(
        customer.body({"status": status, **directive, "headers": hints}, max_tokens=50, stream=stream)
    )
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, code)
    assert {name: answer.headers[name] for name in hints} == hints
    assert customer.served(answer.headers["x-request-id"])["status"] == status
    assert_nothing_of_ours(answer)
    assert_free(customer, answer.headers["x-request-id"])
    assert customer.balance() == before


HARD_LIMIT = {
    "message": "Billing hard limit has been reached",
    "type": "invalid_request_error",
    "param": None,
    "code": "billing_hard_limit_reached",
}


@pytest.mark.parametrize(
    ("status", "directive", "code"),
    [
        (401, {}, "upstream_authentication_failed"),
        (403, {}, "upstream_account"),
        (429, {"error": "429_quota"}, "insufficient_quota"),
        (400, {"error": HARD_LIMIT}, "insufficient_quota"),
        (502, {}, "upstream_error"),
        (504, {}, "upstream_error"),
        (520, {}, "upstream_error"),
        (503, {"body_raw": ""}, "upstream_error"),
        (500, {"body_raw": "{}", "headers": {"content-type": "application/json"}}, "upstream_error"),
        (500, {"body_raw": "[1]", "headers": {"content-type": "application/json"}}, "upstream_error"),
        (500, {"body_raw": '{"error": "no"}', "headers": {"content-type": "application/json"}}, "upstream_error"),
        (500, {"body_raw": '{"error": {"mess', "headers": {"content-type": "application/json"}}, "upstream_error"),
    ],
    ids=json.dumps,
)
def test_what_must_not_or_cannot_be_passed_is_said_in_our_own_words(
    customer: Customer, status: int, directive: dict[str, Any], code: str
) -> None:
    hints = {"retry-after": "7", **directive.get("headers", {})}
    answer = customer.post(customer.body({"status": status, **directive, "headers": hints}, max_tokens=50))
    assert (answer.status_code, answer.headers["content-type"], answer.headers["retry-after"]) == (
        status,
        "application/json",
        "7",
    )
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert_nothing_of_ours(answer)
    assert_free(customer, answer.headers["x-request-id"])


def test_what_openai_says_of_our_account_is_counted_logged_and_never_shown(
    served: Serve, customer_of: CustomerOf
) -> None:
    """By its status, as the only thing in a 200, and in an event of a stream; logged once a minute."""
    customer = customer_of(served(TOLLKEEPER_LISTEN__MAX_CONNECTIONS="99"))  # a server that has logged nothing yet
    server, name = customer.server, "tollkeeper_upstream_account_errors_total"
    before = metric(server, name, reason="billing")
    shown = [
        customer.post(customer.body({"status": 400, "error": HARD_LIMIT}, max_tokens=50)),
        customer.post(customer.body({"body_raw": json.dumps({"error": HARD_LIMIT})}, max_tokens=50)),
        customer.post(customer.body({"error_after_chunks": 1, "error": HARD_LIMIT}, max_tokens=50, stream=True)),
    ]
    assert [answer.status_code for answer in shown] == [400, 502, 200]
    for answer in shown:
        assert "illing" not in answer.text
        assert "insufficient_quota" in answer.text
    wait_until(lambda: metric(server, name, reason="billing") == before + 3, 5, "each is counted")
    line = json.loads(wait_log(server, '"upstream_account_refused"'))
    assert (line["reason"], line["upstream_status"], line["level"]) == ("billing", 400, "error")
    assert line["request_id"] == shown[0].headers["x-request-id"]


def test_an_error_in_another_shape_keeps_its_reason(customer: Customer) -> None:
    for body, words in (
        ({"detail": f"No model for key {UPSTREAM_KEY}"}, "No model for key ***."),
        ("a plain text", "a plain text."),
    ):
        raw = body if isinstance(body, str) else json.dumps(body)
        answer = customer.post(customer.body({"status": 404, "body_raw": raw}, max_tokens=50))
        message = answer.json()["error"]["message"]
        assert message == f"The upstream refused this request (status 404): {words} Nothing was charged."
        assert_nothing_of_ours(answer)


@pytest.mark.parametrize(
    ("reply", "status", "location"),
    [
        (
            b"HTTP/1.1 307 Temporary Redirect\r\nlocation: https://a:b@up.example/v1/v1/x?key=secret\r\n",
            307,
            "https://up.example/v1/v1/x",
        ),
        (b"HTTP/1.1 301 Moved\r\nlocation: /other/path#secret\r\ncontent-type: text/html\r\n", 301, "/other/path"),
        (b"HTTP/1.1 304 Not Modified\r\n", 304, ""),
        (b"HTTP/1.1 202 Accepted\r\n", 202, ""),
        (b"HTTP/1.1 204 No Content\r\n", 204, ""),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n", 101, ""),
        (b"HTTP/1.1 101 Switching Protocols\r\n", 101, ""),
        (b"HTTP/1.1 200 OK\r\n", 200, ""),
    ],
)
def test_what_is_no_answer_is_a_502_and_the_log_says_where_it_points(
    served: Serve, customer_of: CustomerOf, raw_upstream: RawUpstream, reply: bytes, status: int, location: str
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=raw_upstream.url))
    raw_upstream.reply = reply + b"content-length: 0\r\n\r\n"
    answer = customer.post(customer.body(max_tokens=50))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "upstream_error" if status == 200 else "upstream_unexpected")
    assert str(status) in error["message"] or status == 200
    request_id = answer.headers["x-request-id"]
    wait_log(customer.server, '"upstream_unexpected"')
    (line,) = wait_until(
        lambda: [
            line
            for line in map(json.loads, filter(lambda line: request_id in line, customer.server.log().splitlines()))
            if line["event"] == "upstream_unexpected"
        ],
        5,
        "its line",
    )
    assert (line["upstream_status"], line["location"]) == (status, location)
    assert_free(customer, request_id)


def test_our_own_bad_key_is_not_blamed_on_the_customer(customer: Customer) -> None:
    answer = customer.post(customer.body({"status": 401}, max_tokens=50))
    assert "your API key is fine" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] != "invalid_api_key"


def test_ids_and_keys_inside_an_error_message_are_masked(customer: Customer) -> None:
    message = f"Rate limit reached for gpt-4o in organization org-canaryAbC123 on project proj_canary9 with key {UPSTREAM_KEY} or sk-proj-****abcd."
    error = {"message": message, "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    answer = customer.post(customer.body({"status": 429, "error": error}, max_tokens=50))
    shown = answer.json()["error"]["message"]
    assert shown.startswith("Rate limit reached for gpt-4o in organization ")
    assert not [secret for secret in ("canary", "abcd", "7f3a91c2", UPSTREAM_KEY) if secret in shown]


def test_an_error_event_does_not_show_the_key(customer: Customer) -> None:
    error = {"message": f"Bad key {UPSTREAM_KEY}.", "type": "server_error", "param": None, "code": None}
    with customer.stream(customer.body({"error_after_chunks": 2, "error": error}, max_tokens=50)) as wire:
        data = wire.read_all().data
    assert events_of(data)[-1]["error"]["type"] == "server_error"
    assert UPSTREAM_KEY.encode() not in data


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_good_answer_carries_nothing_of_our_account_either(customer: Customer, stream: bool) -> None:
    answer = customer.post(customer.body(max_tokens=5, stream=stream))
    assert answer.status_code == 200
    assert_nothing_of_ours(answer)
    assert answer.headers["openai-version"] == "2020-10-01"


def test_the_customers_headers_stay_here_and_ours_go_upstream(customer: Customer) -> None:
    mine = {
        "OpenAI_Organization": "org-mine",
        "OpenAI_Project": "proj_mine",
        "Cookie": "a=b",
        "X_Forwarded_For": "1.2.3.4",
        "OpenAI_Beta": "x",
    }
    answer = customer.post(customer.body(max_tokens=5), **mine)
    sent = customer.served(answer.headers["x-request-id"])["requestHeaders"]
    assert set(sent) == {
        *(
            "host",
            "authorization",
            "user-agent",
            "accept",
            "accept-encoding",
            "content-type",
            "content-length",
            "x-client-request-id",
        )
    }
    assert sent["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert sent["x-client-request-id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["json", "stream", "error"])
def test_the_upstream_key_is_seen_nowhere_even_when_the_upstream_echoes_it(customer: Customer, path: str) -> None:
    if path == "error":
        answer = customer.post(customer.body({"status": 400, "body_raw": f"<h1>{UPSTREAM_KEY}</h1>"}, max_tokens=50))
        assert answer.status_code == 400
    else:
        answer = customer.post(customer.body({"echo": True}, max_tokens=4000, stream=path == "stream"))
        assert answer.status_code == 200
    request_id = answer.headers["x-request-id"]
    if path != "error":
        assert UPSTREAM_KEY in customer.finished(request_id)["textSent"]  # the upstream did say it
    everything = [answer.text, str(answer.headers.raw)]
    wait_log(customer.server, request_id)
    for page in (
        "/metrics",
        "/readyz",
        "/api/billing/me",
        "/api/billing/usage",
        f"/api/billing/generations/{request_id}",
    ):
        everything.append(web.get(customer.server.url + page, headers=customer.headers, timeout=10).text)
    everything.append(customer.server.log())
    for file in sorted((customer.server.folder / "var").glob("*")):
        everything.append(file.read_bytes().decode("latin-1"))
    assert not [text[:200] for text in everything if UPSTREAM_KEY in text]
    if path == "json":
        assert "Bearer ***" in answer.json()["choices"][0]["message"]["content"]
    if path == "stream":
        assert text_of(answer.content).startswith('{"headers":')


# -- malformed HTTP -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def raw_upstream() -> Iterator[RawUpstream]:
    upstream = RawUpstream()
    yield upstream
    upstream.close()


BODY = b'{"id":"x","object":"chat.completion","model":"gpt-4o-mini","choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"\x00\x01\x02\x03 not http at all\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"content-length: -5\r\n\r\n{}",
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        OK + b"transfer-encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        OK + b"bad header line without colon\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"x-long: " + b"a" * 400_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 600 Odd\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        OK + b"content-length: 500\r\n\r\n" + BODY,
        OK + b'transfer-encoding: chunked\r\n\r\n5\r\n{"id"\r\n',
        b"",
    ],
    ids=lambda reply: repr(reply.removeprefix(OK)[:60]),
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_malformed_http_is_a_502_that_costs_nothing(
    served: Serve, customer_of: CustomerOf, raw_upstream: RawUpstream, reply: bytes, stream: bool
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=raw_upstream.url))
    raw_upstream.reply = reply
    answer = customer.post(customer.body(max_tokens=50, stream=stream))
    assert answer.status_code == 502
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert_free(customer, answer.headers["x-request-id"])


def test_a_second_answer_nobody_asked_for_is_never_mixed_into_the_first(
    served: Serve, customer_of: CustomerOf, raw_upstream: RawUpstream
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=raw_upstream.url))
    first = OK + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    raw_upstream.reply = first + OK + b"content-length: 6\r\n\r\nsecret"
    for _ in range(2):
        answer = customer.post(customer.body(max_tokens=50))
        assert (answer.status_code, answer.content) in ((200, BODY), (502, answer.content))
        assert b"secret" not in answer.content


def test_a_stream_that_turns_malformed_never_ends_cleanly(
    served: Serve, customer_of: CustomerOf, raw_upstream: RawUpstream
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=raw_upstream.url))
    event = b'data: {"id":"x","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    raw_upstream.reply = head + b"%x\r\n" % len(event) + event + b"\r\nZZZ\r\n"
    with customer.stream(customer.body(max_tokens=50)) as wire:
        ended = wire.read_all()
        assert ended.data.startswith(event)
        assert not ended.clean or events_of(ended.data)[-1]["error"]["code"] == "upstream_cut"
        record = customer.generation(wire.request_id)
    # `hello` is 8 tokens, `hi` is one: gpt-4o-mini 8 x 0.15 + 0.6 = 1.8
    assert (record["usageSource"], record["outcome"], record["chargedMillicredits"]) == ("counted", "upstream_cut", "2")
