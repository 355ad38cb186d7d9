"""WebSockets: the client's and the upstream's, frames read between them. What a frame costs is the session's business.

    authenticate → connect upstream → accept → frames both ways (session holds, meters, settles) → close

Text frames only, bounded in size; each direction is one loop that awaits the other side, so a slow reader slows the
sender down.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import certifi
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, Handshake, SocketExchange
from proxy.gateway.upstream.interruption import Interruption
from proxy.gateway.upstream.pool import CONNECT_SECONDS
from proxy.web.asgi import Scope
from proxy.web.rejections import Rejection, bad_gateway, invalid

log = logging.getLogger("tollkeeper.sockets")

BROWSER_KEY = "openai-insecure-api-key."
PROTOCOL = "realtime"
MAX_UPSTREAM_FRAME = 67_108_864
POLICY_VIOLATION = 1008
GOING_AWAY = 1001
INTERNAL_ERROR = 1011
NORMAL = 1000

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


class SocketSession(Protocol):
    """The protocol spoken on one socket, and its cost."""

    def target(self) -> str:
        """Path and query below base_url, from checked values only. Raises Rejection."""
        ...

    def opening(self) -> list[bytes]:
        """Frames of our own to send upstream first."""
        ...

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """Bytes for upstream in place of a client's frame.

        Raises Rejection (told to the client; nothing is sent), Finished.
        """
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

    async def run(self, open_session: "OpenSession") -> None:
        """Live the whole life of the socket. `open_session` makes the session for a key; it may raise Rejection."""
        services, path = self._services, self._scope["raw_path"]
        handshake = Handshake(path, self._scope["headers"], ENDPOINTS.get(path, "none"), self)
        begin = partial(SocketExchange, services, handshake)
        key: ApiKey | None = None
        await self._receive()
        services.live.add(self)
        try:
            key = await services.authenticator.authenticate(self._credentials(), self._scope["client"])
            session = open_session(services, self._scope, key, begin)
            upstream = await self._connect(session)
        except Rejection as rejection:
            refused = begin()
            refused.context.key, refused.context.request_id = key, self.request_id
            await refused.refuse(rejection)
            await self._refuse(rejection)
            return
        finally:
            services.live.discard(self)
        services.live.add(self)
        try:
            async with upstream:
                await self._send(
                    {"type": "websocket.accept", "subprotocol": self._subprotocol(), "headers": self._headers()}
                )
                await self._relay(session, upstream)
        finally:
            services.live.discard(self)

    # -- opening ----------------------------------------------------------------------------------

    def _credentials(self) -> list[tuple[bytes, bytes]]:
        """Headers with the key; a browser, which cannot send Authorization, names it as a sub-protocol."""
        headers: list[tuple[bytes, bytes]] = self._scope["headers"]
        for name in self._scope["subprotocols"]:
            if name.startswith(BROWSER_KEY):
                given = b"Bearer " + name.removeprefix(BROWSER_KEY).encode("latin-1", "replace")
                return [*(pair for pair in headers if pair[0] != b"authorization"), (b"authorization", given)]
        return headers

    def _subprotocol(self) -> str | None:
        return PROTOCOL if PROTOCOL in self._scope["subprotocols"] else None

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self.request_id.encode())]

    async def _connect(self, session: SocketSession) -> ClientConnection:
        """Connect to the upstream. Raises Rejection: a refused handshake, without our account's identity."""
        settings, target = self._services.settings.upstream, session.target()
        base = urlsplit(settings.base_url)
        secure = base.scheme == "https"
        try:
            return await connect(
                f"{'wss' if secure else 'ws'}://{base.netloc}{base.path.rstrip('/')}{target}",
                ssl=ssl.create_default_context(cafile=settings.ca_file or certifi.where()) if secure else None,
                additional_headers={
                    "Authorization": f"Bearer {self._services.upstream_key.reveal()}",
                    "X-Client-Request-Id": self.request_id,
                },
                user_agent_header="tollkeeper",
                open_timeout=CONNECT_SECONDS + settings.first_byte_timeout_seconds,
                max_size=MAX_UPSTREAM_FRAME,
                compression=None,
                proxy=None,
            )
        except InvalidStatus as error:
            raise self._refused(error) from None
        except (OSError, TimeoutError, InvalidHandshake):
            raise bad_gateway(
                "The upstream could not be reached. Nothing was charged; try again.", "upstream_connect"
            ) from None

    def _refused(self, error: InvalidStatus) -> Rejection:
        status = error.response.status_code
        if status in (401, 403) or not 400 <= status < 500:
            return bad_gateway(
                "The upstream refused the connection. Nothing was charged; try again later.", "upstream_refused"
            )
        return Rejection(
            status, "upstream_error", "The upstream refused this connection: check the model and the parameters."
        )

    async def _refuse(self, rejection: Rejection) -> None:
        headers = [(b"content-type", b"application/json"), *self._headers(), *rejection.headers()]
        await self._send({"type": "websocket.http.response.start", "status": rejection.status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": rejection.body()})

    # -- frames -----------------------------------------------------------------------------------

    async def _relay(self, session: SocketSession, upstream: ClientConnection) -> None:
        """Both directions until either ends; then what is still paid for, then the books."""
        client = asyncio.create_task(self._client_side(session, upstream))
        server = asyncio.create_task(self._upstream_side(session, upstream))
        self.interruption.attach(partial(_cancel, client))
        outcome: Outcome = "client_gone"
        closing = Finished(NORMAL, "")
        try:
            await asyncio.wait((client, server), return_when=asyncio.FIRST_COMPLETED)
            closing = _ending(server) if server.done() else _ending(client)
            if self.interruption.reason == "shutdown":
                closing = Finished(GOING_AWAY, "The server is restarting: connect again.")
            if server.done() and closing.code == INTERNAL_ERROR:
                outcome = "upstream_cut"
            if not server.done() and session.waits(gone=client.done() and closing.code == NORMAL):
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

    async def _client_side(self, session: SocketSession, upstream: ClientConnection) -> None:
        for own in session.opening():
            await upstream.send(own.decode())
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            raw = message.get("text")
            frame: Frame = {}
            try:
                if raw is None:
                    raise invalid("Send JSON events as text frames.", code="invalid_event")
                frame = _event(raw)
                sent = await session.from_client(frame, raw.encode())
            except Rejection as rejection:
                await self._send({"type": "websocket.send", "text": session.error(rejection, frame).decode()})
                continue
            if sent:
                await upstream.send(sent.decode())

    async def _upstream_side(self, session: SocketSession, upstream: ClientConnection) -> None:
        try:
            async for message in upstream:
                raw = message.encode() if isinstance(message, str) else message
                passed = await session.from_upstream(decode_object(raw) or {}, raw)
                if passed:
                    await self._send(
                        {
                            "type": "websocket.send",
                            "text": self._services.redactor.redact_key(passed).decode("utf-8", "replace"),
                        }
                    )
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 0
            if code in (NORMAL, GOING_AWAY):
                raise Finished(code, "The upstream closed the session.") from None
            raise Finished(INTERNAL_ERROR, "The upstream broke off.") from None
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


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


def _event(raw: str) -> Frame:
    """Client's frame. Raises Rejection."""
    try:
        frame = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise invalid("The event is not valid JSON.", code="invalid_event") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise invalid("An event is a JSON object with a `type`.", "type", "invalid_event")
    return frame
