"""One response on a WebSocket: its hold, the output that passed, its end in the books and in the log."""

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from proxy.gateway.access_log import log_request
from proxy.gateway.admission import admit
from proxy.gateway.answers.events import PassedEvents
from proxy.gateway.answers.report import Report
from proxy.gateway.answers.reports import items_report
from proxy.gateway.plan import Plan
from proxy.gateway.request import RequestContext
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import Services
from proxy.gateway.settlement import ObservedOutput
from proxy.observability.tracing import Headers
from proxy.web.rejections import Rejection

OK, BAD_GATEWAY, CLIENT_LEFT = 200, 502, 0
PAYMENT_REQUIRED, TOO_MANY = 402, 429
ANOTHER_TRY = (PAYMENT_REQUIRED, TOO_MANY)
"""Refusals that a hold of the session's own may be the reason of."""


class Handshake(NamedTuple):
    """The opening of a socket, which each of its responses shares. `endpoint` as in proxy/gateway/endpoints.py.

    `socket` is among the living as long as its responses may be held for.
    """

    path: bytes
    headers: Headers
    endpoint: str
    socket: object | None = None


class SocketExchange:
    """A response on a socket. Each has a request id of its own in the books, and a line in the log."""

    __slots__ = ("_logged", "_services", "context", "hold", "media", "passed", "response_id")

    def __init__(self, services: Services, opened: Handshake) -> None:
        """Nothing is held yet; the terms are those in force now."""
        self._services = services
        self.context = RequestContext(services, "GET", opened.path, opened.headers, opened.endpoint)
        context = self.context
        self.hold = RequestHold(
            services, services.terms, context.request_id, context.started_ms, context.started, opened.socket
        )
        self.response_id = ""
        self.passed = PassedEvents()
        self.media = 0
        self._logged = False

    async def hold_for(self, plan: Plan, key: ApiKey, *, wait: bool = True) -> Plan:
        """Hold for the plan; return the one that was held for, perhaps clamped. Raises Rejection.

        `wait`: a moment, for other holds in flight.
        """
        self.context.key = key
        services = self._services
        free = admit(services.settings, key.account_id, services.overloaded)
        plan = await self.hold.hold(plan, key, free=free, wait=wait)
        try:
            await self.hold.wait_persisted()
        except BaseException:
            await self.hold.release()  # nobody else knows of it yet
            raise
        return plan

    def begin(self) -> None:
        """Begin the response that was held for in advance: it is asked for, or has begun, now."""
        self.context.started = self.hold.started = time.monotonic()

    async def settle(self, report: Report, outcome: Outcome = "completed") -> None:
        """Charge what the response used; when it does not say, the output that passed."""
        if not self.hold.is_open:
            return
        passed = self.passed
        errored = (report.status == "failed" or outcome == "upstream_cut") and not passed and not report.items
        observed = ObservedOutput(["".join(passed.texts)], self.media, errored=errored)
        decision = await self.hold.settle(report, observed, outcome, [], 0)
        self._log(OK, decision.outcome)

    async def abandon(self, outcome: Outcome) -> None:
        """Charge a begun response by what passed, or release it: the socket ended, or the upstream refused."""
        if self.response_id or self.passed or self.media:
            await self.settle(items_report(self.passed.items), outcome)
        else:
            await self.release(outcome)

    async def release(self, outcome: Outcome) -> None:
        """Charge nothing: no work of the upstream's came of it."""
        await self.hold.release()
        self._log(CLIENT_LEFT if outcome in ("client_gone", "shutdown") else BAD_GATEWAY, outcome)

    async def refuse(self, rejection: Rejection) -> None:
        """Nothing comes of it: what was held is released."""
        await self.hold.release()
        self._log(rejection.status, rejection.code)

    def _log(self, status: int, outcome: str) -> None:
        if not self._logged:
            self._logged, self.context.status, self.context.outcome = True, status, outcome
            log_request(self._services, self.context, self.hold)


Begin = Callable[[], SocketExchange]
"""Makes the next response on a socket."""


async def hold_instead(
    before: SocketExchange | None, begin: Begin, hold: Callable[[SocketExchange, bool], Awaitable[None]]
) -> SocketExchange:
    """Hold anew in the place of what was held before, which is released. Raises Rejection; then neither is held.

    `hold` takes the exchange to hold for, and whether to wait for others. Where both together are too much, the one
    before is no other: it goes first.
    """
    exchange = begin()
    try:
        try:
            await hold(exchange, before is None)
        except Rejection as rejection:
            if before is None or rejection.status not in ANOTHER_TRY:
                raise
            await before.hold.release()
            exchange = begin()
            await hold(exchange, True)
        if before is not None:
            await before.hold.release()
    except BaseException:
        await exchange.hold.release()  # nobody else knows of it yet
        raise
    return exchange
