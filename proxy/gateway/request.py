"""One request to /v1: what the books, the log and the metrics know of it, and answering it without an upstream."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable

from billing.ledger.accounts import ApiKey
from billing.money.errors import StoreUnavailable
from proxy.gateway.access_log import log_request, report_account, report_no_answer, report_upstream_error
from proxy.gateway.admission import rates_of
from proxy.gateway.answers.upstream_errors import read_failure
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import ClientSide, Services
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.interruption import Interrupted, Interruption, UpstreamError
from proxy.gateway.upstream.tenants import CANNOT_LOOK_UP
from proxy.web.rate_headers import rate_headers
from proxy.web.rejections import Rejection, bad_gateway, unavailable

Headers = list[tuple[bytes, bytes]]
ERROR_BODY_LIMIT = 65_536
NOT_REACHED = "The upstream could not be reached or broke off. Nothing was charged; try again."
INTERNAL_ERROR = "Something failed on our side. Nothing was charged; try again."


class AnsweredClient:
    """Client that has had its answer: nothing more of the exchange reaches it, or the connection's next request."""

    keeps_up = started = True

    async def read_body(self) -> bytes:
        """See ClientSide: the body was read before."""
        return b""

    def let_go(self) -> None:
        """See ClientSide: it was let go."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """See ClientSide: it was answered."""

    async def start(self, status: int, headers: Headers) -> None:
        """See ClientSide: it was answered."""

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """See ClientSide: it was answered."""

    def write_now(self, _data: bytes) -> bool:
        """See ClientSide: it was answered."""
        return True

    async def drained(self) -> None:
        """See ClientSide: there is nothing to wait for."""

    def abort(self) -> None:
        """See ClientSide: its connection may carry another request by now."""


class RequestContext:
    """One request over HTTP, or one response on a socket. `started` is in monotonic seconds, `started_ms` Unix."""

    __slots__ = (
        "cause",
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
        self.outcome = self.cause = ""
        self.key: ApiKey | None = None


class GatewayRequest(RequestContext):
    """A request over HTTP, with the connection it is answered on."""

    __slots__ = ("client", "hides_azure", "interruption", "peer", "query", "services", "settings", "shown_upstream")

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
        self.shown_upstream = ""
        self.hides_azure = False
        """Azure serves it, one of several: nothing in its answer may tell."""

    def client_left(self) -> None:
        """Take note that the client closed its connection; an answer read unseen is read on for a bounded time."""
        self._stop("client_gone")

    async def answer_late(self, rejection: Rejection) -> None:
        """Answer with a refusal while the upstream goes on: what it still says is read unseen, for a bounded time."""
        await self.reject(rejection)
        self.client.let_go()
        self.client = AnsweredClient()
        self._stop("answered_late")

    def _stop(self, reason: str) -> None:
        self.interruption.fire(reason)
        if self.interruption.muted:
            seconds = self.settings.metering.read_on_seconds
            asyncio.get_running_loop().call_later(seconds, self._stop_reading_on, reason)

    def _stop_reading_on(self, reason: str) -> None:
        self.interruption.muted = False
        self.interruption.fire(reason)

    def count_first_byte(self) -> None:
        """Count the first byte of an answer that goes to the client."""
        elapsed = time.monotonic() - self.started
        self.first_byte_ms = max(1, round(elapsed * 1_000))
        self.services.metrics.observe_first_byte(elapsed)

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def own_headers(self) -> Headers:
        """Limits of the request's key, for its answer, whatever it is, and who served it where that is shown."""
        shown = [(b"x-upstream", self.shown_upstream.encode())] if self.shown_upstream else []
        if self.key is None:
            return shown
        requests, tokens = rates_of(self.key.rules, self.settings.limits)
        if not requests and not tokens:
            return shown
        return [*shown, *rate_headers(requests, tokens, self.services.rates.now(self.key.key_id))]

    async def reject(self, rejection: Rejection) -> None:
        """Answer with a refusal."""
        self.status = rejection.status
        self.outcome = self.outcome or rejection.code
        await self._send_json(rejection.status, rejection.body(), rejection.headers())

    async def answer_by(self, line: Awaitable[None], hold: RequestHold | None = None) -> None:
        """Answer by a line of its own, beside the exchange's; whatever it raises is told. Never raises but for
        cancellation.

        `hold`: of what the line holds for, released here if it is still open.
        """
        services = self.services
        services.live.add(self)
        try:
            await line
        except Rejection as rejection:
            await self.reject(rejection)
        except StoreUnavailable as error:
            services.metrics.count(services.metrics.store_errors, error.store)
            if self.client.started:
                self.client.abort()
            else:
                await self.reject(unavailable(CANNOT_LOOK_UP, "store_unavailable"))
        except UpstreamError as error:
            report_upstream_error(services, self, error)
            if self.client.started:
                self.client.abort()
            else:
                await self.reject(bad_gateway(NOT_REACHED, f"upstream_{error.reason}"))
        except Interrupted:
            self.outcome = self.outcome or self.interruption.reason
            self.client.abort()
        finally:
            services.live.discard(self)
            if hold is not None:
                await hold.release()
            self.client.let_go()
            self.log(hold)

    async def pass_error(self, answer: Answer) -> None:
        """Pass an upstream's error on, without our account's identity, or ours in its place.

        Raises Rejection for what is no error either, and no answer.
        """
        services, status = self.services, answer.head.status
        if not 400 <= status < 600:
            report_no_answer(services, self.request_id, status, answer.head.headers)
            message = f"The upstream answered with status {status}, which is no answer. Nothing was charged."
            raise bad_gateway(message, "upstream_unexpected")
        body = await read_beginning(answer)
        own, account = read_failure(status, body, services.redactor.redact_identity)
        report_account(services, account, status, self.request_id)
        headers = services.redactor.headers(answer.head.headers, self.request_id)
        if own is not None:
            status, body = own.status, own.body()
            ours = (b"content-type", b"x-should-retry") if own.final else (b"content-type",)
            theirs = [pair for pair in headers if pair[0] not in ours]
            headers = [(b"content-type", b"application/json"), *theirs, *own.headers()]
        headers += self.own_headers()
        self.status = self.status or status
        self.outcome = self.outcome or (own.code if own is not None else "upstream_error")
        await self.client.respond(status, headers, services.redactor.redact_identity(body))

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
        headers += self.own_headers()
        if status in (408, 413):
            headers.append((b"connection", b"close"))  # the rest of the body is not waited for
        try:
            await self.client.respond(status, headers, body)
        except Interrupted:
            self.client.abort()

    def log(self, hold: RequestHold | None = None) -> None:
        """Count it and write its line."""
        log_request(self.services, self, hold)


async def read_beginning(answer: Answer) -> bytes:
    """Read the body of an error: as much of it as comes, and as is read by anybody."""
    parts, size = [], 0
    with contextlib.suppress(UpstreamError):  # its status has come
        while size < ERROR_BODY_LIMIT and (data := await answer.read()):
            parts.append(data)
            size += len(data)
    return b"".join(parts)
