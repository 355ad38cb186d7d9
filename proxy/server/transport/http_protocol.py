"""HTTP in: uvicorn's httptools protocol made strict. What is under /v1 is answered from here, without ASGI.

uvicorn with httptools refuses CL+TE, bare LF, obs-fold and duplicate lengths by itself; here we add what it
lets through: two or no Host, absolute-form, endless or slow heads, too many connections; and an offer of another
protocol than our WebSockets is ignored. Refusals at this level are written as OpenAI-shaped JSON and close the
connection.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.gateway.endpoints import SOCKETS
from proxy.server.transport.client_connection import ClientConnection
from proxy.server.transport.limits import HttpLimits
from proxy.server.transport.socket_protocol import GuardedSocket
from proxy.web.paths import HEALTH_PATHS
from proxy.web.raw_request import Headers, SentHeaders
from proxy.web.rejections import Rejection, bad_request, too_many, unavailable

OFFERS = (b"upgrade", b"http2-settings")
"""Headers, and names of them in Connection, by which another protocol is offered."""
V1, UNDER_V1 = b"/v1", b"/v1/"
CHUNKED = b"chunked"
LINGER_SECONDS = 1.0
MOST_PIPELINED = 8
"""Requests that may wait behind the one that is answered: who is not read is not seen to leave either."""


class _Trailers(Headers):
    """Bin for trailers, which uvicorn appends to a request's headers once its head is whole."""

    def append(self, _header: tuple[bytes, bytes]) -> None:
        """Drop it: a trailer is no header (RFC 9110, 6.5.1), and there may be any number of them."""


TRAILERS = _Trailers()
Answer = Callable[[ClientConnection], Coroutine[Any, Any, None]]
"""What answers a request under /v1. Never raises but for cancellation."""


