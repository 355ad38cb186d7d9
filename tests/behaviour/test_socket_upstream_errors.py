"""What the upstream says about our own account on a socket: at its handshake, in an error frame, in a response that failed."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from tests.support.served import Customer, metric
from tests.support.servers import Serve, wait_until
from tests.support.sockets import SocketUpstream, create, opened, until

REALTIME = "/realtime?model=gpt-realtime-2.1"
HARD_LIMIT = {
    "message": "Billing hard limit has been reached",
    "type": "invalid_request_error",
    "code": "billing_hard_limit_reached",
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[SocketUpstream]:
    upstream = SocketUpstream()
    yield upstream
    upstream.close()


@pytest.fixture
def customer(served: Serve, customer_of: Callable[..., Customer], upstream: SocketUpstream) -> Customer:
    upstream.refusal, upstream.frames = None, []
    upstream.heads.clear()
    return customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url))


def refusal(status: int, body: bytes, **headers: str) -> Response:
    return Response(status, "No", Headers({"content-length": str(len(body)), **headers}), body)


REFUSALS = pytest.mark.parametrize(
    ("status", "body", "expected", "code", "words"),
    [
        (
            401,
            {"error": {"message": "Incorrect API key provided: sk-abcdef"}},
            401,
            "upstream_authentication_failed",
            "your API key is fine",
        ),
        (429, {"error": HARD_LIMIT}, 429, "insufficient_quota", "your credits are fine"),
        (
            403,
            {"error": {"message": "Country, region, or territory not supported"}},
            403,
            "upstream_account",
            "are fine",
        ),
        (404, {"detail": "Not Found"}, 404, "upstream_error", "Not Found."),
        (400, {"error": {"message": "Bad model in org-abcdef.", "code": "x"}}, 400, "x", "Bad model in org-***."),
        (307, None, 502, "upstream_unexpected", "did not open"),
        (503, None, 503, "upstream_error", "status 503"),
    ],
    ids=str,
)


def told(upstream: SocketUpstream, status: int, body: Any) -> None:
    """Let the upstream refuse every handshake so."""
    more = {"location": f"{upstream.url}/elsewhere?key=secret"} if status == 307 else {}
    upstream.refusal = refusal(status, json.dumps(body).encode() if body else b"", **more)


@REFUSALS
def test_a_handshake_that_the_upstream_refuses_is_told_as_over_http(
    customer: Customer, upstream: SocketUpstream, status: int, body: Any, expected: int, code: str, words: str
) -> None:
    told(upstream, status, body)
    with pytest.raises(InvalidStatus) as refused, opened(customer, REALTIME):
        pass
    response = refused.value.response
    error = json.loads(response.body or b"")["error"]
    assert (response.status_code, error["code"]) == (expected, code)
    assert words in error["message"]
    assert "illing" not in error["message"]
    assert len(upstream.heads) == 1  # a redirect is not followed with our key
    if status == 307:
        wait_until(lambda: '"location":"' + upstream.url + '/elsewhere"' in customer.server.log(), 5, "its line")


@REFUSALS
def test_where_the_first_frame_opens_the_upstream_its_refusal_is_an_event_and_nothing_is_held(
    customer: Customer, upstream: SocketUpstream, status: int, body: Any, expected: int, code: str, words: str
) -> None:
    told(upstream, status, body)
    with opened(customer, "/responses") as socket:
        assert upstream.heads == []
        for tries in (1, 2):
            socket.send(create("x"))
            event = until(socket, "error")[-1]
            assert (event["status"], event["error"]["code"]) == (expected, code)
            assert words in event["error"]["message"]
            assert "illing" not in event["error"]["message"]
            assert len(upstream.heads) == tries
            wait_until(lambda: customer.held() == 0, 5, "nothing is held")
        upstream.refusal = None
        upstream.frames = [{"type": "response.created", "response": {"id": "resp_1"}}]
        socket.send(create("x"))
        assert until(socket, "response.created", "error")[-1]["type"] == "response.created"


def test_an_error_frame_about_our_account_is_masked_and_counted(customer: Customer, upstream: SocketUpstream) -> None:
    name = "tollkeeper_upstream_account_errors_total"
    before = metric(customer.server, name, reason="billing")
    failed = {
        "id": "resp_1",
        "object": "response",
        "status": "failed",
        "error": HARD_LIMIT,
        "output": [],
        "usage": None,
    }
    for path, sent, frames, kind in (
        ("/responses", create("x"), [{"type": "error", "status": 400, "error": HARD_LIMIT}], "error"),
        (
            "/responses",
            create("x"),
            [
                {"type": "response.created", "response": {"id": "resp_1"}},
                {"type": "response.failed", "response": failed},
            ],
            "response.failed",
        ),
        (
            REALTIME,
            json.dumps({"type": "input_audio_buffer.clear"}),
            [
                {"type": "session.updated", "session": {}},
                {"type": "error", "event_id": "e", "error": {**HARD_LIMIT, "event_id": "mine"}},
            ],
            "error",
        ),
    ):
        upstream.frames = frames
        with opened(customer, path) as socket:
            socket.send(sent)
            event = until(socket, kind)[-1]
        shown = json.dumps(event)
        assert "illing" not in shown
        assert "insufficient_quota" in shown
    wait_until(lambda: metric(customer.server, name, reason="billing") == before + 3, 5, "each is counted")
    wait_until(lambda: customer.held() == 0, 5, "nothing is held")
