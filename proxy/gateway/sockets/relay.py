"""WebSockets: the client's and the upstream's, frames read between them. What a frame costs is the session's business.

    authenticate → standing → seat → (connect upstream) → accept → frames both ways (session holds, meters, settles)
      → close

Text frames only, bounded in size; each direction is one loop that awaits the other side, so a slow reader slows the
sender down. The upstream is connected to with the first frame that goes there, but where the client is owed a frame
before (`SocketSession.speaks_first`). A socket on which nothing is asked for is closed after a while.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import msgspec
from websockets.exceptions import ConnectionClosed

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.access_log import report_account
from proxy.gateway.admission import admit
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.upstream_errors import masked
from proxy.gateway.bodies.json_body import mended, refuse_twins
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.limits.free_calls import free_limits
from proxy.gateway.limits.standing import check_standing
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, Handshake
from proxy.gateway.sockets.upstream_link import UpstreamLink
from proxy.gateway.upstream.interruption import Interruption
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Needs
from proxy.gateway.workload.body_shape import is_heavy
from proxy.web.asgi import Scope
from proxy.web.raw_request import query_pairs
from proxy.web.rejections import Rejection, invalid

log = logging.getLogger("tollkeeper.sockets")

BROWSER_KEY = "openai-insecure-api-key."
PROTOCOL = "realtime"
POLICY_VIOLATION = 1008
GOING_AWAY = 1001
INTERNAL_ERROR = 1011
NORMAL = 1000
UNAVAILABLE = 503

REALTIME_PATH, RESPONSES_PATH = b"/v1/realtime", b"/v1/responses"
ENDPOINTS = {REALTIME_PATH: REALTIME.name, RESPONSES_PATH: "/v1/responses"}
"""Raw path → the name of its endpoint."""

Frame = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Finished(Exception):
    """The session is over and the socket is to be closed, after a last frame for the client."""

    def __init__(self, code: int, reason: str, last: bytes = b"") -> None:
        """`last` is sent before closing with `code`."""
        super().__init__(reason)
        self.code, self.reason, self.last = code, reason, last


class BrokeOff(Finished):
    """The upstream broke the connection off."""


class SocketSession(Protocol):
    """The protocol spoken on one socket, and its cost.

    `speaks_first`: the upstream does, before the client has said anything.
    """

    speaks_first: bool

    def target(self) -> str:
        """Path and query below base_url, from checked values only. Raises Rejection."""
        ...

    def least(self) -> int:
        """Millicredits of the smallest hold that anything on this socket needs. Raises Rejection."""
        ...

    def opening(self) -> list[bytes]:
        """Frames of our own to send upstream first."""
        ...

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """Bytes for upstream in place of a client's frame.

        Raises Rejection (told to the client; nothing is sent), Finished.
        """
        ...

    async def sending(self) -> None:
        """Take note that what `from_client` returned goes upstream now, which is connected. Raises Finished."""
        ...

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """Bytes for the client in place of an upstream's frame; empty = nothing. Raises Finished."""
        ...

    def error(self, rejection: Rejection, frame: Frame) -> bytes:
        """Refusal as an event of this protocol."""
        ...

    def waits(self, *, gone: bool) -> bool:
        """Tell whether something that was paid for is still to come (`gone`: for nobody, but its usage is wanted)."""
        ...

    async def end(self, outcome: Outcome) -> None:
        """Settle or release everything that is still held."""
        ...


OpenSession = Callable[[Services, Any, ApiKey, Begin], SocketSession]
"""Makes the session of a socket's scope for a key. Raises Rejection."""


