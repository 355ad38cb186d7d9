"""One response on a WebSocket: what is held for it, what it showed, what it is charged."""

import os
import time

from billing.accounts import ApiKey
from billing.database import now_ms
from billing.record import Outcome
from proxy.holding import Holding
from proxy.meter import NO_REPORT, Report
from proxy.plan import Plan
from proxy.services import Services
from proxy.settlement import Shown, decide_ending


class Spending:
    """A hold that one response on a socket uses up. Each has a request id of its own in the books."""

    __slots__ = ("_services", "_started", "media", "money", "plan", "prices", "request_id", "response_id", "texts")

    def __init__(self, services: Services) -> None:
        """Nothing is held yet."""
        self._services, self.prices = services, services.prices
        self.request_id = "req_" + os.urandom(16).hex()
        self._started = time.monotonic()
        self.money = Holding(services, self.prices, self.request_id, now_ms())
        self.plan: Plan | None = None
        self.response_id = ""
        self.texts: list[str] = []
        self.media = 0

    async def hold(self, plan: Plan, key: ApiKey) -> Plan:
        """Hold for the plan; the one that was held for, perhaps clamped. Raises Rejection."""
        self.plan = await self.money.hold(plan, key)
        await self.money.durable()
        return self.plan

    async def settle(self, report: Report, outcome: Outcome = "completed") -> None:
        """Charge what the response used; when it does not say, what it showed."""
        plan = self.plan
        if plan is None or not self.money.holding:
            return
        services = self._services
        errored = report.status == "failed" or outcome == "upstream_cut"
        sessions = await services.tenants.sessions(self.money.key.account_id, self.request_id, report.containers)
        shown = Shown(["".join(self.texts)], self.media, insured=errored and not (self.texts or self.media), sessions=sessions)
        ending = await decide_ending(services, self.prices, plan, report, shown, outcome)
        await self.money.settle(plan, ending, [], 0, round((time.monotonic() - self._started) * 1_000))
        if plan.keeps:
            await services.tenants.note_made(self.money.key.account_id, self.request_id, report, ending.usage)

    async def abandon(self, outcome: Outcome) -> None:
        """The socket ended: what had begun is charged as far as it was shown, the rest is released."""
        if self.response_id or self.texts or self.media:
            await self.settle(NO_REPORT, outcome)
        else:
            await self.money.release()
