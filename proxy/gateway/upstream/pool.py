"""Connections to one upstream: our own pool on httptools, because a streamed answer must cost microseconds.

One request per connection at a time, keep-alive, TLS verified, an exact URL that the operator configured:
nothing of a client's path, query or headers reaches the address. Every wait has a bound. A request is sent
a second time only when the kernel proves that no byte of the first was received (`UpstreamConnection.untouched`).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

import certifi

from config.settings import Upstream
from proxy.gateway.upstream.answer import Answer, AnswerLate, Early
from proxy.gateway.upstream.connection import UpstreamConnection
from proxy.gateway.upstream.interruption import Interruption, UpstreamError, connect_cause

LARGE_BODY = 131_072
SWEEP_SECONDS = 0.2
"""Between looks for answers whose time is over: their times are seconds."""
CONNECT_SECONDS = 5.0
"""For TCP and TLS."""
KEEPALIVE_SECONDS = 30.0
"""An idle connection is not used again after this: before OpenAI's end, or a network between, forgets it."""


class UpstreamPool:
    """All connections of this process to one upstream."""

    def __init__(self, settings: Upstream, credentials: bytes, user_agent: str) -> None:
        """`credentials`: lines of headers that say who we are. Call `close()` at the end."""
        base = urlsplit(settings.base_url)
        self._settings = settings
        self._host = base.hostname or ""
        self._tls = _tls_context(settings.ca_file) if base.scheme == "https" else None
        self._port = base.port or (443 if self._tls else 80)
        self._path = base.path.rstrip("/")
        authority = self._host if base.port is None else f"{self._host}:{base.port}"
        self._before = f"Host: {authority}\r\n".encode()
        self._after = f"User-Agent: {user_agent}\r\nAccept-Encoding: identity\r\n".encode()
        self._fixed = self._before + credentials + self._after
        self._retired = False
        self._idle: deque[UpstreamConnection] = deque()
        self._open: set[UpstreamConnection] = set()
        self._sockets = 0
        self.loop = asyncio.get_running_loop()
        self._waiting: set[Answer] = set()
        self._sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def use(self, credentials: bytes) -> None:
        """Say with these who we are, from the next request on."""
        self._fixed = self._before + credentials + self._after

    def retire(self) -> None:
        """Send no more: what is in flight comes to its end, and then nothing is left."""
        self._retired = True
        for connection in list(self._idle):
            connection.abort()

    def _sweep(self) -> None:
        """Look for answers whose time is over: one timer for all, instead of two a request.

        Once retired it goes on for as long as somebody may still wait here.
        """
        now = self.loop.time()
        for answer in list(self._waiting):
            reason = answer.overdue(now)
            if reason:
                answer.fail(reason)
        if not self._retired or self._open:
            self._sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    @property
    def connections(self) -> tuple[int, int]:
        """(open, idle) connections; WebSockets are open ones."""
        return len(self._open) + self._sockets, len(self._idle)

    def check_place(self) -> None:
        """Look whether one connection more may be opened. Raises UpstreamError (busy)."""
        if len(self._open) + self._sockets >= self._settings.max_connections:
            raise UpstreamError("busy", sent=False)

    def open_socket(self) -> Callable[[], None]:
        """Count a WebSocket to the upstream among the connections until what is returned is called.

        Raises UpstreamError (busy).
        """
        if self._idle and len(self._open) + self._sockets >= self._settings.max_connections:
            longest_idle = self._idle.popleft()
            self._open.discard(longest_idle)
            longest_idle.abort()
        self.check_place()
        self._sockets += 1
        closed = False

        def close() -> None:
            nonlocal closed
            self._sockets -= not closed
            closed = True

        return close

    async def send(
        self,
        method: str,
        path: str,
        headers: bytes,
        body: bytes,
        interruption: Interruption,
        before_writing: Callable[[], None],
        answer_late: AnswerLate | None = None,
        early: Early | None = None,
    ) -> "Answer":
        """Send a request to `base_url + path`; return the answer once its head is here.

        `before_writing` is called once connected, right before the first byte goes out; `answer_late` once
        when the head is late, and it is waited for on; `early`: what to do before that. `headers` are complete lines
        (each ending in CRLF), from our own code only. Raises UpstreamError, Interrupted.
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
            answer = Answer(self._waiting, connection, self._settings, interruption, self.loop)
            try:
                before_writing()
                connection.begin(request, reused=reused)
                await answer.wait_head(answer_late, early)
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

    def _take_idle(self) -> "UpstreamConnection | None":
        oldest = self.loop.time() - KEEPALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "UpstreamConnection":
        self.check_place()
        connection = UpstreamConnection(self)
        if self._retired and not self._open:  # for who had chosen it before, and nobody looks any more
            self._sweep_timer.cancel()
            self._sweep_timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)
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
        except (OSError, TimeoutError) as error:
            self._open.discard(connection)
            raise UpstreamError("connect", sent=False, cause=connect_cause(error)) from None
        except BaseException:
            self._open.discard(connection)
            connection.abort()
            raise
        return connection

    def put_back(self, connection: "UpstreamConnection") -> None:
        """Take back a connection that finished its answer and may carry another request."""
        if self._retired:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: "UpstreamConnection") -> None:
        """Drop a connection that is gone."""
        self._open.discard(connection)
        if connection.idle_since:
            try:
                self._idle.remove(connection)
            except ValueError:
                return


def _tls_context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file or certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
