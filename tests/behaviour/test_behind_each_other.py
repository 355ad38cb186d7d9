"""What stands behind a request on its connection, in its trailers or as the next one, reaches into no other's answer."""

import contextlib
import re
import socket

import pytest

from tests.support.served import Customer
from tests.support.servers import Tollkeeper, wait_until

HOST = b"Host: tollkeeper.test\r\n"
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SLOW = (
    b'{"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": '
    b'"[[sandbox {\\"latency_ms\\": 300}]] hi"}], "max_tokens": 5}'
)
HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def said(server: Tollkeeper, *parts: bytes, seconds: float = 5) -> bytes:
    """Everything that is answered to these bytes until the connection ends, or nothing comes any more."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
            while part := connection.recv(65_536):
                received += part
    return received


def key_of(customer: Customer) -> bytes:
    return b"Authorization: Bearer " + customer.api_key.encode() + b"\r\n"


def slow_stream(customer: Customer) -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(SLOW)
    return LINE + HOST + b"Content-Type: application/json\r\n" + key_of(customer) + length + SLOW


def test_a_websocket_that_is_asked_for_behind_a_stream_does_not_overtake_it(customer: Customer) -> None:
    """It is refused as a request without an offer is, in its turn."""
    asked = b"GET /v1/responses HTTP/1.1\r\n" + HOST + key_of(customer)
    heard = said(customer.server, slow_stream(customer) + asked + HANDSHAKE + b"\r\n", seconds=3)
    assert heard.startswith(b"HTTP/1.1 200 ")
    stream, end, behind = heard.partition(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert end
    assert b"HTTP/1.1" not in stream[9:]
    assert behind.startswith(b"HTTP/1.1 405 ")


def test_http_1_0_is_given_no_websocket(customer: Customer) -> None:
    heard = said(
        customer.server, b"GET /v1/responses HTTP/1.0\r\n" + HOST + key_of(customer) + HANDSHAKE + b"\r\n", seconds=2
    )
    assert heard.startswith(b"HTTP/1.1 405 ")


def test_a_malformed_body_behind_a_stream_is_not_refused_within_it(customer: Customer) -> None:
    behind = LINE + HOST + key_of(customer) + CHUNKED + b"\r\nZZ\r\n"
    heard = said(customer.server, slow_stream(customer) + behind)
    stream, end, refusal = heard.partition(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert (stream.startswith(b"HTTP/1.1 200 "), bool(end)) == (True, True)
    assert refusal.startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: customer.held() == 0, 10, "no hold is left")


@pytest.mark.parametrize("line", [b"GET /api/billing/me HTTP/1.1\r\n", b"GET /v1/models HTTP/1.1\r\n"])
def test_a_trailer_is_no_header(line: bytes, customer: Customer) -> None:
    trailers = b"0\r\n" + key_of(customer) + b"\r\n"
    heard = said(customer.server, line + HOST + CHUNKED + b"Connection: close\r\n\r\n" + trailers)
    assert heard.startswith(b"HTTP/1.1 401 ")


ENDLESS = {
    "many trailers": b"0\r\n" + b"X-A: b\r\n" * 300_000,
    "a long trailer": b"0\r\nX-A: " + b"a" * 2_000_000,
    "a long chunk extension": b"1;" + b"a" * 2_000_000,
}


@pytest.mark.parametrize("case", ENDLESS)
def test_trailers_and_chunk_extensions_without_end_are_refused(case: str, customer: Customer) -> None:
    head = LINE + HOST + key_of(customer) + CHUNKED + b"\r\n1\r\n{\r\n"
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        heard = b""
        with contextlib.suppress(ConnectionError):  # it does not read all of it
            connection.sendall(head)
            connection.sendall(ENDLESS[case])
            heard = connection.recv(65_536)
    assert not heard or heard.startswith(b"HTTP/1.1 431 ")
    wait_until(lambda: customer.held() == 0, 10, "no hold is left")


def test_http_1_0_is_not_told_to_continue(customer: Customer) -> None:
    line = LINE.replace(b"1.1", b"1.0")
    head = line + HOST + key_of(customer) + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(SLOW)
    with socket.create_connection(("127.0.0.1", customer.server.port), timeout=5) as connection:
        connection.sendall(head)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(65_536)
        connection.settimeout(5)
        connection.sendall(SLOW)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


BODY = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}'
JSON_TYPE = b"Content-Type: application/json\r\n"
KEY = b"Authorization: Bearer KEY\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = b"%x;a=b\r\n%b\r\n0\r\n" % (len(BODY), BODY)
CLOSE = b"Connection: close\r\n"
GET = b"GET /v1/models/gpt-4o-mini HTTP/1.1\r\n" + HOST + KEY


def chat(more: bytes = LENGTH, body: bytes = BODY, line: bytes = LINE) -> bytes:
    """A chat request; `more` are its length and other headers."""
    return line + HOST + JSON_TYPE + KEY + more + b"\r\n" + body


GOOD = GET + b"\r\n"
SEQUENCES = {
    "three good ones": (chat() + GOOD + chat(CHUNKED, CHUNKS + b"\r\n") + GOOD, [200] * 4),
    "empty lines between": (chat() + b"\r\n\r\n" + GOOD, [200, 200]),
    "a refused one before a good one": (GOOD.replace(KEY, b"") + GOOD, [401, 200]),
    "more than the length says": (chat(body=BODY + b" x\r\n") + GOOD, [200, 400]),
    "less than the length says": (chat(b"Content-Length: %d\r\n" % (len(BODY) + 4), BODY) + GOOD, [400, 400]),
    "a length and chunks behind a good one": (chat() + chat(LENGTH + CHUNKED, CHUNKS + b"\r\n") + GOOD, [200, 400]),
    "two lengths behind a good one": (chat() + chat(LENGTH + LENGTH) + GOOD, [200, 400]),
    "two hosts behind a good one": (chat() + chat(HOST + LENGTH) + GOOD, [200, 400]),
    "no host behind a good one": (chat() + GOOD.replace(HOST, b"") + GOOD, [200, 400]),
    "a wrong chunk behind a good one": (chat() + chat(CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n") + GOOD, [200, 400]),
    "garbage behind one that closes": (chat(CLOSE + LENGTH) + b"garbage\r\n\r\n", [200]),
    "a good one behind one that closes": (GET + CLOSE + b"\r\n" + GOOD, [200]),
    "a good one behind HTTP/1.0": (chat(line=LINE.replace(b"1.1", b"1.0")) + GOOD, [200]),
    "a good one behind a trailer that closes": (chat(CHUNKED, CHUNKS + CLOSE + b"\r\n") + GOOD, [200]),
    "a long target behind a good one": (GOOD + GET.replace(b"gpt-4o-mini", b"m" * 40_000) + b"\r\n" + GOOD, [200, 431]),
    "an offer of h2c before a good one": (chat(b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH) + GOOD, [200, 200]),
}


@pytest.mark.parametrize("cut", ["at once", "byte by byte"])
@pytest.mark.parametrize("case", SEQUENCES)
def test_requests_end_where_rfc_9112_says(case: str, cut: str, customer: Customer) -> None:
    """And are answered in their order, however they were cut; what cannot be read is refused in its turn."""
    data, statuses = SEQUENCES[case]
    data = data.replace(b"KEY", customer.api_key.encode())
    parts = [data] if cut == "at once" else [data[place : place + 1] for place in range(len(data))]
    heard = said(customer.server, *parts, seconds=1)
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)] == statuses
    if len(statuses) == 1:
        assert b"connection: close\r\n" in heard
