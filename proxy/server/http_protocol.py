"""HTTP in: uvicorn's httptools protocol made strict, and the client's side of an exchange on top of it.

uvicorn with httptools refuses CL+TE, bare LF, obs-fold and duplicate lengths by itself; here we add what it
lets through: two or no Host, absolute-form, endless or slow heads, too many connections; and an offer of another
protocol than our WebSockets is ignored. Refusals at this level are written as OpenAI-shaped JSON and close the
connection.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from config.settings import Listen
from proxy.gateway.endpoints import SOCKETS
from proxy.gateway.upstream.interruption import Interrupted, Interruption
from proxy.server.socket_protocol import GuardedSocket
from proxy.web.connections import ConnectionCaps, Connections
from proxy.web.paths import HEALTH_PATHS
from proxy.web.raw_request import has_any
from proxy.web.rejections import Rejection, bad_request, too_large, too_many, unavailable

log = logging.getLogger("tollkeeper.connections")

LINGER_SECONDS = 1.0
OFFERS = (b"upgrade", b"http2-settings")
"""Headers, and names of them in Connection, by which another protocol is offered."""
CONNECTION = (b"connection",)
LARGE_BODY = 1_048_576
"""Bytes from which a body counts against listen.max_buffered_bytes."""

Receive = Callable[[], Awaitable[Any]]


class HttpLimits:
    """Limits of one connection. Sizes in bytes, times in seconds."""

    __slots__ = (
        "body_bytes",
        "body_seconds",
        "buffered",
        "buffered_bytes",
        "connections",
        "header_bytes",
        "header_seconds",
        "stall_seconds",
        "upload_bytes",
    )

    def __init__(self, listen: Listen, stall_seconds: float) -> None:
        """`stall_seconds`: how long a client may read nothing of its answer."""
        caps = ConnectionCaps(listen.max_connections, listen.max_connections_per_address, listen.trusted_proxies)
        self.connections, self.header_bytes = Connections(caps, _tell_of_address), listen.max_header_bytes
        self.header_seconds, self.body_seconds = listen.header_timeout_seconds, listen.body_timeout_seconds
        self.body_bytes, self.upload_bytes, self.buffered_bytes = (
            listen.max_body_bytes,
            listen.max_upload_bytes,
            listen.max_buffered_bytes,
        )
        self.stall_seconds = stall_seconds
        self.buffered = 0
        """Bytes of large bodies that this process holds now."""


class GuardedProtocol(HttpToolsProtocol):
    """One client connection. `limits` is set on the subclass that `guarded()` makes."""

    limits: HttpLimits

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """See uvicorn."""
        super().__init__(*arguments, **named)
        self.on_disconnect: Callable[[], None] | None = None
        self._head_bytes = 0
        self._in_head = True
        self._ignoring = False
        """The head that was just read offers a protocol that is not spoken here."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._for_health = False
        """This connection has one of the last places, which are for asking whether we are well."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client's connection."""
        super().connection_made(transport)
        place = self.limits.connections.enter(self, self.client[0] if self.client else "", transport.close)
        self._for_health = place == "health"
        if place == "full":
            self._refuse(_too_many())
        elif place == "address":
            message = "Your address has too many connections open here. Close some, or use them again."
            self._refuse(too_many(message, "too_many_connections", 1_000))
        else:
            self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever answers the client at once that it left."""
        self._disarm_head_timer()
        self.limits.connections.leave(self)
        super().connection_lost(exc)
        callback, self.on_disconnect = self.on_disconnect, None
        if callback is not None:
            callback()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        cycle: RequestResponseCycle | None = self.cycle
        if self.transport.is_closing() or (cycle is not None and cycle.response_complete and not cycle.keep_alive):
            return  # we said that this connection ends: nothing that still arrives on it is a request
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes and b"\r\n\r\n" not in data[: self.limits.header_bytes]:
                self._refuse(
                    Rejection(
                        431, "headers_too_large", f"The request head is larger than {self.limits.header_bytes} bytes."
                    )
                )
                return
        self._unset_keepalive_if_required()
        self.limits.connections.work(self)
        self._parse(data)
        if self._in_head and self._head_bytes and self._head_timer is None and not self.transport.is_closing():
            self._arm_head_timer()

    def _parse(self, data: bytes) -> None:
        """Read requests. The parser stops behind the head of one that offers another protocol, and skips its body."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.send_400_response("This is not HTTP.")
            except httptools.HttpParserUpgrade as offer:
                if not self._should_upgrade():
                    data = self._without_offer() + data[offer.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)  # this one may have read that nothing follows
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                    continue
                self.handle_websocket_upgrade()
            return

    def _should_upgrade(self) -> bool:
        """Tell whether the request becomes a WebSocket; any other offer is ignored, as RFC 9110 (7.8) allows."""
        offered = self.parser.get_method() == b"GET" and self.url.partition(b"?")[0] in SOCKETS
        return offered and super()._should_upgrade()

    def _without_offer(self) -> bytes:
        """Write the head that was read anew, as if nothing had been offered in it: the parser then reads its body."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() not in OFFERS)  # noqa: PLW2901
            if name not in OFFERS:
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join((*lines, b"\r\n"))

    def on_response_complete(self) -> None:
        """Take the end of an answer: without another request the connection is idle."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.limits.connections.rest(self, self.transport.close)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to its WebSocket, which counts in its place until it is lost."""
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, GuardedSocket):
            socket.on_lost = partial(self.limits.connections.leave, self)

    def on_message_begin(self) -> None:
        """Begin a new request on this connection."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Refuse what uvicorn would accept; then go on as it does."""
        self._in_head, self._head_bytes = False, 0
        self._disarm_head_timer()
        problem = self._problem()
        if problem:
            raise ValueError(problem)
        if self._for_health and self.url.partition(b"?")[0].decode("ascii") not in HEALTH_PATHS:
            raise _too_many()
        self._ignoring = self.parser.should_upgrade() and not self._should_upgrade()
        if self._ignoring:
            return  # it is read again, without the offer
        self.scope["extensions"] = {"tollkeeper": self}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take the end of a request; what comes next is a head again."""
        if not self._ignoring:
            super().on_message_complete()
        self._in_head = True

    def _problem(self) -> str:
        if not self.url.startswith(b"/") or self.parser.get_method() == b"CONNECT":
            return "The request target must be a path such as /v1/chat/completions."
        if not self.url.isascii():
            return "The request target holds characters outside ASCII: percent-encode them."
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            return "Only HTTP/1.1 and HTTP/1.0 are spoken here."
        names = list(map(itemgetter(0), self.headers))
        if names.count(b"host") != 1:
            return "The request must have exactly one Host header."
        lengths, codings = names.count(b"content-length"), names.count(b"transfer-encoding")
        if codings and lengths:
            return "The request has both Content-Length and Transfer-Encoding."
        if lengths > 1 or codings > 1:
            return "The request gives its length twice."
        if codings and dict(self.headers)[b"transfer-encoding"].lower() != b"chunked":
            return "The only transfer coding accepted here is chunked."
        if 4 * len(names) + sum(map(len, chain.from_iterable(self.headers))) > self.limits.header_bytes:
            return "The request head is too large."
        return ""

    def send_400_response(self, msg: str) -> None:
        """Uvicorn found the request malformed (or `_problem` did, whose words are then in the cause)."""
        error = sys.exc_info()[1]
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        problem = str(cause) if isinstance(cause, ValueError) else f"{msg} Send one well-formed HTTP/1.1 request."
        self._refuse(cause if isinstance(cause, Rejection) else bad_request(problem))

    def _refuse(self, rejection: Rejection) -> None:
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            self.transport.abort()  # whatever we wrote now would be taken for (a part of) that request's answer
            return
        body = rejection.body()
        head = (
            f"HTTP/1.1 {rejection.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        more = b"".join(b"%b: %b\r\n" % header for header in rejection.headers())
        self.transport.write(head.encode() + more + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _arm_head_timer(self) -> None:
        self._disarm_head_timer()
        self._head_timer = self.loop.call_later(self.limits.header_seconds, self._head_too_slow)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self._refuse(Rejection(408, "request_timeout", "The request head did not arrive in time."))


def _too_many() -> Rejection:
    return unavailable("Too many connections. Try again shortly.", "too_many_connections")


def _tell_of_address(address: str) -> None:
    log.warning(
        "%s has listen.max_connections_per_address connections open, and gets no more; if that is a proxy of yours, "
        "name its network in listen.trusted_proxies",
        address,
    )


def guarded(limits: HttpLimits) -> type[GuardedProtocol]:
    """Protocol class with these limits, for uvicorn's `http=`."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


