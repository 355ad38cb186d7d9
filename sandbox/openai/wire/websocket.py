"""WebSockets: the handshake, messages in, and answers out through the same delivery as HTTP."""

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import parse_qs

import msgspec
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as Frames
from websockets.protocol import Side, State

from sandbox.openai.exchange.answer import Answer, Request
from sandbox.openai.exchange.channel import as_answer
from sandbox.openai.realtime.calls import Calls, SidebandSession
from sandbox.openai.realtime.session import RealtimeSession
from sandbox.openai.requests.errors import ApiError
from sandbox.openai.responses.socket_session import ResponsesSession
from sandbox.openai.wire.delivery import UPSTREAM_HEAD, Delivery, Wire
from sandbox.openai.wire.speaker import Host, Speaker

_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_MESSAGE: Final = 64 * 1024 * 1024
_SESSIONS: Final[dict[str, Callable[["Socket"], "Session"]]] = {
    "/v1/responses": ResponsesSession,
    "/v1/realtime": RealtimeSession,
}


class SocketHost(Host, Protocol):
    """Server as a socket sees it."""

    calls: Calls


class Session(Protocol):
    """Protocol that is spoken on one kind of socket."""

    def check(self) -> None:
        """Raise ApiError when the handshake is to be refused."""

    async def start(self) -> None:
        """Begin, once the socket is open."""

    async def message(self, text: bytes) -> None:
        """Handle one message of the client."""


def is_socket(request: Request) -> bool:
    """Tell the requests that ask for one of the WebSockets served here."""
    wanted = request.headers.get("upgrade", "").lower() == "websocket" and "sec-websocket-key" in request.headers
    return wanted and request.method == "GET" and request.path in _SESSIONS


class Socket(Speaker):
    """One WebSocket, and a Wire for deliveries, which hand over whole frames."""

    def __init__(self, wire: Wire, request: Request, host: SocketHost, request_id: str) -> None:
        """Take `wire`, the connection, and `request`, the handshake."""
        super().__init__(request, host)
        self._wire, self._request_id, self._calls = wire, request_id, host.calls
        self._frames = Frames(Side.SERVER, state=State.OPEN, max_size=_MAX_MESSAGE)
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._parts: list[bytes] = []
        self._orderly = False

    # -- from the connection ---------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Parse bytes of the client."""
        if data:
            self._frames.receive_data(data)
        for frame in self._frames.events_received():
            if isinstance(frame, Frame):
                self._on_frame(frame)
        # Answers to pings and to the closing frame; writing waits for no handshake, clients do.
        for reply in self._frames.data_to_send():
            self._wire.write(reply)
        if self._frames.state is State.CLOSED or isinstance(self._frames.parser_exc, ProtocolError):
            self._messages.put_nowait(None)

    def _on_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._orderly = True
            self._messages.put_nowait(None)
        elif frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            self._parts.append(bytes(frame.data))
            if frame.fin:
                self._messages.put_nowait(b"".join(self._parts))
                self._parts = []

    def end(self) -> None:
        """Close in order: what was listened to has ended."""
        self._frames.send_close(1000)
        for data in self._frames.data_to_send():
            self._wire.write(data)

    # -- delivery.Wire ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand frames to the connection."""
        self._wire.write(data)

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        await self._wire.drain()

    def close(self, *, rst: bool = False) -> None:
        """Cut the connection: no closing frame, that would be orderly."""
        self._wire.close(rst=rst)

    async def hold(self) -> None:
        """Wait for the connection to be lost, which cancels."""
        await self._wire.hold()

    # -- for sessions ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the socket until it is closed."""
        # A refused handshake ends its connection.
        request = msgspec.structs.replace(self.request, keep_alive=False)
        entry = self._host.log.open_entry(request, self._request_id)
        session = self._session()
        try:
            refused = self._refusal(session)
            if refused is not None:
                await Delivery(self._wire, request, refused, entry, self._request_id).run(0, 0, time.perf_counter())
                return
            entry.opened(101)
            self._wire.write(_handshake(self.request, self._request_id))
            await session.start()
            while (text := await self._messages.get()) is not None:
                await session.message(text)
        finally:
            self.lost()
            self._calls.forget(self)
            entry.finish("completed" if self._orderly else "client_gone")

    def _session(self) -> Session:
        if "call_id" in parse_qs(self.request.query):
            return SidebandSession(self, self, self._calls)
        return _SESSIONS[self.request.path](self)

    def _refusal(self, session: Session) -> Answer | None:
        """Return the answer to a handshake that fails."""
        try:
            self.simulator.authenticate(self.request)
            session.check()
        except ApiError as error:
            return as_answer(error)
        return self.simulator.standing_failure()


def _handshake(request: Request, request_id: str) -> bytes:
    key = request.headers["sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode("ascii")  # noqa: S324 - RFC 6455
    offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]
    chosen = "sec-websocket-protocol: realtime\r\n" if "realtime" in offered else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-accept: {accept}\r\n{chosen}x-request-id: {request_id}\r\n{UPSTREAM_HEAD}\r\n"
    ).encode("latin-1")
