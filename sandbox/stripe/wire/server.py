"""Sockets: uvicorn and Starlette in front of the API, the hosted pages and the control paths."""

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import time
from typing import Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandbox.stripe.account.record import Record
from sandbox.stripe.account.settings import Live, Settings
from sandbox.stripe.account.world import World
from sandbox.stripe.api import routes
from sandbox.stripe.api.calls import Answer, Api
from sandbox.stripe.api.faults import Faults
from sandbox.stripe.checkout.browser import HostedPages
from sandbox.stripe.control.paths import CONTROL_PREFIX, Control
from sandbox.stripe.webhooks import endpoints
from sandbox.stripe.webhooks.deliveries import Deliveries
from sandbox.stripe.wire.state_file import StateKeeper

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)
_TICK_S: Final = 0.05
# Linux lends the ports below to connections: one of these is still free at the next start.
_LASTING_PORTS: Final = range(61_000, 65_536)
_TRANSPORT: Final = "sandbox.transport"
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_API_HEADERS: Final = {
    "cache-control": "no-cache, no-store",
    "access-control-allow-origin": "*",
    "stripe-should-retry": "",
    "strict-transport-security": "max-age=63072000; includeSubDomains; preload",
}


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, whose transport the application may get at to reset a connection."""

    def on_message_begin(self) -> None:
        """Start of a request."""
        super().on_message_begin()
        self.scope[_TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]


class Server:
    """A running simulator."""

    def __init__(self, settings: Settings) -> None:
        """Use `start`. Raises UnreadableState, OSError."""
        self.settings = settings
        rng = random.Random(settings.seed) if settings.seed is not None else random.Random()  # noqa: S311 - test ids are no secrets
        self.record = Record(settings.record)
        self.world = World(time.time, rng, self.record, settings.live, settings.account_api_version)
        self.faults = Faults()
        self.deliveries = Deliveries(self.world)
        self.world.on_event = self.deliveries.submit
        self._api = Api(self.world, self.faults, settings.api_key)
        self._keeper = (
            StateKeeper(settings.state, self.world, self._api, self.record, self.deliveries) if settings.state else None
        )
        self._hosted = HostedPages(self.world)
        self._control = Control(self.world, self.record, self.faults, self.deliveries, self.stats)
        self._server: uvicorn.Server
        self._ticking: asyncio.Task[None]
        self.port = 0

    @property
    def url(self) -> str:
        """Base URL for clients (the `api` base address), pages and control paths."""
        return f"http://{self.settings.host}:{self.port}"

    @property
    def live(self) -> Live:
        """The present settings."""
        return self.world.live

    def stats(self) -> dict[str, int]:
        """Count since the start."""
        counts = {kind: len(known) for kind, known in self.world.objects.items()}
        return counts | {"api_calls": self._api.calls, "pending_deliveries": self.deliveries.pending}

    async def open(self) -> None:
        """Listen. Raises OSError, UnreadableState."""
        routes.preload()
        listener = self._listener()
        # asyncio does it only for sockets whose protocol is named; without it each answer waits 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        self.world.base_url = self.settings.public_url or self.url
        if self._keeper is not None:
            self._keeper.restore(self.port)
        endpoints.register_endpoints(self.world, [msgspec.to_builtins(webhook) for webhook in self.settings.webhooks])
        if self._keeper is not None:
            self._keeper.resume()
            # at once, so that a file that cannot be written is said before anything depends on it
            self._keeper.write()
        config = uvicorn.Config(
            self._app(),
            http=_Protocol,
            lifespan="off",
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        config.load()
        server = uvicorn.Server(config)
        # Without uvicorn's own loop: signals belong to whoever started the simulator, and closing need not wait for
        # its next turn.
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        self._server = server
        self._ticking = asyncio.create_task(self._tick())

    def _listener(self) -> socket.socket:
        """Listen on the port asked for; a kept world listens on its last one, or on a free one when that is taken."""
        if self._keeper is not None and not self.settings.port:
            with contextlib.suppress(OSError):
                lasting = self._keeper.port or random.choice(_LASTING_PORTS)  # noqa: S311 - a port is no secret
                return socket.create_server((self.settings.host, lasting), backlog=2048)
        return socket.create_server((self.settings.host, self.settings.port), backlog=2048)

    async def close(self) -> None:
        """Stop listening, and give up what is under way. Raises OSError when the state cannot be written."""
        self._ticking.cancel()
        # Not by uvicorn's shutdown, which waits politely.
        for listening in self._server.servers:
            listening.close()
        for connection in tuple(self._server.server_state.connections):
            connection.transport.abort()
        working = tuple(self._server.server_state.tasks)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        try:
            if self._keeper is not None:
                # before deliveries are given up: what is under way now is sent by the next simulator
                self._keeper.close()
        finally:
            await self.deliveries.close()
            self.record.close()

    async def _tick(self) -> None:
        """Let timers run while no request does it."""
        for count in itertools.count():
            # uvicorn keeps its date header by it.
            await self._server.on_tick(count)
            self.world.run_due()
            if self._keeper is not None:
                self._keeper.write_soon()
            await asyncio.sleep(_TICK_S)

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route(CONTROL_PREFIX + "{rest:path}", self._control_path, methods=_METHODS),
                Route("/v1/{rest:path}", self._api_path, methods=_METHODS),
                Route("/{rest:path}", self._page_path, methods=["GET", "POST"]),
            ]
        )

    def _mark_changed(self, request: Request) -> None:
        """Mark the world as changed by whatever is more than a look."""
        self.world.changed |= request.method != "GET"

    async def _control_path(self, request: Request) -> Response:
        status, body = await self._control.answer(
            request.method, request.url.path, request.url.query, await request.body()
        )
        self._mark_changed(request)
        return Response(msgspec.json.encode(body), status, media_type="application/json")

    async def _page_path(self, request: Request) -> Response:
        shown = self._hosted.answer(request.method, request.url.path, await request.body())
        self._mark_changed(request)
        if shown.location is not None:
            return RedirectResponse(shown.location, shown.status)
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
        return HTMLResponse(shown.html, shown.status, policy | {"cache-control": "no-store"})

    async def _api_path(self, request: Request) -> Response:
        answer = await self._api.answer(
            request.method, request.url.path, request.url.query, request.headers, await request.body()
        )
        self._mark_changed(request)
        fault = answer.fault
        if fault is not None and fault.kind != "status":
            await self._fail(request, fault.hang_s if fault.kind == "timeout" else 0.0, reset=fault.kind == "reset")
        return _response(answer)

    async def _fail(self, request: Request, hang_s: float, *, reset: bool) -> None:
        """End the connection without an answer, after a silence or at once."""
        gone = asyncio.create_task(_disconnected(request))
        await asyncio.wait([gone], timeout=hang_s)
        transport: asyncio.Transport = request.scope[_TRANSPORT]
        raw = transport.get_extra_info("socket")
        if reset and raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        transport.abort()
        await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(answer: Answer) -> Response:
    headers = {name: value for name, value in (_API_HEADERS | answer.headers).items() if value}
    # Indented as Stripe's answers are.
    body = msgspec.json.format(msgspec.json.encode(answer.body), indent=2)
    return Response(body, answer.status, headers, "application/json")


async def start(settings: Settings) -> Server:
    """Listen and serve on the running loop until `Server.close`. Raises OSError, UnreadableState."""
    server = Server(settings)
    await server.open()
    return server
