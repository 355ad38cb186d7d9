"""The edge before the side API and the pages: which listener serves what, security headers, CORS. Raw ASGI; /v1
passes by.

groups   v1      /v1
side    /api/billing, /api/portal, /credits, /webhooks, /openapi.json
app     of /api/admin what the operator's own app needs: with side for its role alone, with admin for everybody's
admin   the rest of /api/admin, /admin, /metrics
health  /healthz, /readyz: everywhere
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_network
from typing import Any

from config.settings import Settings
from proxy.gateway.access_log import CLIENT_CLOSED
from proxy.observability.log import RequestLog
from proxy.web.asgi import Receive, Scope, Send
from proxy.web.client_address import client_address
from proxy.web.origin import ORIGIN_KEY, RequestOrigin, choose_request_id, header_value
from proxy.web.paths import HEALTH_PATHS, Group, is_under

CORS_PATHS = ("/api/billing",)
"""Pages sign in by cookie and the admin API is no browser's business: neither answers other origins."""

TOKEN_PATHS = ("/api/billing/balance", "/api/billing/packages", "/api/billing/checkout")
"""Of these, the ones that a token is good for: its origins may call them too."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Set where the answer does not set its own."""
PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, PUT"),
    (b"access-control-allow-headers", b"authorization, content-type, idempotency-key"),
    (b"access-control-max-age", b"600"),
)
EXPOSED = (b"access-control-expose-headers", b"x-request-id, retry-after")
UNLOGGED_PATHS = (*HEALTH_PATHS, "/metrics")
"""Asked every few seconds by machines, for ever."""
NOT_HERE = (
    b'{"error":{"message":"This is not served on this port.","type":"invalid_request_error",'
    b'"param":null,"code":"not_found"}}'
)
NOT_HERE_HEADERS = [(b"content-type", b"application/json"), *HEADERS]


def groups_by_port(main: int, side: int, admin: int) -> Mapping[int, frozenset[Group]]:
    """Port → what it serves; empty when one listener serves everything. A port of 0 is not listened on."""
    if not side and not admin:
        return {}
    served: dict[int, set[Group]] = {main: {"v1", "health"}}
    served.setdefault(side or main, {"health"}).update(("side", "app"))
    served.setdefault(admin or main, {"health"}).update(("admin", "app"))
    return {port: frozenset(groups) for port, groups in served.items()}


class Edge:
    """Wraps the Starlette application of everything but /v1."""

    def __init__(
        self,
        app: Any,
        settings: Callable[[], Settings],
        count: Callable[[str, int], None],
        log: RequestLog,
        sharing: Callable[[str, list[tuple[bytes, bytes]]], Awaitable[bytes | None]],
    ) -> None:
        """Stand before `app`. `settings`: those in force; `count` hears path and status of every answer; `sharing`: see
        TokenOrigins.
        """
        self._sharing = sharing
        self._app, self._settings, self._count, self._log = app, settings, count, log
        self._trusted = [ip_network(network) for network in settings().listen.trusted_proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        started, path = time.monotonic(), scope["path"]
        asked = scope[ORIGIN_KEY] = RequestOrigin(choose_request_id(scope), client_address(scope, self._trusted))
        status = 0

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", asked.request_id.encode())]}
            await send(message)

        try:
            await self._answered(scope, receive, noting)
        finally:
            if path not in UNLOGGED_PATHS:
                self._log.side_request(
                    {
                        "request_id": asked.request_id,
                        "method": scope["method"][:20],
                        # as it is written in our table: what stands in a path may be anything
                        "path": getattr(scope.get("route"), "path", ""),
                        "status": status or CLIENT_CLOSED,
                        "duration_ms": round((time.monotonic() - started) * 1_000),
                    }
                )

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        origin = header_value(scope, b"origin")
        allowed = (
            origin and is_under(path, CORS_PATHS) and origin.decode("latin-1") in self._settings().cors.allowed_origins
        ) or (path in TOKEN_PATHS and await self._sharing(scope["method"], scope["headers"]) is not None)
        if allowed and scope["method"] == "OPTIONS" and header_value(scope, b"access-control-request-method"):
            await _answer(send, 204, [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), *PREFLIGHT], b"")
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._count(path, message["status"])
                present = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in HEADERS if pair[0] not in present]
                if allowed:
                    more += [(b"access-control-allow-origin", origin), EXPOSED]
                if is_under(path, CORS_PATHS):
                    more.append((b"vary", b"Origin"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._app(scope, receive, sending)


async def not_on_this_port(send: Send) -> None:
    """404."""
    await _answer(send, 404, NOT_HERE_HEADERS, NOT_HERE)


async def refuse_socket(receive: Receive, send: Send) -> None:
    """404 instead of a handshake."""
    await receive()
    await send({"type": "websocket.http.response.start", "status": 404, "headers": NOT_HERE_HEADERS})
    await send({"type": "websocket.http.response.body", "body": NOT_HERE})


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})
