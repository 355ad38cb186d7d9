"""HTTP/1.1 on raw asyncio protocols, so that tests own every byte and every close."""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import deque
from typing import Final, cast
from urllib.parse import unquote

import httptools

from sandbox.openai.api import Api, is_recorded
from sandbox.openai.control.costs import COSTS_PATH, Costs
from sandbox.openai.control.paths import CONTROL_PREFIX, Control
from sandbox.openai.exchange.answer import Answer, Request
from sandbox.openai.exchange.record import Entry, Log
from sandbox.openai.exchange.simulator import Simulator
from sandbox.openai.realtime.calls import Calls
from sandbox.openai.steering.settings import Settings
from sandbox.openai.wire.call_line import CallLine
from sandbox.openai.wire.delivery import Delivery, Stopped
from sandbox.openai.wire.websocket import Socket, is_socket

_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_MAX_PIPELINED: Final = 64
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)
_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE: Final = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Hub:
    """State that all connections share."""

    def __init__(self, settings: Settings) -> None:
        """Open the record file."""
        self.simulator = Simulator(settings)
        self.log = Log(settings.record, settings.record_keep)
        self.calls = Calls(lambda request, call_id: CallLine(request, call_id, self))
        self.api = Api(self.simulator, self.calls)
        self.connections: set[Connection] = set()
        self.connections_total = 0
        self.requests = 0
        self.served = 0
        self.costs = Costs(self.log, settings.admin_key)
        self.control = Control(self.simulator, self.log, self.calls, self.stats)
        self._ids = random.Random()  # noqa: S311 - request ids are no secrets

    def stats(self) -> dict[str, int]:
        """Count since the start; control requests are not counted as requests."""
        return {
            "requests": self.requests,
            "served": self.served,
            "openConnections": len(self.connections),
            "connectionsTotal": self.connections_total,
        }

    def pace(self, answer: Answer) -> tuple[float, float]:
        """Latency and interval of an answer in seconds."""
        live, directives = self.simulator.live, answer.directives
        latency, interval = directives.latency_ms, directives.chunk_interval_ms
        return (
            (live.latency_ms if latency is None else latency) / 1000,
            (live.chunk_interval_ms if interval is None else interval) / 1000,
        )

    def request_id(self) -> str:
        """Return a fresh x-request-id."""
        return f"req_{self._ids.getrandbits(128):032x}"


class Connection(asyncio.Protocol):
    """One client socket; answers its requests one after the other."""

    def __init__(self, hub: Hub) -> None:
        """Make the parser, which data_received feeds."""
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_size = 0
        self._upgrade: Request | None = None
        self._socket: Socket | None = None

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take in a client that has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._hub.connections.add(self)
        self._hub.connections_total += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Cancel the work for a socket that is gone, whoever closed it."""
        self._transport = None
        self._hub.connections.discard(self)
        self._writable.set()
        if self._socket is not None:
            self._socket.lost()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the client."""
        if self._socket is not None:
            self._socket.receive(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrade is None or self._task is not None:
                self._refuse()
                return
            hub = self._hub
            self._socket = Socket(self, self._upgrade, hub, hub.request_id())
            self._socket.receive(data[upgrade.args[0] :])
            self._task = self._loop.create_task(self._serve_socket(self._socket))
        except httptools.HttpParserError:
            self._refuse()

    def _refuse(self) -> None:
        self.write(_BAD_REQUEST)
        self.close()

    def pause_writing(self) -> None:
        """Hold writes: the client reads more slowly than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writes go on: the client has caught up."""
        self._writable.set()

    # -- httptools callbacks ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a request."""
        self._url, self._headers, self._body, self._body_size = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        """Take in the request target, perhaps in parts."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in one header line."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """Answer an expectation of 100-continue, now that all headers are there."""
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Take in a part of the body."""
        self._body_size += len(data)
        if self._body_size <= _MAX_BODY_BYTES:
            self._body.append(data)
        elif self._transport is not None and not self._transport.is_closing():
            self.write(_TOO_LARGE)
            self.close()

    def on_message_complete(self) -> None:
        """Queue a request that has arrived as a whole."""
        path, _, query = self._url.decode("latin-1").partition("?")
        request = Request(
            self._parser.get_method().decode("ascii"),
            unquote(path),
            query,
            self._headers,
            b"".join(self._body),
            self._parser.should_keep_alive(),
            self._parser.get_http_version() == "1.0",
        )
        if self._parser.should_upgrade():
            self._upgrade = request if is_socket(request) else None
            return
        self._waiting.append(request)
        if len(self._waiting) > _MAX_PIPELINED:
            self.close(rst=True)
        elif self._task is None:
            self._task = self._loop.create_task(self._serve())

    # -- delivery.Wire ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand bytes to the socket."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read enough."""
        await self._writable.wait()

    def close(self, *, rst: bool = False) -> None:
        """End the connection: orderly after the bytes written, or by reset."""
        transport = self._transport
        if transport is None:
            return
        if rst:
            raw: socket.socket = transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            transport.abort()
        else:
            transport.close()

    async def hold(self) -> None:
        """Wait for connection_lost, which cancels."""
        await self._loop.create_future()

    # -- serving ---------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while self._waiting:
                if not await self._serve_one(self._waiting.popleft()):
                    self._waiting.clear()
                    self.close()
        except Stopped:
            self._waiting.clear()
        finally:
            self._task = None

    async def _serve_socket(self, opened: Socket) -> None:
        self._hub.requests += 1
        with contextlib.suppress(Stopped):
            await opened.run()
        self._hub.served += 1
        self.close()

    async def _serve_one(self, request: Request) -> bool:
        hub, received = self._hub, time.perf_counter()
        request_id = hub.request_id()
        if request.path.startswith(CONTROL_PREFIX):
            answer = hub.control.answer(request)
            return await Delivery(self, request, answer, None, request_id).run(0, 0, received)
        if request.method == "GET" and request.path == COSTS_PATH:
            answer = hub.costs.answer(request, hub.simulator.live)
            return await Delivery(self, request, answer, None, request_id).run(
                hub.simulator.live.latency_ms / 1000, 0, received
            )
        hub.requests += 1
        entry = self._open_entry(request, request_id)
        try:
            answer = await hub.api.answer(request, entry)
            if entry is not None:
                entry.answer = answer
            latency, interval = hub.pace(answer)
            delivery = Delivery(self, request, answer, entry, request_id)
            reusable = await delivery.run(latency, interval, received)
        finally:
            # Only a lost connection leaves the record open here.
            if entry is not None:
                entry.finish("client_gone")
        hub.served += 1
        return reusable

    def _open_entry(self, request: Request, request_id: str) -> Entry | None:
        if not is_recorded(request.method, request.path):
            return None
        entry = self._hub.log.open_entry(request, request_id)
        entry.read_body()
        self._hub.log.write(entry)
        return entry
