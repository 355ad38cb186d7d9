"""Connections to OpenAI: our own pool on httptools, because a streamed answer must cost microseconds.

One request per connection at a time, keep-alive, TLS verified, an exact URL that the operator configured:
nothing of a client's path, query or headers reaches the address. Every wait has a bound. A request is sent
a second time only when the kernel proves that no byte of the first was received (`_Connection.untouched`).
"""

import asyncio
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import certifi
import httptools

from config.secrets import Secret
from config.settings import Upstream

HIGH_WATER = 262_144
LARGE_BODY = 131_072
TCP_INFO_BYTES_ACKED = 120
MAX_RESPONSE_HEAD = 65_536
SWEEP_SECONDS = 0.05
CONNECT_SECONDS = 5.0
"""For TCP and TLS."""
KEEPALIVE_SECONDS = 30.0
"""An idle connection is not used again after this: before OpenAI's end, or a network between, forgets it."""
MAX_RESPONSE_BYTES = 268_435_456
"""Of an answer that is not streamed: it is collected whole."""


class UpstreamError(Exception):
    """The upstream did not give a whole answer. `sent` = it may have begun to work on the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        """`reason` is for logs: connect, busy, closed, malformed, first_byte_timeout, idle_timeout, total_timeout."""
        super().__init__(reason)
        self.reason, self.sent = reason, sent


class Interrupted(Exception):
    """Reading was stopped from outside: the client left, or the server is shutting down."""


class Interruption:
    """The one switch that stops an exchange from outside. Fires once; the first reason stays."""

    __slots__ = ("_wake", "muted", "reason")

    def __init__(self) -> None:
        """Not fired."""
        self.reason = ""
        self.muted = False
        self._wake: Callable[[], None] | None = None

    def fire(self, reason: str) -> None:
        """`client_gone` or `shutdown`."""
        if not self.reason:
            self.reason = reason
        if self._wake is not None:
            self._wake()

    def attach(self, wake: Callable[[], None] | None) -> None:
        """What to call when it fires."""
        self._wake = wake

    def check(self) -> None:
        """Raise Interrupted if it fired, unless whoever reads has muted it to drain the answer."""
        if self.reason and not self.muted:
            raise Interrupted(self.reason)


class Head(NamedTuple):
    """Status line and headers of an answer; names in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def get(self, name: bytes) -> bytes:
        """The first header of that name, or empty."""
        return next((value for key, value in self.headers if key == name), b"")


