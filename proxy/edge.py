"""What stands before the side API and the pages: which listener serves what, security headers, CORS. Raw ASGI; /v1 passes by.

groups   v1      /v1
side    /api/billing, /api/portal, /credits, /webhooks
admin   /api/admin, /admin, /metrics
health  /healthz, /readyz: everywhere
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from config.settings import Settings

Group = Literal["v1", "side", "admin", "health"]
ADMIN_PATHS = ("/api/admin", "/admin", "/metrics")
HEALTH_PATHS = ("/healthz", "/readyz")
CORS_PATHS = ("/api/billing",)
"""Pages sign in by cookie and the admin API is no browser's business: neither answers other origins."""

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
NOT_HERE = b'{"error":{"message":"This is not served on this port.","type":"invalid_request_error","param":null,"code":"not_found"}}'


def group_of(path: str) -> Group:
    """Which group a path belongs to."""
    if path == "/v1" or path.startswith("/v1/"):
        return "v1"
    if path in HEALTH_PATHS:
        return "health"
    return "admin" if _is_under(path, ADMIN_PATHS) else "side"


def groups_by_port(main: int, side: int, admin: int) -> Mapping[int, frozenset[Group]]:
    """Port → what it serves; empty when one listener serves everything. A port of 0 is not listened on."""
    if not side and not admin:
        return {}
    served: dict[int, set[Group]] = {main: {"v1", "health"}}
    served.setdefault(side or main, {"health"}).add("side")
    served.setdefault(admin or main, {"health"}).add("admin")
    return {port: frozenset(groups) for port, groups in served.items()}


class Edge:
    """Wraps the Starlette application of everything but /v1."""

    def __init__(self, app: Any, settings: Callable[[], Settings], count: Callable[[str, int], None]) -> None:
        """`settings`: those in force; `count` is told path and status of every answer."""
        self._app, self._settings, self._count = app, settings, count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        path: str = scope["path"]
        origin = _header(scope, b"origin")
        allowed = origin and _is_under(path, CORS_PATHS) and origin.decode("latin-1") in self._settings().cors.allowed_origins
        if allowed and scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
            await _answer(send, 204, [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), *PREFLIGHT], b"")
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._count(path, message["status"])
                present = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in HEADERS if pair[0] not in present]
                if allowed:
                    more += [(b"access-control-allow-origin", origin), EXPOSED]
                if _is_under(path, CORS_PATHS):
                    more.append((b"vary", b"Origin"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._app(scope, receive, sending)


async def not_on_this_port(send: Any) -> None:
    """404."""
    await _answer(send, 404, [(b"content-type", b"application/json"), *HEADERS], NOT_HERE)


async def _answer(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Any, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _is_under(path: str, bases: tuple[str, ...]) -> bool:
    return any(path == base or path.startswith(f"{base}/") for base in bases)
