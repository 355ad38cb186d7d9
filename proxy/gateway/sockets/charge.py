"""One response on a WebSocket: what is held for it, what it showed, what it is charged, and what operators are told of
it.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.access_log import account_of
from proxy.gateway.answers.meter import NO_REPORT, Report
from proxy.gateway.plan import Plan
from proxy.gateway.request_hold import Holding
from proxy.gateway.services import Services
from proxy.gateway.settlement import Shown, Terms, decide_ending
from proxy.observability.tracing import Headers
from proxy.web.rejections import Rejection

OK, BAD_GATEWAY, CLIENT_LEFT = 200, 502, 0


class Handshake(NamedTuple):
    """What a socket was opened with, which each of its responses shares.

    `endpoint` as in proxy/gateway/endpoints.py.
    """

    path: bytes
    headers: Headers
    endpoint: str


class Spending:
    """A hold that one response on a socket uses up.

    Each has a request id of its own in the books, and a line in the log.
    """

    __slots__ = (
        "_accounted",
        "_services",
        "endpoint",
        "first_byte_ms",
        "headers",
        "key",
        "media",
        "method",
        "money",
        "outcome",
        "path",
        "plan",
        "prices",
        "request_id",
        "response_id",
        "started",
        "status",
        "terms",
        "texts",
        "trace",
    )

    def __init__(self, services: Services, opened: Handshake) -> None:
        """Nothing is held yet."""
        self._services, self.prices = services, services.prices
        self.terms = Terms(self.prices, services.settings.metering.zero_completion_insurance)
        self.request_id = "req_" + os.urandom(16).hex()
        self.started = time.monotonic()
        self.money = Holding(services, self.prices, self.request_id, now_ms())
        self.key: ApiKey | None = None
        self.plan: Plan | None = None
        self.response_id = ""
        self.texts: list[str] = []
        self.media = 0
        self.method, self.path, self.headers, self.endpoint = "GET", *opened
        self.trace = services.tracing.begin(opened.headers)
        self.status = self.first_byte_ms = 0
        self.outcome = ""
        self._accounted = False

    async def hold(self, plan: Plan, key: ApiKey) -> Plan:
        """Hold for the plan; the one that was held for, perhaps clamped. Raises Rejection."""
        self.key, self.plan = key, None
        self.plan = await self.money.hold(plan, key)
        await self.money.durable()
        return self.plan

    def begin(self) -> None:
        """What was held for in advance is asked for, or has begun, now."""
        self.started = time.monotonic()

    async def settle(self, report: Report, outcome: Outcome = "completed") -> None:
        """Charge what the response used; when it does not say, what it showed."""
        plan = self.plan
        if plan is None or not self.money.holding:
            return
        services = self._services
        errored = report.status == "failed" or outcome == "upstream_cut"
        sessions = await services.tenants.sessions(self.money.key.account_id, self.request_id, report.containers)
        shown = Shown(
            ["".join(self.texts)], self.media, insured=errored and not (self.texts or self.media), sessions=sessions
        )
        ending = await decide_ending(services, self.terms, plan, report, shown, outcome)
        await self.money.settle(plan, ending, [], 0, round((time.monotonic() - self.started) * 1_000))
        self._account(OK, ending.outcome)
        if plan.keeps:
            await services.tenants.note_made(self.money.key.account_id, self.request_id, report, ending.usage)

    async def abandon(self, outcome: Outcome) -> None:
        """The socket ended, or the upstream refused: what had begun is charged as far as it was shown, the rest is
        released.
        """
        if self.response_id or self.texts or self.media:
            await self.settle(NO_REPORT, outcome)
        else:
            await self.money.release()
            self._account(CLIENT_LEFT if outcome in ("client_gone", "shutdown") else BAD_GATEWAY, outcome)

    async def refuse(self, rejection: Rejection) -> None:
        """Nothing comes of it: what was held is released."""
        await self.money.release()
        self._account(rejection.status, rejection.code)

    def _account(self, status: int, outcome: str) -> None:
        if not self._accounted:
            self._accounted, self.status, self.outcome = True, status, outcome
            account_of(self, self._services)


Begin = Callable[[], Spending]
"""Makes the spending of the next response on a socket."""