class Socket:
    """One client's WebSocket and the one behind it."""

    def __init__(
        self,
        services: Services,
        scope: Scope,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """ASGI's three."""
        self._services, self._scope, self._receive, self._send = services, scope, receive, send
        self.interruption = Interruption()
        self.request_id = "req_" + os.urandom(16).hex()
        self._over = False
        """One side has ended: what is paid for is read on, and no more."""
        self._gone = False
        """The client's side has, in order: it is read for nobody."""

    async def run(self, open_session: "OpenSession") -> None:
        """Live the whole life of the socket. `open_session` makes the session for a key; it may raise Rejection."""
        services, path = self._services, self._scope["raw_path"]
        handshake = Handshake(path, self._scope["headers"], ENDPOINTS.get(path, "none"), self)
        begin = Begin(services, handshake)
        opening = begin()  # the handshake, should it be refused
        opening.context.request_id = self.request_id
        await self._receive()
        async with contextlib.AsyncExitStack() as open_now:
            services.live.add(self)
            open_now.callback(services.live.discard, self)
            try:
                key = await services.authenticator.authenticate(self._credentials(), self._scope["client"], tokens=True)
                opening.context.key = key
                begin.belongs_to(key.home_id)
                begin.members = self._members(key)
                session = open_session(services, self._scope, key, begin)
                await self._check_standing(key, session.least())
                open_now.enter_context(self._seat(key))
                upstream = UpstreamLink(services, begin, session.target, session.opening, opening.context, open_now)
                if session.speaks_first:
                    await upstream.connect()
            except Rejection as rejection:
                await opening.refuse(rejection)
                await self._refuse(rejection)
                return
            head = {"subprotocol": self._subprotocol(), "headers": self._headers()}
            await self._send({"type": "websocket.accept", **head})
            await self._relay(session, upstream, key)

    # -- opening ----------------------------------------------------------------------------------

    def _members(self, key: ApiKey) -> list[Member]:
        """Find the upstreams that may be behind this socket, in the order in which they are asked. Raises Rejection."""
        query = dict(query_pairs(self._scope["query_string"]))
        needs = Needs(query.get("model", ""), key.region, socket=True, home=key.account_id)
        services = self._services
        return services.upstreams.route(needs).members[: services.settings.failover.tries]

    def _credentials(self) -> list[tuple[bytes, bytes]]:
        """Headers with the key; a browser, which cannot send Authorization, names it as a sub-protocol."""
        headers: list[tuple[bytes, bytes]] = self._scope["headers"]
        for name in self._scope["subprotocols"]:
            if name.startswith(BROWSER_KEY):
                given = b"Bearer " + name.removeprefix(BROWSER_KEY).encode("latin-1", "replace")
                return [*(pair for pair in headers if pair[0] != b"authorization"), (b"authorization", given)]
        return headers

    async def _check_standing(self, key: ApiKey, least: int) -> None:
        """Refuse whom nothing could be served. Raises Rejection.

        What cannot be read now is not known to be gone.
        """
        services = self._services
        free = admit(services.settings, key.home_id, services.overloaded)
        try:
            await check_standing(services, key, self.request_id, now_ms(), free=free, least=least)
        except Rejection as rejection:
            if rejection.status != UNAVAILABLE:
                raise

    def _seat(self, key: ApiKey) -> contextlib.AbstractContextManager[None]:
        """Seat of a socket, within what a key and an address may have, and a key may open. Raises Rejection."""
        services, listen = self._services, self._services.settings.listen
        limits = free_limits(key, services.settings.limits, now_ms())
        services.seats.count_handshake(key.key_id, limits.requests_per_minute, time.monotonic())
        address = services.authenticator.address_of(self._scope["client"], self._scope["headers"])
        of_key = [most for most in (limits.concurrency, listen.max_sockets_per_key) if most]
        of_address = listen.max_sockets_per_address
        return services.seats.seat(key.key_id, address, of_key=min(of_key, default=0), of_address=of_address)

    def _subprotocol(self) -> str | None:
        return PROTOCOL if PROTOCOL in self._scope["subprotocols"] else None

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self.request_id.encode())]

    async def _refuse(self, rejection: Rejection) -> None:
        headers = [(b"content-type", b"application/json"), *self._headers(), *rejection.headers()]
        await self._send({"type": "websocket.http.response.start", "status": rejection.status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": rejection.body()})

    # -- frames -----------------------------------------------------------------------------------

    async def _relay(self, session: SocketSession, upstream: UpstreamLink, key: ApiKey) -> None:
        """Both directions until either ends; then what is still paid for, then the books."""
        client = asyncio.create_task(self._client_side(session, upstream, key))
        server = asyncio.create_task(self._upstream_side(session, upstream))
        self.interruption.attach(partial(_cancel, client))
        outcome: Outcome = "shutdown"
        closing = Finished(NORMAL, "")
        try:
            await asyncio.wait((client, server), return_when=asyncio.FIRST_COMPLETED)
            closing = _ending(server) if server.done() else _ending(client)
            if self.interruption.reason == "shutdown":
                closing = Finished(GOING_AWAY, "The server is restarting: connect again.")
            outcome = _outcome(client, server, closing)
            self._over, self._gone = True, client.done() and closing.code == NORMAL
            if upstream.connected and not server.done() and session.waits(gone=self._gone):
                await asyncio.wait((server,), timeout=self._services.settings.metering.read_on_seconds)
        finally:
            for task in (client, server):
                task.cancel()
            await asyncio.gather(client, server, return_exceptions=True)
            await session.end("shutdown" if self.interruption.reason == "shutdown" else outcome)
        with contextlib.suppress(Exception):  # the client may be gone
            if closing.last:
                await self._send({"type": "websocket.send", "text": closing.last.decode()})
            await self._send({"type": "websocket.close", "code": closing.code, "reason": closing.reason[:120]})

    async def _client_side(self, session: SocketSession, upstream: UpstreamLink, key: ApiKey) -> None:
        while True:
            message = await self._next(session)
            if message["type"] == "websocket.disconnect":
                return
            raw = message.get("text")
            frame: Frame = {}
            try:
                if raw is None:
                    raise invalid("Send JSON events as text frames.", code="invalid_event")
                frame = await self._read(raw.encode(), key)
                sent = await session.from_client(frame, raw.encode())
                if sent and not upstream.connected:
                    await self._connect_late(session, upstream)
            except Rejection as rejection:
                await self._tell(session.error(rejection, frame).decode())
                continue
            if sent:
                await session.sending()
                await upstream.send(sent)

    async def _tell(self, text: str) -> None:
        """Send the client an event. One that has left hears no more, and what it asked for is read on all the same."""
        with contextlib.suppress(OSError):  # ASGI says so: it has left
            await self._send({"type": "websocket.send", "text": text})

    async def _connect_late(self, session: SocketSession, upstream: UpstreamLink) -> None:
        """Connect with what was held for already. Raises Rejection; then nothing is held."""
        try:
            await upstream.connect()
        except Rejection:
            await session.end("upstream_error")
            raise

    async def _next(self, session: SocketSession) -> Any:
        """Next message of the client. Raises Finished when none comes for long and nothing is waited for."""
        idle = self._services.settings.listen.socket_idle_seconds
        while True:
            try:
                async with asyncio.timeout(idle or None):
                    return await self._receive()
            except TimeoutError:
                if not session.waits(gone=False):
                    raise Finished(NORMAL, f"Nothing was asked for in {idle} s: connect again.") from None

    async def _read(self, raw: bytes, key: ApiKey) -> Frame:
        """Client's frame; one that is work is read for who could be served. Raises Rejection."""
        if is_heavy(raw):
            await self._check_standing(key, 1)
        return await self._services.bodies.read(raw, b"", _event)

    def _masked(self, frame: Frame, raw: bytes) -> tuple[Frame, bytes]:
        """Take what is about our own account out of a frame that tells an error."""
        account, changed = masked(frame)
        report_account(self._services, account, 0, self.request_id)
        return (frame, raw) if changed is None else (changed, msgspec.json.encode(changed))

    async def _upstream_side(self, session: SocketSession, upstream: UpstreamLink) -> None:
        try:
            async for message in await upstream.opened:
                raw = message.encode() if isinstance(message, str) else message
                frame = decode_object(raw) or {}
                if b'"error"' in raw:
                    frame, raw = self._masked(frame, raw)
                passed = await session.from_upstream(frame, raw)
                if passed:
                    await self._tell(self._services.redactor.redact_key(passed).decode("utf-8", "replace"))
                if self._over and not session.waits(gone=self._gone):
                    return
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 0
            if code in (NORMAL, GOING_AWAY):
                raise Finished(code, "The upstream closed the session.") from None
            raise BrokeOff(INTERNAL_ERROR, "The upstream broke off.") from None
        raise Finished(NORMAL, "The upstream closed the session.")


def _ending(task: "asyncio.Task[None]") -> Finished:
    """End of a direction, as a close."""
    if task.cancelled():
        return Finished(GOING_AWAY, "")
    error = task.exception()
    if error is None:
        return Finished(NORMAL, "")
    if isinstance(error, Finished):
        return error
    if not isinstance(error, ConnectionClosed):
        log.error("a socket's session failed", exc_info=error)
    return Finished(INTERNAL_ERROR, "Something went wrong on our side.")


def _outcome(client: "asyncio.Task[None]", server: "asyncio.Task[None]", closing: Finished) -> Outcome:
    """How the responses end that have not ended when a socket does: by who ended it. What is ours is nobody else's."""
    if server.done():
        by_upstream = isinstance(closing, BrokeOff) or closing.code in (NORMAL, GOING_AWAY)
        return "upstream_cut" if by_upstream else "shutdown"
    return "shutdown" if client.cancelled() or client.exception() is not None else "client_gone"


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


def _event(raw: bytes, _content_type: bytes) -> Frame:
    """Client's frame. Raises Rejection."""
    try:
        frame = refuse_twins(mended(raw))
    except Rejection as rejection:
        message = rejection.message.replace("request body", "event")
        raise invalid(message, rejection.param, "invalid_event") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise invalid("An event is a JSON object with a `type`.", "type", "invalid_event")
    return frame