class ClientConnection:
    """The client's side of an exchange, written straight to uvicorn's connection.

    Going through ASGI messages costs 15-20 µs a request more for checks that our own tables make anyway; what is
    kept in step here is the state that uvicorn's keep-alive and pipelining look at.
    """

    __slots__ = ("_cycle", "_framed", "_protocol", "_reserved", "interruption")

    def __init__(self, receive: Receive, protocol: GuardedProtocol) -> None:
        """`receive` is the bound method of uvicorn's cycle.

        Set `interruption` to be told when the client stops reading.
        """
        self._cycle: RequestResponseCycle = receive.__self__  # type: ignore[attr-defined]
        self._protocol = protocol
        self._framed = False
        self._reserved = 0
        self.interruption: Interruption | None = None

    async def read_body(self) -> bytes:
        """See ClientSide."""
        cycle, limits = self._cycle, self._protocol.limits
        head = dict(list(cycle.scope["headers"])[::-1])  # one length at most (see GuardedProtocol._problem)
        length = int(head.get(b"content-length", 0))
        form = head.get(b"content-type", b"")[:10].lower() == b"multipart/"
        most = limits.upload_bytes if form else limits.body_bytes
        codings = cycle.scope["headers"] if b"content-encoding" in head else ()
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in codings):
            raise Rejection(415, "unsupported_content_encoding", "Send the request body uncompressed.")
        if length > most:
            raise too_large(most)
        self._reserve(length)
        if not cycle.more_body and not cycle.disconnected:
            body, cycle.body = bytes(cycle.body), bytearray()
        else:
            body = await self._receive_all(limits, most)
        if len(body) > most:
            raise too_large(most)
        return body

    def let_go(self) -> None:
        """See ClientSide."""
        self._protocol.limits.buffered -= self._reserved
        self._reserved = 0

    def _reserve(self, size: int) -> None:
        """Count a large body against what this process may hold at once. Raises Rejection when that is used up."""
        if size <= max(LARGE_BODY, self._reserved):
            return
        limits = self._protocol.limits
        more = size - self._reserved
        if limits.buffered + more > limits.buffered_bytes:
            raise unavailable(
                "Too many large requests are being read right now. Try again shortly.", "too_many_uploads"
            )
        limits.buffered += more
        self._reserved = size

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """See ClientSide."""
        head = self._head(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send(head if self._cycle.scope["method"] == "HEAD" else head + body)
        self._finish()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """See ClientSide."""
        self._framed = self._cycle.scope["http_version"] != "1.0"
        if self._framed:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        await self._send(self._head(status, headers))

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """See ClientSide."""
        if self._framed:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if last:
                data += b"0\r\n\r\n"
        await self._send(data)
        if last:
            self._finish()

    def write_now(self, data: bytes) -> None:
        """See ClientSide."""
        if not self._cycle.disconnected:
            self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data)

    @property
    def keeps_up(self) -> bool:
        """See ClientSide."""
        return not self._protocol.flow.write_paused

    async def drained(self) -> None:
        """See ClientSide."""
        flow = self._protocol.flow
        if flow.write_paused and not self._cycle.disconnected:
            try:
                async with asyncio.timeout(self._protocol.limits.stall_seconds):
                    await flow.drain()
            except TimeoutError:
                if self.interruption is not None:
                    self.interruption.fire("client_gone")
                raise Interrupted from None

    @property
    def started(self) -> bool:
        """See ClientSide."""
        return self._cycle.response_started

    def abort(self) -> None:
        """See ClientSide. The connection is gone from now on: an answer that stays unfinished is no error of ours."""
        self._cycle.disconnected = True
        self._protocol.transport.abort()

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        cycle = self._cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if cycle.more_body:
            cycle.keep_alive = False  # refused before the body was here: it is not waited for
        if has_any(headers, CONNECTION):
            cycle.keep_alive = False
            headers = [header for header in headers if header[0] != b"connection"]
        lines = b"\r\n".join(map(b": ".join, (*cycle.default_headers, *headers)))
        end = b"\r\n\r\n" if cycle.keep_alive else b"\r\nconnection: close\r\n\r\n"
        return b"".join((STATUS_LINE[status], lines, end))

    def _finish(self) -> None:
        """Finish a whole response: uvicorn goes on with the next request, or closes."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive and cycle.more_body:
            # closing now would reset the connection under the client's hands, before it has read our answer
            self._protocol.loop.call_later(LINGER_SECONDS, self._protocol.transport.close)
        elif not cycle.keep_alive:
            self._protocol.transport.close()
        cycle.on_response()

    async def _send(self, data: bytes) -> None:
        """Write; wait while the client reads slowly. Raises Interrupted when it does not read at all."""
        if not self.keeps_up:
            await self.drained()
        if not self._cycle.disconnected and data:
            self._protocol.transport.write(data)

    async def _receive_all(self, limits: HttpLimits, most: int) -> bytes:
        """Body that is not here yet: within its size and its time."""
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(limits.body_seconds):
                while more:
                    message: Any = await self._cycle.receive()
                    if message["type"] == "http.disconnect":
                        raise Interrupted
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._reserve(size)
                    more = message.get("more_body", False) and size <= most
        except TimeoutError:
            raise Rejection(408, "request_timeout", "The request body did not arrive in time.") from None
        return b"".join(parts)