class GuardedProtocol(HttpToolsProtocol):
    """One client connection. `limits` and `answer` are set on the subclass that `guarded()` makes."""

    limits: HttpLimits
    answer: Answer

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """See uvicorn."""
        super().__init__(*arguments, **named)
        self._answered: ClientConnection | None = None
        """What is answered now; those behind it wait in uvicorn's pipeline."""
        self._head_bytes = self._received = self._reading = self._head_from = 0
        """Bytes of the head so far; those of the connection, those of them that are being read, and those before the
        read in which the head began."""
        self._beside_body = 0
        """Bytes of a request behind its head that came since the last piece of its body: trailers, chunk extensions."""
        self._in_head = True
        self._ignoring = False
        """The head that was just read offers a protocol that is not spoken here."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._ended = False
        """Nothing that still arrives on this connection is a request."""
        self._refusal: Rejection | None = None
        """What is said when the requests before it have their answers."""
        self._for_health = False
        """This connection has one of the last places, which are for asking whether we are well."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client's connection."""
        super().connection_made(transport)
        place = self.limits.connections.enter(self, self.client[0] if self.client else "", transport.close)
        self._for_health = place == "health"
        if place == "full":
            self._turn_away(_too_many())
        elif place == "address":
            message = "Your address has too many connections open here. Close some, or use them again."
            self._turn_away(too_many(message, "too_many_connections", 1_000))
        else:
            self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever answers the client at once that it left."""
        self._disarm_head_timer()
        self.limits.connections.leave(self)
        super().connection_lost(exc)
        if self._answered is not None:
            self._answered.lost()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._ended or self.transport.is_closing() or (cycle and cycle.response_complete and not cycle.keep_alive):
            return  # we said that this connection ends: nothing that still arrives on it is a request
        self._received += len(data)
        self._reading = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        elif self._beside_body > self.limits.header_bytes:
            message = f"More than {self.limits.header_bytes} bytes of trailers or chunk extensions."
            self._refuse(Rejection(431, "headers_too_large", message))
            return
        else:
            self._beside_body += len(data)
        self._unset_keepalive_if_required()
        self.limits.connections.work(self)
        self._parse(data)
        if self._in_head and self._head_bytes and not self._ended:
            if self._head_bytes > self.limits.header_bytes:
                self._refuse(self._head_too_large())
            elif self._head_timer is None and not self.transport.is_closing():
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
        """Tell whether the request becomes a WebSocket; any other offer is ignored, as RFC 9110 (7.8) allows.

        So is one that was sent behind a request whose answer is not whole: the two would be written into each other;
        and HTTP/1.0 knows no offers.
        """
        before: ClientConnection | RequestResponseCycle | None = self.cycle
        free = (before is None or before.response_complete) and self.parser.get_http_version() != "1.0"
        offered = free and self.parser.get_method() == b"GET" and self.url.partition(b"?")[0] in SOCKETS
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
            if self._refusal is not None:
                self._end_refusing(self._refusal)
            self.limits.connections.rest(self, self.transport.close)
        elif len(self.pipeline) >= MOST_PIPELINED:
            self.flow.pause_reading()  # uvicorn reads on, and each answer would let in more than it takes away

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to its WebSocket, which counts in its place until it is lost."""
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, GuardedSocket):
            socket.on_lost = partial(self.limits.connections.leave, self)

    def on_message_begin(self) -> None:
        """Begin a new request on this connection."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._in_head, self._head_from = True, self._received - self._reading
        self._head_bytes = self._head_bytes or 1  # of one that begins behind another request in a read, too

    def on_headers_complete(self) -> None:
        """Refuse what uvicorn would accept; begin what is ours to answer, and leave the rest to uvicorn."""
        self._in_head, self._head_bytes, self._beside_body = False, 0, 0
        self._disarm_head_timer()
        method, version, headers = self.parser.get_method(), self.parser.get_http_version(), SentHeaders(self.headers)
        problem = self._problem(method, version, headers)
        if problem:
            raise ValueError(problem)
        limit = self.limits.header_bytes  # no head is longer than what was read since it began
        if self._received - self._head_from > limit and len(self.url) + _size(headers) > limit:
            raise self._head_too_large()
        target = self.url.partition(b"#")[0] if b"#" in self.url else self.url
        if self._for_health and target.partition(b"?")[0].decode("ascii") not in HEALTH_PATHS:
            raise _too_many()
        offered = self.parser.should_upgrade()
        self._ignoring = offered and not self._should_upgrade()
        if self._ignoring:
            return  # it is read again, without the offer
        if offered or not (target.startswith(UNDER_V1) or target.partition(b"?")[0] == V1):
            self._begin_asgi()
            return
        framed = version != "1.0"
        keep_alive = framed and self.parser.should_keep_alive()
        client = ClientConnection(self, method.decode("ascii"), target, headers, framed=framed, keep_alive=keep_alive)
        client.waiting_for_100_continue = framed and self.expect_100_continue  # HTTP/1.0 knows no 100
        self.headers = TRAILERS
        before: ClientConnection | RequestResponseCycle | None = self.cycle
        self.cycle = client  # type: ignore[assignment]  # it has what uvicorn looks at
        if before is None or before.response_complete:
            self.limits.turns.take(self.loop, partial(self._begin, client))
        else:
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self.pipeline) >= MOST_PIPELINED:
                self.flow.pause_reading()

    def _begin_asgi(self) -> None:
        """Let uvicorn take the request from here, as if it had begun it."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        expects = expects and self.parser.get_http_version() != "1.0"
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # the scope has this list
        paused = self.flow.read_paused
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.headers = TRAILERS
        if not paused and len(self.pipeline) < MOST_PIPELINED:
            self.flow.resume_reading()  # it waits: uvicorn reads no more, and would not see its client leave

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Begin a request: one of uvicorn's, or one of ours that waited in its pipeline."""
        if isinstance(cycle, ClientConnection):
            self._begin(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, client: ClientConnection) -> None:
        if client.disconnected or self.transport.is_closing():
            return  # it left while it waited for its turn, with all that it had asked for
        self._answered = client
        client.task = self.loop.create_task(self._answer(client))
        self.tasks.add(client.task)

    async def _answer(self, client: ClientConnection) -> None:
        """Answer a request; one that is not answered whole breaks the connection."""
        try:
            await self.answer(client)
        finally:
            if client.task is not None:
                self.tasks.discard(client.task)
            if self._answered is client:
                self._answered = None
            if not client.response_complete and not client.disconnected:
                self.transport.close()

    def on_body(self, body: bytes) -> None:
        """Take bytes of a body; what comes behind an answer is of no use to anybody."""
        self._beside_body = 0
        cycle: Any = self.cycle
        if not isinstance(cycle, ClientConnection):
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.take_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request; what comes next is a head again."""
        if not self._ignoring:
            super().on_message_complete()
            cycle: RequestResponseCycle | None = self.cycle
            if cycle is not None and not self.parser.should_keep_alive():
                cycle.keep_alive = False  # the parser obeys a trailer, too, and reads nothing behind it
        self._in_head = True

    def _problem(self, method: bytes, version: str, headers: SentHeaders) -> str:
        """Say what is wrong with a head, "" for nothing."""
        if not self.url.startswith(b"/") or method == b"CONNECT":
            return "The request target must be a path such as /v1/chat/completions."
        if not self.url.isascii():
            return "The request target holds characters outside ASCII: percent-encode them."
        if version not in ("1.0", "1.1"):
            return "Only HTTP/1.1 and HTTP/1.0 are spoken here."
        by_name = headers.by_name
        names = list(map(itemgetter(0), headers)) if len(by_name) != len(headers) else ()
        if b"host" not in by_name or names.count(b"host") > 1:
            return "The request must have exactly one Host header."
        if b"transfer-encoding" in by_name and b"content-length" in by_name:
            return "The request has both Content-Length and Transfer-Encoding."
        if names.count(b"content-length") > 1 or names.count(b"transfer-encoding") > 1:
            return "The request gives its length twice."
        if by_name.get(b"transfer-encoding", CHUNKED).lower() != CHUNKED:
            return "The only transfer coding accepted here is chunked."
        return ""

    def send_400_response(self, msg: str) -> None:
        """Uvicorn found the request malformed (or `_problem` did, whose words are then in the cause)."""
        error = sys.exc_info()[1]
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        problem = str(cause) if isinstance(cause, ValueError) else f"{msg} Send one well-formed HTTP/1.1 request."
        self._refuse(cause if isinstance(cause, Rejection) else bad_request(problem))

    def _refuse(self, rejection: Rejection) -> None:
        """Refuse what cannot be read, and all that follows it: behind the answers to what was sent before it."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = True
        self._disarm_head_timer()
        cycle: ClientConnection | RequestResponseCycle | None = self.cycle
        if self.pipeline:
            if self.pipeline[0][0].more_body:
                self.pipeline.popleft()  # it is the one whose body cannot be read
            self._refusal = rejection
        elif cycle is None or cycle.response_complete:
            self._end_refusing(rejection)
        elif not cycle.more_body:
            self._refusal = rejection
        elif cycle.response_started:
            self.transport.abort()  # whatever we wrote now would be taken for a part of its answer
        else:
            self._end_refusing(rejection)
            if isinstance(cycle, ClientConnection):
                cycle.lost()  # its body never comes
            else:
                cycle.disconnected = True
                cycle.message_event.set()

    def _end_refusing(self, rejection: Rejection) -> None:
        self._write_refusal(rejection)
        self.end(unread=True)

    def _turn_away(self, rejection: Rejection) -> None:
        """Refuse a connection that has no place: it does not stay to be read."""
        self._write_refusal(rejection)
        self.transport.close()

    def _write_refusal(self, rejection: Rejection) -> None:
        body = rejection.body()
        head = (
            f"HTTP/1.1 {rejection.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        more = b"".join(b"%b: %b\r\n" % header for header in rejection.headers())
        self.transport.write(head.encode() + more + b"connection: close\r\n\r\n" + body)

    def end(self, *, unread: bool) -> None:
        """Close behind an answer. See Carrier.

        Closing while something is unread resets the connection, and takes from the client what it has not read yet
        (RFC 9112, 9.6): we say that nothing follows, and go on reading for a while.
        """
        self._ended, self._refusal = True, None  # what stands behind such an answer gets none, not even a refusal
        if (unread or self.pipeline or self.flow.read_paused) and not self.transport.is_closing():
            self.pipeline.clear()
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _head_too_large(self) -> Rejection:
        limit = self.limits.header_bytes
        return Rejection(431, "headers_too_large", f"The request head is larger than {limit} bytes.")

    def _arm_head_timer(self) -> None:
        self._disarm_head_timer()
        self._head_timer = self.loop.call_later(self.limits.header_seconds, self._head_too_slow)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._arm_head_timer()  # a part of the next head is no hurry before the answer, and we may not be reading
        elif self._in_head and not self.transport.is_closing():
            self._refuse(Rejection(408, "request_timeout", "The request head did not arrive in time."))


def _too_many() -> Rejection:
    return unavailable("Too many connections. Try again shortly.", "too_many_connections")


def _size(headers: Headers) -> int:
    return 4 * len(headers) + sum(map(len, chain.from_iterable(headers)))


def guarded(limits: HttpLimits, answer: Answer) -> type[GuardedProtocol]:
    """Protocol class with these limits, for uvicorn's `http=`; `answer` answers what is under /v1."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits, "answer": staticmethod(answer)})
