"""The client's side of an exchange, on a connection of uvicorn's.

It stands where uvicorn would make a cycle for ASGI: a scope, an event and messages for each request cost 20 to 25 µs of
checks that our own tables make anyway. What is public and in no ClientSide is what uvicorn's connection looks at, for
keep-alive, pipelining and shutting down.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from proxy.gateway.upstream.interruption import Interrupted, Interruption
from proxy.server.transport.limits import HttpLimits
from proxy.web.raw_request import Headers, SentHeaders, every_header, has_any
from proxy.web.rejections import Rejection, too_large, unavailable

LARGE_BODY = 1_048_576
"""Bytes from which a body counts against listen.max_buffered_bytes."""
WAITING_BYTES = 65_536
"""Of a body that nobody has asked for yet: no more is read of it."""
SMALL_PIECE = 4_096
"""Smaller pieces of a body are put together: each in an object of its own would take twenty times its bytes."""
NO_CONTENT = 204
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CONNECTION = (b"connection",)
IDENTITY = b"identity"


class Carrier(Protocol):
    """The connection of uvicorn's that requests come on, one after the other."""

    limits: HttpLimits
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    server_state: ServerState
    server: tuple[str, int | None] | None
    client: tuple[str, int] | None

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        ...

    def end(self, *, unread: bool) -> None:
        """Close behind an answer; `unread`: the client may still be sending."""
        ...


