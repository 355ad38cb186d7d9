"""What no decent client sends: refused on the wire with an OpenAI-shaped error, before any upstream call, leaving no hold.

Raw sockets against the served product. Refusing is only half of it: the connection must not be usable for a
second, smuggled request, and the service must go on.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.served import Customer, MakeCustomer
from tests.support.servers import Sandbox, Tollkeeper, sandbox_says, wait_until, within

SMALL = {
    "TOLLKEEPER_LISTEN__HEADER_TIMEOUT_SECONDS": "0.6",
    "TOLLKEEPER_LISTEN__BODY_TIMEOUT_SECONDS": "0.6",
    "TOLLKEEPER_LISTEN__MAX_BODY_BYTES": "100000",
    "TOLLKEEPER_LISTEN__MAX_HEADER_BYTES": "8192",
}
BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}).encode()
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: tollkeeper.test\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CLOSE = b"Connection: close\r\n"


@dataclass
class Response:
    """One response as it stood on the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refusal, after checking that it has OpenAI's shape."""
        assert self.header("content-type") == "application/json"
        found = json.loads(self.body)["error"]
        assert {"message", "type", "param", "code"} <= found.keys()
        assert found["message"].endswith((".", "}"))
        assert isinstance(found["code"], str)
        assert isinstance(found["type"], str)
        return dict(found)


@dataclass
class Talk:
    """Everything a connection said until it ended (or nothing more came)."""

    responses: list[Response]
    interim: list[int]
    closed: bool
    rest: bytes


def talk(
    server: Tollkeeper, data: bytes, *, seconds: float = 5, wanted: int | None = None, head_only: bool = False
) -> Talk:
    """Send bytes on a connection of their own, and read until it is closed, or so many responses are whole."""
    received, closed = b"", False
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        with contextlib.suppress(ConnectionError):  # it may refuse before it has read everything
            connection.sendall(data)
        while True:
            said = _parse(received, head_only=head_only)
            if wanted is not None and len(said.responses) >= wanted:
                return said
            try:
                part = connection.recv(65_536)
            except TimeoutError:
                return said
            except ConnectionError:
                part = b""
            if not part:
                closed = True
                break
            received += part
    said = _parse(received, head_only=head_only)
    return Talk(said.responses, said.interim, closed, said.rest)


def _parse(data: bytes, *, head_only: bool) -> Talk:
    responses, interim = [], []
    while b"\r\n\r\n" in data:
        head, _, after = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        if int(status) < 200:
            interim.append(int(status))
            data = after
            continue
        named = dict(headers)
        if named.get("transfer-encoding") == "chunked":
            whole, after, body = _dechunked(after)
            if not whole:
                break
        elif "content-length" in named and not head_only:
            length = int(named["content-length"])
            if len(after) < length:
                break
            body, after = after[:length], after[length:]
        elif head_only:
            body = b""
        else:
            body, after = after, b""
        responses.append(Response(int(status), headers, body))
        data = after
    return Talk(responses, interim, closed=False, rest=data)


def _dechunked(data: bytes) -> tuple[bool, bytes, bytes]:
    body = b""
    while True:
        size, found, after = data.partition(b"\r\n")
        if not found:
            return False, b"", b""
        length = int(size, 16)
        if len(after) < length + 2:
            return False, b"", b""
        if length == 0:
            return True, after[2:], body
        body, data = body + after[:length], after[length + 2 :]


@pytest.fixture
def edge(served: Callable[..., Tollkeeper]) -> Tollkeeper:
    """A server with small limits, so that a test reaches them quickly."""
    return served(**SMALL)


@pytest.fixture
def customer(edge: Tollkeeper, customer_of: Callable[[Tollkeeper], Customer]) -> Customer:
    return customer_of(edge)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """One client for all the looks at the service: making one costs more than a test."""
    with web.client(timeout=10) as client:
        yield client


@pytest.fixture
def unharmed(customer: Customer, session_sandbox: Sandbox, http: httpx.Client) -> Iterator[None]:
    """Afterwards: the upstream heard nothing, nothing is held or charged, and the service serves."""
    url, me = customer.server.url, f"{customer.server.url}/api/billing/me"
    record = f"http://127.0.0.1:{session_sandbox.port}/__sandbox/record"
    http.delete(record)
    before = http.get(me, headers=customer.headers).json()
    yield
    assert http.get(record).json()["records"] == []
    after = http.get(me, headers=customer.headers).json()
    assert after["heldMillicredits"] == "0"
    assert after["balanceMillicredits"] == before["balanceMillicredits"]
    assert http.get(f"{url}/readyz").status_code == 200
    assert (
        http.post(f"{url}/v1/chat/completions", json=customer.body(max_tokens=1), headers=customer.headers).status_code
        == 200
    )


def authorization(customer: Customer) -> bytes:
    return b"Authorization: Bearer " + customer.api_key.encode() + b"\r\n"


def a_request(
    customer: Customer, *more: bytes, line: bytes = LINE, length: bytes = LENGTH, body: bytes = BODY
) -> bytes:
    """A good request but for what is given."""
    return b"".join((line, HOST, JSON_TYPE, authorization(customer), *more, length, b"\r\n", body))


