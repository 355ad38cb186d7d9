"""What operators are told of a request that ended, by HTTP or on a socket: counters, times, one line of the log, its
span.
"""

import re
import time
from typing import Protocol

from billing.ledger.accounts import ApiKey
from proxy.gateway.plan import Plan
from proxy.gateway.request_hold import Holding
from proxy.gateway.services import Services
from proxy.observability.tracing import Headers, Trace

CLIENT_CLOSED = 499
CLIENT_REQUEST_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")


class Ended(Protocol):
    """A request that ended.

    `status` 0: its client left before it had one; `started` in monotonic seconds; `headers` the client's.
    """

    @property
    def request_id(self) -> str: ...  # noqa: D102 - the names say it
    @property
    def headers(self) -> Headers: ...  # noqa: D102
    @property
    def trace(self) -> Trace: ...  # noqa: D102
    @property
    def key(self) -> ApiKey | None: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> bytes: ...  # noqa: D102
    @property
    def endpoint(self) -> str: ...  # noqa: D102
    @property
    def plan(self) -> Plan | None: ...  # noqa: D102
    @property
    def money(self) -> Holding: ...  # noqa: D102
    @property
    def status(self) -> int: ...  # noqa: D102
    @property
    def outcome(self) -> str: ...  # noqa: D102
    @property
    def started(self) -> float: ...  # noqa: D102
    @property
    def first_byte_ms(self) -> int: ...  # noqa: D102


def account_of(ended: Ended, services: Services) -> None:
    """Count it and write its line."""
    plan, key, money, status, metrics = (
        ended.plan,
        ended.key,
        ended.money,
        ended.status or CLIENT_CLOSED,
        services.metrics,
    )
    metrics.count_answer(ended.endpoint, status, ended.outcome or "unknown")
    if money.sent_at:
        metrics.observe_forwarded(money.sent_at - ended.started)
    sent_id = next((value for name, value in ended.headers if name == b"x-client-request-id"), b"")
    facts: dict[str, str | int] = {
        "request_id": ended.request_id,
        "client_request_id": sent_id.decode("latin-1") if CLIENT_REQUEST_ID.match(sent_id) else "",
        "trace_id": ended.trace.trace_id,
        "account": key.account_id if key else "",
        "key": key.key_id if key else "",
        "method": ended.method,
        "path": ended.path.decode("latin-1")[:200],
        "endpoint": ended.endpoint,
        "model": plan.parsed.model[:120] if plan else "",
        "status": status,
        "outcome": ended.outcome,
        "input_tokens": money.usage.input_tokens,
        "output_tokens": money.usage.output_tokens,
        "charged_millicredits": money.charged,
        "held_millicredits": money.amount,
        "first_byte_ms": ended.first_byte_ms,
        "duration_ms": round((time.monotonic() - ended.started) * 1_000),
    }
    services.log.request(facts)
    ended.trace.end(facts)