class UpstreamPool:
    """All connections of this process to the one upstream."""

    def __init__(self, settings: Upstream, key: Secret, user_agent: str) -> None:
        """Call `close()` at the end."""
        base = urlsplit(settings.base_url)
        self._settings = settings
        self._host = base.hostname or ""
        self._tls = _tls_context(settings.ca_file) if base.scheme == "https" else None
        self._port = base.port or (443 if self._tls else 80)
        self._path = base.path.rstrip("/")
        authority = self._host if base.port is None else f"{self._host}:{base.port}"
        self._fixed = (
            f"Host: {authority}\r\nAuthorization: Bearer {key.reveal()}\r\nUser-Agent: {user_agent}\r\nAccept-Encoding: identity\r\n"
        ).encode()
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self.loop = asyncio.get_running_loop()
        self.answers: set[Answer] = set()
        self._sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Look for answers whose time is over: one timer for all, instead of two a request."""
        now = self.loop.time()
        for answer in list(self.answers):
            reason = answer.overdue(now)
            if reason:
                answer.fail(reason)
        self._sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    @property
    def connections(self) -> tuple[int, int]:
        """(open, idle) connections."""
        return len(self._open), len(self._idle)

    async def send(
        self,
        method: str,
        path: str,
        headers: bytes,
        body: bytes,
        interruption: Interruption,
        before_writing: Callable[[], None],
    ) -> "Answer":
        """Send a request to `base_url + path`; return the answer once its head is here.

        `before_writing` is called once connected, right before the first byte goes out. `headers` are
        complete lines (each ending in CRLF), from our own code only. Raises UpstreamError, Interrupted.
        """
        head = b"".join(
            (
                f"{method} {self._path}{path} HTTP/1.1\r\n".encode(),
                self._fixed,
                headers,
                b"Content-Length: %d\r\n\r\n" % len(body) if body or method == "POST" else b"\r\n",
            )
        )
        request = (head, body) if len(body) > LARGE_BODY else (head + body,)  # a large one is not copied for one write
        while True:
            connection = self._take_idle()
            reused = connection is not None
            if connection is None:
                connection = await self._connect()
            answer = Answer(self, connection, self._settings, interruption)
            try:
                before_writing()
                connection.begin(request, reused=reused)
                await answer.wait_head()
            except UpstreamError:
                answer.close()
                if reused and connection.untouched:
                    continue
                raise
            except BaseException:
                answer.close()
                raise
            return answer

    async def close(self) -> None:
        """Close every connection."""
        self._sweep_timer.cancel()
        for connection in list(self._open):
            connection.abort()

    def _take_idle(self) -> "_Connection | None":
        oldest = self.loop.time() - KEEPALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        if len(self._open) >= self._settings.max_connections:
            raise UpstreamError("busy", sent=False)
        connection = _Connection(self)
        self._open.add(connection)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.loop.create_connection(
                    lambda: connection,
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except (OSError, TimeoutError):
            self._open.discard(connection)
            raise UpstreamError("connect", sent=False) from None
        except BaseException:
            self._open.discard(connection)
            connection.abort()
            raise
        return connection

    def put_back(self, connection: "_Connection") -> None:
        """A connection finished its answer and may carry another request."""
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection.idle_since:
            try:
                self._idle.remove(connection)
            except ValueError:
                return


class _Connection(asyncio.Protocol):
    """One socket and the answer being read from it. Also the httptools callbacks."""

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._probe: socket.socket | None = None
        self._acked_before = 0
        self._parser: httptools.HttpResponseParser | None = None
        self.idle_since = 0.0
        self.untouched = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.buffered = 0
        self.head_bytes = 0
        self.has_head = False
        self.complete = False
        self.failure = ""
        self.last_data = 0.0
        self.waiter: asyncio.Future[None] | None = None
        self.deliver: Callable[[], bool] | None = None
        self.started = False
        self._paused = False
        self._until_close = False
        self._keep = False

    @property
    def usable(self) -> bool:
        """Whether the connection is open and quiet."""
        return self._transport is not None and not self._transport.is_closing() and not self.failure

    def begin(self, request: tuple[bytes, ...], *, reused: bool) -> None:
        """Write a request. `reused`: note what the kernel has had acknowledged, to prove an untouched failure."""
        self._reset()
        self.idle_since = 0.0
        self.untouched = False
        self._parser = httptools.HttpResponseParser(self)
        self.started = True
        self._acked_before = self._acked() if reused else -1
        if self._transport is None:
            raise UpstreamError("closed", sent=False)
        for part in request:
            self._transport.write(part)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family in (socket.AF_INET, socket.AF_INET6):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._probe = socket.socket(plain.family, plain.type, fileno=os.dup(plain.fileno()))

    def data_received(self, data: bytes) -> None:
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
        if not self.has_head and self.head_bytes > MAX_RESPONSE_HEAD:
            self.fail("malformed")
            return
        if self.deliver is not None and self.chunks and self._delivered():
            return
        if self.buffered > HIGH_WATER and not self._paused and not self.complete and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self.wake()

    def _delivered(self) -> bool:
        """Give what arrived to the pump; False when its coroutine must look (it wants to stop, the body ended, it
        failed).
        """
        deliver = self.deliver
        try:
            going_on = deliver is not None and deliver()
        except Exception as error:  # the relay's own fault must surface in its coroutine, not in the event loop's
            self.deliver = None
            if self.waiter is not None and not self.waiter.done():
                self.waiter.set_exception(error)
            return True
        if not going_on:
            self.deliver = None
        return going_on and not self.complete

    def eof_received(self) -> None:
        self._ended(orderly=True)

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended(orderly=False)
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        self._transport = None
        self._pool.forget(self)

    # httptools

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("a second answer to one request")  # the parser stops: it must not be mixed into the first

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None:
            return
        self.status = parser.get_status_code()
        if self.status < 200:
            return
        names = {name for name, _ in self.headers}
        self._until_close = b"content-length" not in names and b"transfer-encoding" not in names
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)
        self.buffered += len(body)

    def on_message_complete(self) -> None:
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
        """Everything buffered; reading goes on if it was paused."""
        data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def finish(self) -> None:
        """The answer is read: keep the connection if both sides agree, else close it."""
        self.started = False
        self._parser = None
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
        """The answer will not be whole."""
        self.failure = self.failure or reason
        self._keep = False
        self.wake()

    def _acked(self) -> int:
        """How many bytes the peer's kernel has acknowledged (tcpi_bytes_acked, RFC 4898), -1 if unknown."""
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