MALFORMED = {
    "content length and transfer encoding": (b"", CHUNKED + LENGTH, b"0\r\n\r\n"),
    "transfer encoding and content length": (b"", LENGTH + CHUNKED, b"0\r\n\r\n"),
    "the same content length twice": (b"", LENGTH + LENGTH, BODY),
    "two content lengths": (b"", LENGTH + b"Content-Length: 3\r\n", BODY),
    "a list of content lengths": (b"", b"Content-Length: %d, %d\r\n" % (len(BODY), len(BODY)), BODY),
    "a signed content length": (b"", b"Content-Length: +%d\r\n" % len(BODY), BODY),
    "a negative content length": (b"", b"Content-Length: -1\r\n", BODY),
    "a content length over 64 bits": (b"", b"Content-Length: 99999999999999999999999999\r\n", BODY),
    "a hexadecimal content length": (b"", b"Content-Length: 0x10\r\n", BODY),
    "transfer encoding twice": (b"", CHUNKED + CHUNKED, b"0\r\n\r\n"),
    "an unknown transfer encoding": (b"", b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "a compressed transfer encoding": (b"", b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "chunked that is not last": (b"", b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "a blank before the colon": (b"", b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "a line feed alone in the head": (b"X-A: b\n", LENGTH, BODY),
    "a carriage return alone in the head": (b"X-A: b\rX-C: d\r\n", LENGTH, BODY),
    "a folded header": (b"X-A: b\r\n c\r\n", LENGTH, BODY),
    "a folded authorization": (b"X-A: b\r\n\tAuthorization: x\r\n", LENGTH, BODY),
    "a header without a colon": (b"X-A\r\n", LENGTH, BODY),
    "a header without a name": (b": b\r\n", LENGTH, BODY),
    "a NUL in a header's value": (b"X-A: b\0c\r\n", LENGTH, BODY),
    "a NUL in a header's name": (b"X\0A: b\r\n", LENGTH, BODY),
    "two hosts": (b"Host: other.test\r\n", LENGTH, BODY),
    "the same host twice": (HOST, LENGTH, BODY),
    "chunk size that is no number": (b"", CHUNKED, b"ZZ\r\nabc\r\n0\r\n\r\n"),
    "negative chunk size": (b"", CHUNKED, b"-1\r\nabc\r\n0\r\n\r\n"),
    "chunk size over 64 bits": (b"", CHUNKED, b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk that is longer than its size": (b"", CHUNKED, b"3\r\nabcdef\r\n0\r\n\r\n"),
    "chunks with bare line feeds": (b"", CHUNKED, b"%x\n" % len(BODY) + BODY + b"\n0\n\n"),
    "a line feed in a chunk extension": (b"", CHUNKED, b"%x;a\n\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"),
}

OFFERS = {
    "h2c, as the JDK's HttpClient does": (
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
    ),
    "a WebSocket where there is none": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "a WebSocket with its whole handshake": (
        b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "TLS": b"Connection: upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
    "something without Connection": b"Upgrade: h2c\r\n",
    "something in two headers": b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: foo/2\r\nConnection: HTTP2-Settings\r\n",
}
NO_BODY: tuple[bytes, bytes] = (b"", b"")
OFFERED_AT = {
    "chat": (LINE, (LENGTH, BODY), 200),
    "chat, chunked": (LINE, (CHUNKED, b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"), 200),
    "models": (b"GET /v1/models HTTP/1.1\r\n", NO_BODY, 200),
    "a path that is not offered": (b"GET /v1/skills HTTP/1.1\r\n", NO_BODY, 403),
    "the wrong method": (b"DELETE /v1/chat/completions HTTP/1.1\r\n", (LENGTH, BODY), 405),
    "the account's API": (b"GET /api/billing/me HTTP/1.1\r\n", NO_BODY, 200),
    "the admin API": (b"GET /api/admin/accounts HTTP/1.1\r\n", NO_BODY, 401),
    "health": (b"GET /healthz HTTP/1.1\r\n", NO_BODY, 200),
    "a page": (b"GET /credits HTTP/1.1\r\n", NO_BODY, 401),
}


@pytest.mark.parametrize("at", OFFERED_AT)
@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_of_another_protocol_is_ignored(offer: str, at: str, customer: Customer) -> None:
    """However it is cut, with a body or without; and the connection carries the next request."""
    line, (length, body), status = OFFERED_AT[at]
    request = a_request(customer, OFFERS[offer], line=line, length=length, body=body)
    plain = a_request(customer, line=line, length=length, body=body)
    expected = talk(customer.server, plain + plain, wanted=2).responses
    said = talk(customer.server, request + request, wanted=2).responses
    assert [one.status for one in said] == [one.status for one in expected] == [status, status]
    assert [one.header("connection") for one in said] == [one.header("connection") for one in expected]


def test_a_body_behind_an_ignored_offer_is_read_whenever_it_comes(customer: Customer) -> None:
    offer = OFFERS["h2c, as the JDK's HttpClient does"]
    request = a_request(customer, offer + b"Expect: 100-continue\r\n", length=LENGTH, body=BODY)
    for cut in (10, request.index(b"\r\n\r\n") + 3, len(request) - len(BODY), len(request) - 5):
        with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
            connection.sendall(request[:cut])
            time.sleep(0.1)
            connection.sendall(request[cut:])
            received = b""
            while b"chat.completion" not in received:
                part = connection.recv(65_536)
                assert part, received
                received += part
        assert received.count(b"HTTP/1.1 200") == 1


def test_a_close_that_stands_beside_an_ignored_offer_is_obeyed(customer: Customer) -> None:
    more = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"
    said = talk(customer.server, a_request(customer, more, length=LENGTH, body=BODY))
    assert ([one.status for one in said.responses], said.closed) == ([200], True)


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.usefixtures("unharmed")
def test_a_malformed_request_is_refused_and_its_connection_is_closed(case: str, customer: Customer) -> None:
    more, length, body = MALFORMED[case]
    # what follows on the connection is what a smuggler would want to have served
    said = talk(customer.server, a_request(customer, more, length=length, body=body) + a_request(customer))
    assert said.closed
    (answer,) = said.responses
    assert answer.status == 400
    assert answer.error["code"] == "bad_request"
    assert answer.header("connection") == "close"


TARGETS = {
    "absolute form": (b"POST http://evil.example/v1/chat/completions HTTP/1.1\r\n", 400),
    "absolute form of our own": (b"POST http://tollkeeper.test/v1/chat/completions HTTP/1.1\r\n", 400),
    "authority form": (b"CONNECT evil.example:443 HTTP/1.1\r\n", 400),
    "asterisk form": (b"OPTIONS * HTTP/1.1\r\n", 400),
    "a NUL in the path": (b"POST /v1/chat/completions\0 HTTP/1.1\r\n", 400),
    "a blank in the path": (b"POST /v1/chat/completions x HTTP/1.1\r\n", 400),
    "a header injected into the path": (b"POST /v1/chat/completions\r\nX-Evil: 1 HTTP/1.1\r\n", 400),
    "raw UTF-8 in the path": ("POST /v1/chat/completionsé HTTP/1.1\r\n".encode(), 400),
    "an unknown method": (b"BREW /v1/chat/completions HTTP/1.1\r\n", 400),
    "a lower-case method": (b"post /v1/chat/completions HTTP/1.1\r\n", 400),
    "HTTP/2 by version number": (b"POST /v1/chat/completions HTTP/2.0\r\n", 400),
    "an unknown version": (b"POST /v1/chat/completions HTTP/1.9\r\n", 400),
    "no version": (b"POST /v1/chat/completions\r\n", 400),
    "dot segments": (b"POST /v1/../v1/chat/completions HTTP/1.1\r\n", 404),
    "one dot": (b"POST /v1/./chat/completions HTTP/1.1\r\n", 404),
    "encoded dot segments": (b"POST /v1/%2e%2e/v1/chat/completions HTTP/1.1\r\n", 404),
    "encoded slash": (b"POST /v1/chat%2fcompletions HTTP/1.1\r\n", 404),
    "encoded letter": (b"POST /v1/chat/completion%73 HTTP/1.1\r\n", 404),
    "doubled slash": (b"POST /v1//chat/completions HTTP/1.1\r\n", 404),
    "doubled slash at the front": (b"POST //v1/chat/completions HTTP/1.1\r\n", 404),
    "trailing slash": (b"POST /v1/chat/completions/ HTTP/1.1\r\n", 404),
    "backslashes": (b"POST /v1\\chat\\completions HTTP/1.1\r\n", 404),
    "upper-case version segment": (b"POST /V1/chat/completions HTTP/1.1\r\n", 404),
    "mixed case": (b"POST /v1/Chat/Completions HTTP/1.1\r\n", 404),
    "path parameter": (b"POST /v1/chat/completions;x=1 HTTP/1.1\r\n", 404),
    "encoded NUL": (b"POST /v1/chat/completions%00 HTTP/1.1\r\n", 404),
    "encoded line break": (b"POST /v1/chat/completions%0d%0aX-Evil:%201 HTTP/1.1\r\n", 404),
    "an endpoint of OpenAI that is not offered": (b"POST /v1/skills HTTP/1.1\r\n", 403),
    "dot segments out of the models": (b"GET /v1/models/../files HTTP/1.1\r\n", 404),
    "encoded slash in a model": (b"GET /v1/models/..%2ffiles HTTP/1.1\r\n", 404),
    "the root": (b"POST / HTTP/1.1\r\n", 404),
    "another API version": (b"POST /v2/chat/completions HTTP/1.1\r\n", 404),
    "out of the side API": (b"GET /healthz/..%2fv1/models HTTP/1.1\r\n", 404),
    "trailing slash on the side API": (b"GET /healthz/ HTTP/1.1\r\n", 404),
    "the wrong method": (b"PUT /v1/chat/completions HTTP/1.1\r\n", 405),
    "OPTIONS": (b"OPTIONS /v1/chat/completions HTTP/1.1\r\n", 405),
    "TRACE": (b"TRACE /v1/chat/completions HTTP/1.1\r\n", 405),
    "the wrong method on the side API": (b"DELETE /api/billing/me HTTP/1.1\r\n", 405),
}


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.usefixtures("unharmed")
def test_a_target_that_is_not_exactly_an_offered_path_is_refused(case: str, customer: Customer) -> None:
    line, status = TARGETS[case]
    said = talk(customer.server, a_request(customer, CLOSE, line=line))
    (answer,) = said.responses
    assert (answer.status, said.closed) == (status, True)
    assert answer.error["code"] in {
        "bad_request",
        "endpoint_not_offered",
        "model_not_found",
        "not_found",
        "method_not_allowed",
    }
    assert answer.header("location") is None  # nothing of a client's Host or path comes back as an address
    assert "x-evil" not in dict(answer.headers)


@pytest.mark.usefixtures("unharmed")
def test_the_http2_preface_is_refused(customer: Customer) -> None:
    (answer,) = talk(customer.server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").responses
    assert (answer.status, answer.error["code"]) == (400, "bad_request")


@pytest.mark.parametrize("line", [LINE, LINE.replace(b"1.1", b"1.0")])
@pytest.mark.usefixtures("unharmed")
def test_a_request_without_host_is_refused(line: bytes, customer: Customer) -> None:
    (answer,) = talk(customer.server, a_request(customer, line=line).replace(HOST, b"")).responses
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert "Host" in answer.error["message"]


@pytest.mark.usefixtures("unharmed")
def test_bare_line_feeds_throughout_are_refused(customer: Customer) -> None:
    said = talk(customer.server, a_request(customer).replace(b"\r\n", b"\n"))
    (answer,) = said.responses
    assert (answer.status, answer.error["code"], said.closed) == (400, "bad_request", True)


BIG_HEADS = {
    "one header of 20 kB": b"X-Big: " + b"a" * 20_000 + b"\r\n",
    "one header of 1 MB": b"X-Big: " + b"a" * 1_000_000 + b"\r\n",
    "two thousand headers": b"".join(b"X-%d: a\r\n" % number for number in range(2_000)),
    "a header name of 20 kB": b"X" * 20_000 + b": a\r\n",
    "an authorization of 10 kB": b"X-Authorization: Bearer " + b"k" * 10_240 + b"\r\n",
}


@pytest.mark.parametrize("case", BIG_HEADS)
@pytest.mark.usefixtures("unharmed")
def test_a_head_over_the_limit_is_refused(case: str, customer: Customer) -> None:
    said = talk(customer.server, a_request(customer, BIG_HEADS[case]))
    (answer,) = said.responses
    assert (answer.status, answer.error["code"], said.closed) == (431, "headers_too_large", True)


@pytest.mark.usefixtures("unharmed")
def test_an_endless_target_is_refused(customer: Customer) -> None:
    said = talk(customer.server, b"GET /" + b"a" * 50_000)
    (answer,) = said.responses
    assert (answer.status, said.closed) == (431, True)


@pytest.mark.usefixtures("unharmed")
def test_a_head_that_grows_over_the_limit_in_small_pieces_is_refused(customer: Customer) -> None:
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(LINE + HOST)
        with contextlib.suppress(ConnectionError):
            for number in range(40):
                connection.sendall(b"X-%d: " % number + b"a" * 500 + b"\r\n")
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                received += part
    assert received.startswith(b"HTTP/1.1 431 ")


def test_a_head_just_under_the_limit_is_served(customer: Customer, sandbox: Sandbox) -> None:
    fixed = len(a_request(customer, b"X-Pad: \r\n")) - len(BODY)
    data = a_request(customer, b"X-Pad: " + b"a" * (8_192 - fixed) + b"\r\n")
    (answer,) = talk(customer.server, data, wanted=1).responses
    assert answer.status == 200
    assert len(sandbox.record()) == 1


def test_a_head_may_be_cut_anywhere_before_a_large_body(customer: Customer) -> None:
    """Where its last bytes come with a body that is larger than a head may be, it is still no large head."""
    body = BODY + b" " * 20_000
    data = a_request(customer, CLOSE, length=b"Content-Length: %d\r\n" % len(body), body=body)
    for cut in range(len(data) - len(body) - 5, len(data) - len(body) + 2):
        with socket.create_connection(("127.0.0.1", customer.server.port), timeout=within(5)) as connection:
            connection.sendall(data[:cut])
            time.sleep(0.05)
            connection.sendall(data[cut:])
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 "), cut


SLOW = {
    "nothing at all": b"",
    "half a request line": b"POST /v1/ch",
    "a head that never ends": LINE + HOST + b"X-A: b\r\n",
}


@pytest.mark.parametrize("case", SLOW)
@pytest.mark.usefixtures("unharmed")
def test_a_slow_head_is_given_up(case: str, customer: Customer) -> None:
    said = talk(customer.server, SLOW[case])
    (answer,) = said.responses
    assert (answer.status, answer.error["code"], said.closed) == (408, "request_timeout", True)


@pytest.mark.usefixtures("unharmed")
def test_a_head_that_drips_is_given_up_as_a_whole(customer: Customer) -> None:
    """The time is for the head, not for each of its bytes."""
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=0.1) as connection:
        connection.sendall(LINE + HOST)
        received = b""
        for _ in range(100):  # ten seconds: the limit is 0.6
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"X-A: b\r\n")
            with contextlib.suppress(TimeoutError, ConnectionError):
                received += connection.recv(65_536)
            if received:
                break
    assert received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("unharmed")
def test_a_slow_second_head_on_a_kept_connection_is_given_up(customer: Customer) -> None:
    head = b"GET /v1/models/gpt-4o-mini HTTP/1.1\r\n" + HOST + authorization(customer) + b"\r\n"
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(head)
        received = connection.recv(65_536)
        assert received.startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /v1/mod")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(65_536) == b""


def test_a_part_of_a_head_behind_a_request_has_its_time_from_the_answer_on(customer: Customer) -> None:
    body = json.dumps(customer.body({"latency_ms": 1_500})).encode()
    good = a_request(customer, length=b"Content-Length: %d\r\n" % len(body), body=body)
    said = talk(customer.server, good + b"GET /v1/mod")
    assert ([answer.status for answer in said.responses], said.closed) == ([200, 408], True)


UNREAD = {
    "behind one that closes": (CLOSE, b"", 200),
    "behind a malformed head": (b"X\r\n", b"", 400),
    "of a body whose chunks are malformed": (CHUNKED, b"ZZ\r\n", 400),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_left_unread_takes_no_answer_from_its_client(case: str, customer: Customer) -> None:
    """Closing at once would reset the connection (RFC 9112, 9.6): who still sends would never read why."""
    more, body, status = UNREAD[case]
    if case.startswith("behind"):
        more, body = more + LENGTH, BODY
    data = a_request(customer, more, length=b"", body=body) + a_request(
        customer, length=b"Content-Length: 4000000\r\n", body=b" " * 4_000_000
    )
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(data)
        time.sleep(0.2)
        received = b""
        while part := connection.recv(65_536):
            received += part
    assert received.startswith(b"HTTP/1.1 %d " % status)


SLOW_BODIES = {
    "a body that stops": (LENGTH, BODY[:10]),
    "a body that never begins": (LENGTH, b""),
    "chunks that stop": (CHUNKED, b"5\r\nab"),
    "chunks that never begin": (CHUNKED, b""),
    "chunks without an end": (CHUNKED, b"%x\r\n" % len(BODY) + BODY + b"\r\n"),
}


@pytest.mark.parametrize("case", SLOW_BODIES)
@pytest.mark.usefixtures("unharmed")
def test_a_slow_body_is_given_up(case: str, customer: Customer) -> None:
    length, body = SLOW_BODIES[case]
    said = talk(customer.server, a_request(customer, length=length, body=body))
    (answer,) = said.responses
    assert (answer.status, answer.error["code"], said.closed) == (408, "request_timeout", True)


@pytest.mark.usefixtures("unharmed")
def test_a_body_that_its_client_abandons_leaves_nothing(customer: Customer) -> None:
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(a_request(customer, body=BODY[:20]))
    wait_until(lambda: customer.held() == 0, 5, "nothing is held")


TOO_LARGE = {
    "declared": (b"Content-Length: 100001\r\n", b""),
    "declared far above": (b"Content-Length: 9000000000000000000\r\n", b""),
    "declared and sent": (b"Content-Length: 200000\r\n", b" " * 200_000),
    "in chunks": (CHUNKED, (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 2 + b"0\r\n\r\n"),
    "in one chunk": (CHUNKED, b"186a1\r\n" + b" " * 100_001 + b"\r\n0\r\n\r\n"),
    "declared, with an offer to wait": (b"Content-Length: 100001\r\nExpect: 100-continue\r\n", b""),
}


@pytest.mark.parametrize("case", TOO_LARGE)
@pytest.mark.usefixtures("unharmed")
def test_a_body_over_the_limit_is_refused_and_what_follows_is_not_served(case: str, customer: Customer) -> None:
    length, body = TOO_LARGE[case]
    said = talk(customer.server, a_request(customer, length=length, body=body) + (a_request(customer) if body else b""))
    (answer,) = said.responses
    assert (answer.status, answer.error["code"], said.closed) == (413, "request_too_large", True)
    assert said.interim == []


def test_a_body_of_exactly_the_limit_is_read(customer: Customer, sandbox: Sandbox) -> None:
    body = BODY + b" " * (100_000 - len(BODY))
    (answer,) = talk(
        customer.server, a_request(customer, CLOSE, length=b"Content-Length: 100000\r\n", body=body)
    ).responses
    assert answer.status == 200
    assert len(sandbox.record()) == 1


@pytest.mark.usefixtures("unharmed")
def test_a_request_refused_before_its_body_came_does_not_keep_its_connection(customer: Customer) -> None:
    """An unknown key may not park connections by promising bodies."""
    head = LINE + HOST + JSON_TYPE + b"Authorization: Bearer unknown\r\nContent-Length: 50000\r\n\r\n"
    said = talk(customer.server, head)
    (answer,) = said.responses
    assert (answer.status, answer.error["code"], said.closed) == (401, "invalid_api_key", True)


BODIES = {
    "NUL bytes": b"\0\0\0\0",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "half a surrogate in bytes": b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    "an array": b"[1]",
    "a number": b"1",
    "nothing": b"",
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "two objects": BODY + BODY,
    "deep nesting": b'{"model": "gpt-4o-mini", "messages": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "NaN": b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    "a member twice": b'{"model": "gpt-4o-mini", "model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}',
    "an unknown member": b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "evil": 1}',
    "no model": b'{"messages": [{"role": "user", "content": "hi"}]}',
    "no messages": b'{"model": "gpt-4o-mini"}',
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.usefixtures("unharmed")
def test_a_body_that_is_no_request_is_refused(case: str, customer: Customer) -> None:
    body = BODIES[case]
    (answer,) = talk(
        customer.server, a_request(customer, CLOSE, length=b"Content-Length: %d\r\n" % len(body), body=body)
    ).responses
    assert answer.status == 400
    assert answer.error["code"] in {
        "invalid_json",
        "duplicate_parameter",
        "unknown_parameter",
        "missing_required_parameter",
        "invalid_type",
    }


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"GZIP", b"identity\r\nContent-Encoding: gzip"])
@pytest.mark.usefixtures("unharmed")
def test_a_compressed_body_is_refused(coding: bytes, customer: Customer) -> None:
    (answer,) = talk(customer.server, a_request(customer, CLOSE, b"Content-Encoding: " + coding + b"\r\n")).responses
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")


# -- who it is --------------------------------------------------------------------------------------------------

WRONG_AUTHORIZATION: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda key: b"",
    "two": lambda key: b"Authorization: Bearer x\r\nAuthorization: Bearer " + key + b"\r\n",
    "the right one twice": lambda key: (b"Authorization: Bearer " + key + b"\r\n") * 2,
    "two in one line": lambda key: b"Authorization: Bearer " + key + b", Bearer " + key + b"\r\n",
    "empty": lambda key: b"Authorization:\r\n",
    "the scheme alone": lambda key: b"Authorization: Bearer\r\n",
    "no scheme": lambda key: b"Authorization: " + key + b"\r\n",
    "another scheme": lambda key: b"Authorization: Basic " + key + b"\r\n",
    "no blank": lambda key: b"Authorization: Bearer" + key + b"\r\n",
    "a tab for the blank": lambda key: b"Authorization: Bearer\t" + key + b"\r\n",
    "the scheme twice": lambda key: b"Authorization: Bearer Bearer " + key + b"\r\n",
    "words after the key": lambda key: b"Authorization: Bearer " + key + b" x\r\n",
    "a key with a letter more": lambda key: b"Authorization: Bearer " + key + b"x\r\n",
    "a key with a letter less": lambda key: b"Authorization: Bearer " + key[:-1] + b"\r\n",
    "a key in upper case": lambda key: b"Authorization: Bearer " + key.upper() + b"\r\n",
    "a quoted key": lambda key: b'Authorization: Bearer "' + key + b'"\r\n',
    "UTF-8": lambda key: "Authorization: Bearer schlüssel\r\n".encode(),
    "bytes that are no text": lambda key: b"Authorization: Bearer \xff\xfe\x80\r\n",
    "a wildcard": lambda key: b"Authorization: Bearer %\r\n",
    "SQL": lambda key: b"Authorization: Bearer '/**/OR/**/1=1--\r\n",
    "6 kB": lambda key: b"Authorization: Bearer " + b"k" * 6_000 + b"\r\n",
    "in another header": lambda key: b"X-Api-Key: " + key + b"\r\n",
}


@pytest.mark.parametrize("case", WRONG_AUTHORIZATION)
@pytest.mark.usefixtures("unharmed")
def test_anything_but_one_bearer_key_is_401(case: str, customer: Customer) -> None:
    header = WRONG_AUTHORIZATION[case](customer.api_key.encode())
    data = LINE + HOST + JSON_TYPE + header + LENGTH + CLOSE + b"\r\n" + BODY
    (answer,) = talk(customer.server, data).responses
    assert answer.status == 401
    assert answer.error["code"] == ("missing_api_key" if case in ("none", "in another header") else "invalid_api_key")
    assert customer.api_key.encode() not in answer.body


@pytest.mark.usefixtures("unharmed")
def test_an_authorization_of_10_kb_is_refused(customer: Customer) -> None:
    data = LINE + HOST + b"Authorization: Bearer " + b"k" * 10_240 + b"\r\n" + LENGTH + b"\r\n" + BODY
    (answer,) = talk(customer.server, data).responses
    assert answer.status == 431


RIGHT_AUTHORIZATION: dict[str, Callable[[bytes], bytes]] = {
    "as everyone writes it": lambda key: b"Authorization: Bearer " + key + b"\r\n",
    "lower-case scheme": lambda key: b"authorization: bearer " + key + b"\r\n",
    "upper-case name": lambda key: b"AUTHORIZATION: Bearer " + key + b"\r\n",
    "blanks between": lambda key: b"Authorization: Bearer    " + key + b"\r\n",
    "blanks before": lambda key: b"Authorization:    Bearer " + key + b"\r\n",
    "no blank after the colon": lambda key: b"Authorization:Bearer " + key + b"\r\n",
}


@pytest.mark.parametrize("case", RIGHT_AUTHORIZATION)
def test_legal_spellings_of_the_right_key_are_accepted(case: str, customer: Customer, sandbox: Sandbox) -> None:
    data = (
        LINE + HOST + JSON_TYPE + RIGHT_AUTHORIZATION[case](customer.api_key.encode()) + LENGTH + CLOSE + b"\r\n" + BODY
    )
    (answer,) = talk(customer.server, data).responses
    assert answer.status == 200
    (row,) = sandbox.record()
    assert customer.api_key not in json.dumps(row)


# -- what is legal, though rare, and served ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "found"),
    [(b"/v1/chat/completions?api-version=1", 1), (b"/v1/chat/completions?", 1), (b"/v1/chat/completions?../../x", 1)],
)
def test_a_query_string_is_ignored_and_never_reaches_the_upstream(
    target: bytes, found: int, customer: Customer, sandbox: Sandbox
) -> None:
    data = a_request(customer, CLOSE, line=b"POST " + target + b" HTTP/1.1\r\n")
    (answer,) = talk(customer.server, data).responses
    assert answer.status == 200
    rows = sandbox.record()
    assert [row["path"] for row in rows] == ["/v1/chat/completions"] * found


def test_chunked_bodies_with_extensions_and_trailers_are_served_without_them(
    customer: Customer, sandbox: Sandbox
) -> None:
    half = len(BODY) // 2
    body = b"%x;name=value\r\n%b\r\n%X\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (
        half,
        BODY[:half],
        len(BODY) - half,
        BODY[half:],
    )
    (answer,) = talk(customer.server, a_request(customer, CLOSE, length=CHUNKED, body=body)).responses
    assert answer.status == 200
    (row,) = sandbox.record()
    assert "x-trailer" not in row["requestHeaders"]
    assert row["requestHeaders"]["content-length"] == str(row["requestBodyBytes"])
    assert "transfer-encoding" not in row["requestHeaders"]


def test_nothing_of_a_clients_own_headers_reaches_the_upstream(customer: Customer, sandbox: Sandbox) -> None:
    evil = (
        b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nCookie: a=b\r\nOpenAI-Organization: org-evil\r\nOpenAI-Project: proj_evil\r\n"
        b"X-Evil: 1\r\nProxy-Authorization: Basic eA==\r\nConnection: close, X-Evil\r\nTE: trailers\r\nAccept-Encoding: gzip\r\n"
        b"X-Client-Request-Id: mine\r\n"
    )
    (answer,) = talk(customer.server, a_request(customer, evil)).responses
    assert answer.status == 200
    (row,) = sandbox.record()
    sent = row["requestHeaders"]
    assert (
        not {"x-forwarded-for", "forwarded", "cookie", "openai-organization", "openai-project", "x-evil", "te"}
        & sent.keys()
    )
    assert "proxy-authorization" not in sent
    assert sent["x-client-request-id"] == answer.header("x-request-id")
    assert sent.get("accept-encoding", "identity") == "identity"


def test_headers_of_the_upstream_pass_by_allow_list_only(customer: Customer) -> None:
    text = sandbox_says(
        headers={
            "set-cookie": "a=b",
            "openai-organization": "org-secret",
            "x-evil": "1",
            "server": "x",
            "openai-processing-ms": "7",
        }
    )
    body = json.dumps(customer.body(text=text, max_tokens=5)).encode()
    (answer,) = talk(
        customer.server, a_request(customer, CLOSE, length=b"Content-Length: %d\r\n" % len(body), body=body)
    ).responses
    assert answer.status == 200
    named = dict(answer.headers)
    assert not {"set-cookie", "openai-organization", "x-evil", "server"} & named.keys()
    assert named["openai-processing-ms"] == "7"


def test_http_1_0_is_answered_without_chunks_and_closed(customer: Customer, sandbox: Sandbox) -> None:
    body = BODY[:-1] + b', "stream": true}'
    data = a_request(
        customer,
        b"Connection: keep-alive\r\n",
        line=LINE.replace(b"1.1", b"1.0"),
        length=b"Content-Length: %d\r\n" % len(body),
        body=body,
    )
    said = talk(customer.server, data)
    (answer,) = said.responses
    assert (answer.status, said.closed) == (200, True)
    assert answer.header("transfer-encoding") is None
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert len(sandbox.record()) == 1


def test_a_client_that_expects_100_continue_is_told_to(customer: Customer, sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(a_request(customer, CLOSE, b"Expect: 100-continue\r\n", body=b""))
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert sandbox.record() == []
        connection.sendall(BODY)
        received = b""
        while part := connection.recv(65_536):
            received += part
    assert received.startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(customer: Customer, sandbox: Sandbox) -> None:
    bodies = [
        json.dumps(customer.body({"text": word, "latency_ms": wait})).encode()
        for word, wait in (("one", 150), ("two", 0), ("three", 50))
    ]
    data = b"".join(a_request(customer, length=b"Content-Length: %d\r\n" % len(body), body=body) for body in bodies)
    said = talk(customer.server, data, wanted=3)
    assert [answer.status for answer in said.responses] == [200] * 3
    assert [json.loads(answer.body)["choices"][0]["message"]["content"] for answer in said.responses] == [
        "one",
        "two",
        "three",
    ]
    assert len(sandbox.record()) == 3


def test_garbage_behind_a_request_in_flight_is_never_taken_for_its_answer(customer: Customer) -> None:
    body = json.dumps(customer.body({"latency_ms": 300})).encode()
    good = a_request(customer, length=b"Content-Length: %d\r\n" % len(body), body=body)
    said = talk(customer.server, good + b"garbage\r\n\r\n")
    assert ([answer.status for answer in said.responses], said.rest, said.closed) == ([200, 400], b"", True)
    wait_until(lambda: customer.held() == 0, 10, "nothing stays held")


def test_an_answer_to_head_has_no_body_and_the_connection_stays_in_step(customer: Customer) -> None:
    head = b"HEAD /v1/models/gpt-4o-mini HTTP/1.1\r\n" + HOST + authorization(customer) + b"\r\n"
    get = head.replace(b"HEAD", b"GET")
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(head)
        first = connection.recv(65_536)
        assert first.startswith(b"HTTP/1.1 405 ")
        assert first.endswith(b"\r\n\r\n")
        connection.sendall(get)
        second = connection.recv(65_536)
    assert second.startswith(b"HTTP/1.1 200 ")


# -- how many ---------------------------------------------------------------------------------------------------------


def test_connections_over_the_limit_are_refused_until_others_close(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    server = served(TOLLKEEPER_LISTEN__MAX_CONNECTIONS="5", TOLLKEEPER_LISTEN__HEADER_TIMEOUT_SECONDS="60")
    customer = new_customer(server, "10")
    with contextlib.ExitStack() as open_connections:
        for _ in range(5):
            connection = open_connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            connection.sendall(LINE + HOST)  # part of a head: it stays open

        def refused() -> Response | None:
            """Another: it takes a place where one of the five was closed, as idle, before its bytes were read."""
            another = open_connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=1))
            another.sendall(LINE + HOST)
            said = _parse(another.recv(65_536), head_only=False)
            return said.responses[0] if said.responses else None

        answer = wait_until(refused, 5, "the sixth connection is refused")
        assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        assert answer.header("retry-after") == "1"
    wait_until(lambda: customer.post(customer.body(max_tokens=1)).status_code == 200, 10, "a place is free again")
    assert len(sandbox.record()) == 1
    assert customer.held() == 0


CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a "},"finish_reason":null}]}\n\n'


class LateUpstream:
    """Its first answer says [DONE] and keeps the end of the transfer coding back; its second one goes on and on."""

    def __init__(self) -> None:
        self.first_closed, self.second_closed = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        first, _ = self._listener.accept()
        self._begin(first, CHUNK + b"data: [DONE]\n\n")
        second, _ = self._listener.accept()
        self._begin(second, CHUNK)
        first.settimeout(10)
        first.recv(1)
        self.first_closed.set()
        with contextlib.suppress(OSError):
            for _ in range(1_000):
                self._send(second, CHUNK)
                second.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    if second.recv(1) == b"":
                        break
            else:
                return
        self.second_closed.set()

    @staticmethod
    def _send(connection: socket.socket, data: bytes) -> None:
        connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def _begin(self, connection: socket.socket, data: bytes) -> None:
        request = b""
        while b"\r\n\r\n" not in request or not request.endswith(b"}"):
            request += connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._send(connection, data)


def test_a_client_that_leaves_in_the_second_stream_of_a_connection_is_noticed(
    make_tollkeeper: Callable[..., Tollkeeper], new_customer: MakeCustomer
) -> None:
    """The first exchange may still be waiting for its upstream's last bytes when the second one has begun."""
    upstream = LateUpstream()
    server = make_tollkeeper(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url).start()
    customer = new_customer(server, "100")
    body = json.dumps(customer.body(stream=True)).encode()
    data = a_request(customer, length=b"Content-Length: %d\r\n" % len(body), body=body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65_536)
        connection.sendall(data)
        received = b""
        while CHUNK not in received:
            received += connection.recv(65_536)
        assert upstream.first_closed.wait(10)
    assert upstream.second_closed.wait(10)
    wait_until(lambda: customer.held() == 0, 10, "nothing stays held")
