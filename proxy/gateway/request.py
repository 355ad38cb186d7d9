"""One request to /v1: what the books, the log and the metrics know of it, and answering it without an upstream."""

import asyncio
import os
import time

from billing.ledger.accounts import ApiKey
from proxy.gateway.access_log import log_request
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import ClientSide, Services
from proxy.gateway.upstream.interruption import Interrupted, Interruption
from proxy.web.rejections import Rejection

Headers = list[tuple[bytes, bytes]]
INTERNAL_ERROR = "Something failed on our side. Nothing was charged; try again."


class RequestContext:
    """One request over HTTP, or one response on a socket. `started` is in monotonic seconds, `started_ms` Unix."""

    __slots__ = (
        "endpoint",
        "first_byte_ms",
        "headers",
        "key",
        "method",
        "outcome",
        "path",
        "request_id",
        "started",
        "started_ms",
        "status",
        "trace",
    )

    def __init__(self, services: Services, method: str, path: bytes, headers: Headers, endpoint: str = "none") -> None:
        """`path` is the raw path; `headers` have lower-case names; `endpoint` as in endpoints.py once it is known."""
        self.method, self.path, self.headers, self.endpoint = method, path, headers, endpoint
        self.request_id = "req_" + os.urandom(16).hex()
        self.trace = services.tracing.begin(headers)
        self.started, self.started_ms = time.monotonic(), time.time_ns() // 1_000_000
        self.status = self.first_byte_ms = 0
        self.outcome = ""
        self.key: ApiKey | None = None


class GatewayRequest(RequestContext):
    """A request over HTTP, with the connection it is answered on."""

    __slots__ = ("client", "interruption", "peer", "query", "services", "settings")

    def __init__(
        self,
        services: Services,
        client: ClientSide,
        method: str,
        path: bytes,
        headers: Headers,
        query: bytes = b"",
        peer: tuple[str, int] | None = None,
    ) -> None:
        """`peer`: host and port of who is connected."""
        super().__init__(services, method, path, headers)
        self.services, self.client, self.query, self.peer = services, client, query, peer
        self.settings = services.settings  # the same for the whole request, also when they change meanwhile
        self.interruption = Interruption()

    def client_left(self) -> None:
        """Take note that the client closed its connection; an answer read unseen is read on for a bounded time."""
        self.interruption.fire("client_gone")
        if self.interruption.muted:
            seconds = self.settings.metering.read_on_seconds
            asyncio.get_running_loop().call_later(seconds, self._stop_reading_on)

    def _stop_reading_on(self) -> None:
        self.interruption.muted = False
        self.interruption.fire("client_gone")

    def count_first_byte(self) -> None:
        """Count the first byte of an answer that goes to the client."""
        elapsed = time.monotonic() - self.started
        self.first_byte_ms = max(1, round(elapsed * 1_000))
        self.services.metrics.observe_first_byte(elapsed)

    async def reject(self, rejection: Rejection) -> None:
        """Answer with a refusal."""
        self.status = rejection.status
        self.outcome = self.outcome or rejection.code
        await self._send_json(rejection.status, rejection.body(), rejection.headers())

    async def fail(self) -> None:
        """Our own fault: say so, or break off what has begun."""
        if self.client.started:
            self.client.abort()
        else:
            await self.reject(Rejection(500, "internal_error", INTERNAL_ERROR, kind="server_error"))

    async def answer_json(self, body: bytes) -> None:
        """Answer 200 with our own JSON."""
        self.status, self.outcome = 200, "completed"
        await self._send_json(200, body, [])

    async def _send_json(self, status: int, body: bytes, more: Headers) -> None:
        headers = [(b"content-type", b"application/json"), (b"x-request-id", self.request_id.encode()), *more]
        if status in (408, 413):
            headers.append((b"connection", b"close"))  # the rest of the body is not waited for
        try:
            await self.client.respond(status, headers, body)
        except Interrupted:
            self.client.abort()

    def log(self, hold: RequestHold | None = None) -> None:
        """Count it and write its line."""
        log_request(self.services, self, hold)