class Answer:
    """One answer being read. Not for concurrent readers. Always end with `close()`."""

    __slots__ = (
        "_connection",
        "_deadline",
        "_interruption",
        "_loop",
        "_pool",
        "_settings",
        "_started",
        "head",
        "received",
    )

    def __init__(
        self, pool: UpstreamPool, connection: _Connection, settings: Upstream, interruption: Interruption
    ) -> None:
        self._pool, self._connection, self._settings = pool, connection, settings
        self._loop = pool.loop
        self._started = self._loop.time()
        self._deadline = self._started + settings.total_timeout_seconds
        pool.answers.add(self)
        self._interruption = interruption
        interruption.attach(connection.wake)
        self.head = Head(0, [])
        self.received = 0

    async def wait_head(self) -> None:
        """Wait for status and headers. Raises UpstreamError, Interrupted."""
        connection = self._connection
        while not connection.has_head:
            if connection.failure:
                raise UpstreamError(connection.failure, sent=True)
            await self._wait()
        self.head = Head(connection.status, connection.headers)
        connection.last_data = self._loop.time()

    async def read(self) -> bytes:
        """The next bytes of the body, as much as is there; empty at its end. Raises UpstreamError, Interrupted."""
        connection = self._connection
        while not connection.chunks:
            if connection.complete:
                return b""
            if connection.failure:
                raise UpstreamError(connection.failure, sent=True)
            await self._wait()
        data = connection.take()
        self.received += len(data)
        return data

    async def pump(self, sink: Callable[[bytes], bool]) -> bool:
        """Hand every piece of the body to `sink` as it arrives, from the socket's own callback.

        Returns True when `sink` returned False (call again to go on), False at the body's end. Raises UpstreamError,
        Interrupted, and whatever `sink` raises.
        """
        connection = self._connection
        while True:
            if connection.chunks:
                if not self._hand_over(sink):
                    return True
            elif connection.complete:
                return False
            elif connection.failure:
                raise UpstreamError(connection.failure, sent=True)
            else:
                stopped = False

                def deliver() -> bool:
                    nonlocal stopped
                    stopped = not self._hand_over(sink)
                    return not stopped

                connection.deliver = deliver
                try:
                    await self._wait()
                finally:
                    connection.deliver = None
                if stopped:
                    return True

    def _hand_over(self, sink: Callable[[bytes], bool]) -> bool:
        data = self._connection.take()
        self.received += len(data)
        return sink(data)

    @property
    def finished(self) -> bool:
        """Whether the whole body has arrived and been read."""
        return self._connection.complete and not self._connection.chunks

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else cut it."""
        self._pool.answers.discard(self)
        self._interruption.attach(None)
        connection = self._connection
        if connection.started:
            if connection.complete and not connection.chunks:
                connection.finish()
            else:
                connection.abort()
                connection.started = False

    async def _wait(self) -> None:
        connection = self._connection
        self._interruption.check()
        connection.waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            connection.waiter = None
        self._interruption.check()

    def overdue(self, now: float) -> str:
        """Which bound is passed, if any.

        Silence counts only while we wait for the upstream, not while our client reads slowly.
        """
        connection = self._connection
        if now >= self._deadline:
            return "total_timeout"
        if not connection.has_head:
            return "first_byte_timeout" if now - self._started >= self._settings.first_byte_timeout_seconds else ""
        if connection.waiter is None:
            connection.last_data = now
            return ""
        return "idle_timeout" if now - connection.last_data >= self._settings.idle_timeout_seconds else ""

    def fail(self, reason: str) -> None:
        """Make the reader raise UpstreamError(reason)."""
        self._connection.fail(reason)


def _tls_context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file or certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