class ClientConnection:
    """One request on a client's connection, and its answer."""

    __slots__ = (
        "_chunks",
        "_framed",
        "_protocol",
        "_reserved",
        "_size",
        "_waiter",
        "_wanted",
        "disconnected",
        "headers",
        "interruption",
        "keep_alive",
        "method",
        "more_body",
        "on_lost",
        "path",
        "query",
        "response_complete",
        "response_started",
        "task",
        "waiting_for_100_continue",
    )

    def __init__(
        self,
        protocol: Carrier,
        method: str,
        target: bytes,
        headers: SentHeaders,
        *,
        framed: bool,
        keep_alive: bool,
    ) -> None:
        """`target`: path and query, as sent.

        `framed`: an answer of unknown length comes in chunks; else it ends where the connection does.
        """
        self._protocol = protocol
        self.method, self.headers = method, headers
        self.path, _, self.query = target.partition(b"?")
        self._framed, self.keep_alive = framed, keep_alive
        self.waiting_for_100_continue = False
        self._chunks: list[bytes | bytearray] = []
        self._size = self._reserved = 0
        self._wanted = False
        self._waiter: asyncio.Future[None] | None = None
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.on_lost: Callable[[], None] | None = None
        """Called once, when the client has closed its connection before its answer was whole."""
        self.interruption: Interruption | None = None
        """Told when the client has read nothing of its answer for too long."""
        self.task: asyncio.Task[None] | None = None
        """What answers it, once it has begun."""

    # -- for the connection -----------------------------------------------------------------------------

    def take_body(self, data: bytes) -> None:
        """Take bytes of the body."""
        chunks = self._chunks
        last = chunks[-1] if chunks and len(data) < SMALL_PIECE else data
        if last is data:
            chunks.append(data)
        elif isinstance(last, bytearray) and len(last) < WAITING_BYTES:
            last += data
        else:
            chunks.append(bytearray(data))
        self._size += len(data)
        if not self._wanted and self._size > WAITING_BYTES:
            self._protocol.flow.pause_reading()
        self.set()

    @property
    def message_event(self) -> "ClientConnection":
        """Return itself: uvicorn sets it when the connection was lost, or the body is whole."""
        return self

    def set(self) -> None:
        """Let who waits for the body look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self) -> None:
        """Take note that the connection is gone."""
        self.disconnected = True
        self.set()
        callback, self.on_lost = self.on_lost, None
        if callback is not None:
            callback()

    # -- for the exchange -------------------------------------------------------------------------------

    @property
    def peer(self) -> tuple[str, int] | None:
        """Host and port of who is connected."""
        return self._protocol.client

    @property
    def port(self) -> int | None:
        """Port that it is connected to."""
        server = self._protocol.server
        return server[1] if server else None

    async def read_body(self) -> bytes:
        """See ClientSide."""
        limits, head = self._protocol.limits, self.headers.by_name
        length = int(head.get(b"content-length", 0))
        form = head.get(b"content-type", b"")[:10].lower() == b"multipart/"
        most = limits.upload_bytes if form else limits.body_bytes
        codings = every_header(self.headers, b"content-encoding")
        if codings and any(coding.lower() != IDENTITY for coding in codings):
            raise Rejection(415, "unsupported_content_encoding", "Send the request body uncompressed.")
        if length > most:
            raise too_large(most)
        self._reserve(length)
        if self.more_body or self.disconnected:
            await self._receive_rest(limits, most)
        elif self._size > WAITING_BYTES:
            self._protocol.flow.resume_reading()  # else nobody would see its client leave
        if self._size > most:
            raise too_large(most)
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)

    async def _receive_rest(self, limits: HttpLimits, most: int) -> None:
        """Wait for a body that is not here yet: within its size and its time. Raises Rejection, Interrupted."""
        protocol, self._wanted = self._protocol, True
        if self.waiting_for_100_continue and not protocol.transport.is_closing():
            protocol.transport.write(CONTINUE)
            self.waiting_for_100_continue = False
        protocol.flow.resume_reading()
        try:
            async with asyncio.timeout(limits.body_seconds):
                while self.more_body and not self.disconnected and self._size <= most:
                    self._waiter = protocol.loop.create_future()
                    await self._waiter
                    self._reserve(self._size)
        except TimeoutError:
            raise Rejection(408, "request_timeout", "The request body did not arrive in time.") from None
        finally:
            self._waiter, self._wanted = None, False  # of a body that is refused no more is kept
        if self.disconnected:
            raise Interrupted

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

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """See ClientSide."""
        length = () if status == NO_CONTENT else ((b"content-length", b"%d" % len(body)),)
        head = self._head(status, [*headers, *length])
        await self._send(head if self.method == "HEAD" else head + body)
        self._finish()

    async def start(self, status: int, headers: Headers) -> None:
        """See ClientSide."""
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

    def write_now(self, data: bytes) -> bool:
        """See ClientSide."""
        protocol = self._protocol
        if not self.disconnected:
            protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data)
        return not protocol.flow.write_paused

    @property
    def keeps_up(self) -> bool:
        """See ClientSide."""
        return not self._protocol.flow.write_paused

    async def drained(self) -> None:
        """See ClientSide."""
        flow = self._protocol.flow
        if flow.write_paused and not self.disconnected:
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
        return self.response_started

    def abort(self) -> None:
        """See ClientSide. The connection is gone from now on: an answer that stays unfinished is no error of ours."""
        if not self.disconnected:  # else it is closed, or a refusal of its body is on its way
            self.disconnected = True
            self._protocol.transport.abort()

    def _head(self, status: int, headers: Headers) -> bytes:
        self.response_started = True
        self.waiting_for_100_continue = False
        if self.more_body:
            self.keep_alive = False  # refused before the body was here: it is not waited for
        if has_any(headers, CONNECTION):
            self.keep_alive = False
            headers = [header for header in headers if header[0] != b"connection"]
        lines = b"\r\n".join(map(b": ".join, (*self._protocol.server_state.default_headers, *headers)))
        end = b"\r\n\r\n" if self.keep_alive else b"\r\nconnection: close\r\n\r\n"
        return b"".join((STATUS_LINE[status], lines, end))

    def _finish(self) -> None:
        """Finish a whole response: uvicorn goes on with the next request, or closes."""
        if self.disconnected:
            return
        self.response_complete = True
        protocol = self._protocol
        if not self.keep_alive:
            protocol.end(unread=self.more_body)
        protocol.on_response_complete()

    async def _send(self, data: bytes) -> None:
        """Write; wait while the client reads slowly. Raises Interrupted when it does not read at all."""
        if self._protocol.flow.write_paused:
            await self.drained()
        if not self.disconnected and data:
            self._protocol.transport.write(data)
