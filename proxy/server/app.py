"""The ASGI application of one worker: /v1 goes to the gateway, the rest to Starlette."""

import contextlib
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, get_args

from billing.ledger.accounts import ApiKey
from config.secrets import Secret
from config.settings import Settings
from config.watch import Edits
from proxy.gateway.batches.creation import BATCHES_PATH, BatchExchange
from proxy.gateway.callers.origins import PREFLIGHT, shared_headers
from proxy.gateway.calls.routes import answer_voice, is_voice
from proxy.gateway.calls.shared_client import SharedClient
from proxy.gateway.endpoints import METERED, MODEL_PREFIX, MODELS_PATH, VOICE_PREFIX
from proxy.gateway.exchange import Exchange
from proxy.gateway.request import GatewayRequest
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin
from proxy.gateway.sockets.realtime import RealtimeSession, query_of
from proxy.gateway.sockets.relay import REALTIME_PATH, Socket, SocketSession
from proxy.gateway.sockets.responses import ResponsesSession
from proxy.gateway.sockets.transcription_session import TranscriptionSession
from proxy.gateway.unmetered.models import answer_models
from proxy.gateway.unmetered.objects import answer_object, is_object_path
from proxy.gateway.vector_stores.search import VectorSearch, is_search
from proxy.server.edge import NOT_HERE, NOT_HERE_HEADERS, not_on_this_port, refuse_socket
from proxy.server.transport.client_connection import ClientConnection
from proxy.server.wiring import Wired, Wiring
from proxy.web.asgi import Receive, Scope, Send
from proxy.web.paths import APP_ONLY, Group, group_of

log = logging.getLogger("tollkeeper.app")

Ports = Mapping[int, frozenset[Group]]
ALL_GROUPS = frozenset(get_args(Group))
NO_PORTS: Ports = {}


class Application:
    """The ASGI application of one worker."""

    def __init__(
        self,
        settings: Settings,
        upstream_keys: Mapping[str, Secret],
        *,
        with_jobs: bool,
        edits: Edits | None = None,
        ports: Ports = NO_PORTS,
        counter: bytes | None = None,
    ) -> None:
        """`with_jobs`: this process also flushes, relays and reaps (the embedded store's only process).

        `upstream_keys` by the names of the upstreams; `edits`: of the file, to follow; `ports`: the groups that each
        listener serves, empty when there is one; `counter`: the counting process's address, where there is one.
        """
        self._with_jobs, self._ports = with_jobs, ports
        self._stack = contextlib.AsyncExitStack()
        self._settings, self._keys, self._edits, self._counter = settings, upstream_keys, edits, counter
        self._wired: Wired | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dispatch one connection event."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        wired = self._wired
        if wired is None:
            return
        groups = self._ports.get(scope["server"][1], ()) if self._ports else ALL_GROUPS
        served = groups is ALL_GROUPS or group_of(scope["path"]) in groups
        scope[APP_ONLY] = "admin" not in groups
        if scope["type"] == "websocket":
            socket = Socket(wired.services, scope, receive, send)
            await (socket.run(_open_session) if served else refuse_socket(receive, send))
            return
        if not served:
            await not_on_this_port(send)
            return
        await wired.side(scope, receive, send)

    async def answer(self, client: ClientConnection) -> None:
        """Answer one request under /v1."""
        wired = self._wired
        if wired is None:
            client.abort()
        elif self._ports and "v1" not in self._ports.get(client.port or 0, ()):
            await client.respond(404, NOT_HERE_HEADERS, NOT_HERE)
        else:
            await _answer(wired, client)

    def interrupt_all(self) -> None:
        """End every live exchange: what it has relayed is settled."""
        if self._wired is not None:
            for request in list(self._wired.services.live):
                request.interruption.fire("shutdown")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            wiring = Wiring(self._settings, self._keys, self._edits, self._counter, self._stack)
            self._wired = await wiring.build(with_jobs=self._with_jobs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, uvicorn must hear that the start failed
            log.error("cannot start: %s", error)  # noqa: TRY400 - an operator reads a sentence, not a traceback
            await self._stack.aclose()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})


async def _answer(wired: Wired, client: ClientConnection) -> None:
    services, path, method = wired.services, client.path, client.method
    request = GatewayRequest(services, client, method, path, client.headers, client.query, client.peer)
    client.interruption, client.on_lost = request.interruption, request.client_left
    try:
        if b"origin" in client.headers.by_name and await _answer_preflight(request, client):
            return
        await _line_of(request, wired)
    except Exception:
        # the edge: a fault of ours becomes a 500 in OpenAI's shape (or a broken connection), never a wrong answer
        log.exception("request %s failed", request.request_id)
        await request.fail()
    finally:
        client.on_lost = None


async def _answer_preflight(request: GatewayRequest, client: ClientConnection) -> bool:
    """Share the answer with a page of another origin, if it may have it; True where a browser only asked whether."""
    origin = await request.services.token_origins.sharing(request.method, request.headers)
    if origin is None or is_voice(request.method, request.path):
        return False
    request.client = SharedClient(client, shared_headers(origin))
    if request.method == "OPTIONS":
        await client.respond(204, [*shared_headers(origin), *PREFLIGHT], b"")
        return True
    return False


def _line_of(request: GatewayRequest, wired: Wired) -> Coroutine[Any, Any, None]:
    """Line that answers a request of its kind, to be awaited."""
    method, path = request.method, request.path
    if (method, path) in METERED:
        return Exchange(request).run()
    if method == "GET" and (path == MODELS_PATH or path.startswith(MODEL_PREFIX)):
        return answer_models(request)
    if (method, path) == ("POST", BATCHES_PATH):
        return BatchExchange(request).run()
    if path.startswith(VOICE_PREFIX) and is_voice(method, path):
        return answer_voice(request, wired.calls)
    if is_search(method, path):
        return VectorSearch(request).run()
    if is_object_path(path):
        return answer_object(request)
    return Exchange(request).run()  # which refuses it in words


def _open_session(services: Services, scope: Scope, key: ApiKey, begin: Begin) -> SocketSession:
    """Open the session of a WebSocket. Raises Rejection."""
    if scope["raw_path"] == REALTIME_PATH:
        if query_of(scope["query_string"]) == {"intent": "transcription"}:
            return TranscriptionSession(services, key, begin)
        return RealtimeSession(services, key, scope["query_string"], begin)
    return ResponsesSession(services, key, begin)  # the transport lets no other path through
