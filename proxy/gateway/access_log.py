"""A request that ended, by HTTP or on a socket, as operators see it: counters, times, one line of the log, its span."""

import re
import time
from typing import Protocol

from msgspec import UNSET

from billing.ledger.accounts import ApiKey
from billing.money.usage import Usage
from billing.storage.database import now_ms
from config.upstreams import DEFAULT_NAME
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import Services
from proxy.gateway.upstream.interruption import UpstreamError
from proxy.gateway.upstream.route import Served
from proxy.observability.log import AccessLine, printable
from proxy.observability.tracing import Headers, Trace
from proxy.web.raw_request import first_header

CLIENT_CLOSED = 499
BY_DEFAULT, NO_USAGE = Served(), Usage()
LONGEST_LOCATION = 300
PRINTABLE = re.compile(rb"[^\x21-\x7e]")
USERINFO = re.compile(rb"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)[^/]*@")
CLIENT_REQUEST_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")


class EndedRequest(Protocol):
    """A request that ended; see request.RequestContext. `status` 0: its client left before it had one."""

    request_id: str
    headers: Headers
    trace: Trace
    key: ApiKey | None
    method: str
    path: bytes
    endpoint: str
    status: int
    outcome: str
    cause: str
    started: float
    first_byte_ms: int


def log_request(services: Services, ended: EndedRequest, hold: RequestHold | None) -> None:
    """Count it and write its line. `hold`: its money, None where it was never to cost anything."""
    key, status, metrics = ended.key, ended.status or CLIENT_CLOSED, services.metrics
    metrics.count_answer(ended.endpoint, status, ended.outcome or "unknown")
    usage, served, model, charged, held = NO_USAGE, BY_DEFAULT, "", 0, 0
    if hold is not None:
        usage, served, model, charged, held = hold.usage, hold.served, hold.model, hold.charged, hold.amount
        if hold.sent_at:
            metrics.observe_forwarded(hold.sent_at - ended.started)
    sent_id = first_header(ended.headers, b"x-client-request-id")
    by_default = served == BY_DEFAULT
    line = AccessLine(
        at=now_ms(),
        request_id=ended.request_id,
        client_request_id=sent_id.decode("latin-1") if sent_id and CLIENT_REQUEST_ID.match(sent_id) else "",
        trace_id=ended.trace.trace_id,
        account=key.account_id if key else "",
        key=key.key_id if key else "",
        method=ended.method,
        path=printable(ended.path.decode("latin-1")[:200]),
        endpoint=ended.endpoint,
        model=printable(model[:120]),
        status=status,
        outcome=ended.outcome,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        charged_millicredits=charged,
        held_millicredits=held,
        first_byte_ms=ended.first_byte_ms,
        duration_ms=round((time.monotonic() - ended.started) * 1_000),
        upstream=UNSET if by_default else served.upstream or DEFAULT_NAME,
        tries=UNSET if by_default else served.tries,
        cause=ended.cause or UNSET,
    )
    services.log.request(line)
    ended.trace.end(line)


def report_upstream_error(services: Services, ended: EndedRequest, error: UpstreamError) -> None:
    """Count that the upstream gave no whole answer; keep why it could not be connected to, for the request's line."""
    metrics = services.metrics
    metrics.count(metrics.upstream_errors, error.reason)
    if error.cause:
        ended.cause = error.cause
        metrics.count(metrics.connect_failures, error.cause)


def report_account(services: Services, reason: str, status: int, request_id: str) -> None:
    """Count and log what the upstream says about our own account; "" for nothing. `status` 0: inside an answer."""
    if reason:
        services.metrics.count(services.metrics.upstream_account, reason)
        services.log.account_refused(reason, status, request_id)


def report_no_answer(services: Services, request_id: str, status: int, headers: Headers) -> None:
    """Log an answer of the upstream's that is none, with host and path of where it points; a query may hold secrets."""
    location = first_header(headers, b"location")
    shown = PRINTABLE.sub(b"?", re.split(rb"[?#]", location)[0])
    shown = services.redactor.redact_identity(USERINFO.sub(rb"\1", shown))[:LONGEST_LOCATION]
    services.log.no_answer(request_id, status, shown.decode("ascii"))
