"""One connection to the upstream: a protocol of asyncio's on httptools, and the answer being read from it.

A request is sent a second time only when the kernel proves that no byte of the first was received (`untouched`).
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

import httptools

from billing.money.usage import Value
from proxy.gateway.upstream.interruption import UpstreamError
from proxy.web.raw_request import first_header

HIGH_WATER = 262_144


TCP_INFO_BYTES_ACKED = 120


MAX_RESPONSE_HEAD = 65_536
SWITCHING = 101


class Head(Value, frozen=True):
    """Status line and headers of an answer; names in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def get(self, name: bytes) -> bytes:
        """First header of that name, or empty."""
        return first_header(self.headers, name)


class ConnectionOwner(Protocol):
    """The pool, as its connections see it."""

    loop: asyncio.AbstractEventLoop

    def put_back(self, connection: "UpstreamConnection") -> None:
        """Take back a connection that finished its answer and may carry another request."""
        ...

    def forget(self, connection: "UpstreamConnection") -> None:
        """Drop a connection that is gone."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One socket and the answer being read from it. Also the httptools callbacks."""

    def __init__(self, pool: ConnectionOwner) -> None:
        """Connect it with `loop.create_connection`."""
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._probe: socket.socket | None = None
        self._acked_before = 0
        self._encrypted = False
        self._written = 0
        """Bytes of all requests, and what the kernel counts of making the connection."""
        self._parser: httptools.HttpResponseParser | None = None
        self.idle_since = 0.0
        self.untouched = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.received = 0
        """Bytes of the body that were taken."""
        self.head_bytes = 0
        self.has_head = False
        self.complete = False
        self.failure = ""
        self.last_data = 0.0
        self.waiter: asyncio.Future[None] | None = None
        self.sink: Callable[[bytes], bool] | None = None
        """Takes the body as it comes, until it returns False; `stopped` says that it did."""
        self.stopped = False
        self.started = False
        self._paused = False
        self._until_close = False
        self._keep = False

    @property
    def usable(self) -> bool:
        """True while the connection is open and quiet."""
        return self._transport is not None and not self._transport.is_closing() and not self.failure

    def begin(self, request: tuple[bytes, ...], *, reused: bool) -> None:
        """Write a request. `reused`: note what the kernel has had acknowledged, to prove an untouched failure."""
        self._reset()
        self.idle_since = 0.0
        self.untouched = False
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self.started = True
        # all that was written before was acknowledged, or will be: the kernel is asked only where TLS writes more
        self._acked_before = -1 if not reused else self._acked() if self._encrypted else self._written
        if self._transport is None:
            raise UpstreamError("closed", sent=False)
        for part in request:
            self._written += len(part)
            self._transport.write(part)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect: no delay, and a second handle on the socket to ask the kernel by."""
        self._transport = transport  # type: ignore[assignment]
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family in (socket.AF_INET, socket.AF_INET6):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._probe = socket.socket(plain.family, plain.type, fileno=os.dup(plain.fileno()))
        self._encrypted = transport.get_extra_info("ssl_object") is not None
        self._written = self._acked()

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        if not self.started or self._parser is None:
            self.abort()  # an answer nobody asked for
            return
        self.last_data = self._pool.loop.time()
        if not self.has_head:
            self.head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail("malformed")
            return
        if self.sink is not None and self.chunks and self._pour(self.sink):
            return
        if not self.has_head and self.head_bytes > MAX_RESPONSE_HEAD:
            self.fail("malformed")
            return
        if not self._paused and not self.complete and self._transport is not None and self._is_much():
            self._paused = True
            self._transport.pause_reading()
        self.wake()

    def _is_much(self) -> bool:
        return sum(map(len, self.chunks)) > HIGH_WATER

    def _pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Give what arrived to `sink`; False when its coroutine must look (it wants to stop, the body ended, it
        failed).
        """
        try:
            going_on = sink(self.take())
        except Exception as error:  # noqa: BLE001 - the relay's fault must surface in its coroutine, not in the loop's
            self.sink = None
            if self.waiter is not None and not self.waiter.done():
                self.waiter.set_exception(error)
            return True
        if not going_on:
            self.sink, self.stopped = None, True
        return going_on and not self.complete

    def eof_received(self) -> None:
        """Take the end: the upstream will send no more."""
        self._ended(orderly=True)

    def connection_lost(self, _error: Exception | None) -> None:
        """Take the loss of the connection."""
        self._ended(orderly=False)
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        self._transport = None
        self._pool.forget(self)

    # httptools

    def on_message_begin(self) -> None:
        """Begin a message."""
        if self.complete:
            raise ValueError("a second answer to one request")  # the parser stops: it must not be mixed into the first

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the whole head; informational ones (1xx) are passed over, but for the end that a 101 is."""
        parser = self._parser
        if parser is None:
            return
        self.status = parser.get_status_code()
        if self.status < 200 and self.status != SWITCHING:
            return
        names = dict(self.headers)
        self._until_close = b"content-length" not in names and b"transfer-encoding" not in names
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        """Take the end of the answer."""
        if self.status < 200:
            self.headers = []
            return
        if self._until_close and self.status not in (204, 304):
            return
        self.complete = True
        self._keep = self._parser is not None and self._parser.should_keep_alive()

    # for Answer

    def wake(self) -> None:
        """Let the reader look."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> bytes:
        """Take everything buffered; reading goes on if it was paused."""
        chunks = self.chunks
        if len(chunks) == 1:
            data = chunks.pop()
        else:
            data = b"".join(chunks)
            chunks.clear()
        self.received += len(data)
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def finish(self) -> None:
        """Finish a read answer: keep the connection if both sides agree, else close it."""
        self.started = False
        if self._keep and self.usable and not self.chunks:
            self._pool.put_back(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once: the upstream stops working for us."""
        self._keep = False
        if self._transport is not None:
            self._transport.abort()

    def _ended(self, *, orderly: bool) -> None:
        """`orderly` = by a FIN, which acknowledges all that had arrived. A reset does not: it proves nothing."""
        if not self.started:
            self.failure = "closed"
            return
        if orderly and self.has_head and self._until_close and not self.failure:
            self.complete = True
        elif not self.complete:
            if orderly and not self.has_head and not self.headers and not self.failure:
                self.untouched = 0 <= self._acked_before == self._acked()
            self.fail("closed")
        self._keep = False
        self.wake()

    def fail(self, reason: str) -> None:
        """Fail the answer: it will not be whole."""
        self.failure = self.failure or reason
        self._keep = False
        self.wake()

    def _acked(self) -> int:
        """Bytes that the peer's kernel has acknowledged (tcpi_bytes_acked, RFC 4898), -1 if unknown."""
        if self._probe is None:
            return -1
        try:
            info = self._probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES_ACKED + 8)
        except OSError:
            return -1
        if len(info) < TCP_INFO_BYTES_ACKED + 8:
            return -1
        acked: int = struct.unpack_from("@Q", info, TCP_INFO_BYTES_ACKED)[0]
        return acked
