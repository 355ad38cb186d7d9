"""A response on a socket that keeps its own record of what was held and charged, and a session's terms."""

import asyncio
from types import SimpleNamespace
from typing import Any

from proxy.gateway.answers.events import PassedEvents
from proxy.gateway.answers.report import Report
from proxy.gateway.plan import Plan
from proxy.web.rejections import Rejection
from tests.support.plans import PRICES

TERMS = SimpleNamespace(prices=PRICES)


class RecordedExchange:
    """What a session sees of a SocketExchange. `interrupt` cancels its settle, before the charge or after it."""

    def __init__(self, refuse: Rejection | None = None, terms: SimpleNamespace = TERMS) -> None:
        self.plans: list[Plan] = []
        self.charged: list[Report] = []
        self.abandoned: list[str] = []
        self.interrupt = ""
        self.delay = 0.0
        self.refusal = refuse
        self.response_id, self.media = "", 0
        self.passed = PassedEvents()
        self.context = SimpleNamespace(key=None)
        self.hold = SimpleNamespace(
            terms=terms,
            is_open=False,
            release=self._release,
            plan=None,
            amount=0,
        )
        self.waited = False

    async def hold_for(self, plan: Plan, _key: Any, *, wait: bool = True) -> Plan:
        await asyncio.sleep(self.delay)
        if self.refusal is not None:
            raise self.refusal
        self.waited = wait
        self.plans.append(plan)
        self.hold.amount = plan.ceiling.amount
        self.hold.is_open, self.hold.plan = True, plan
        return plan

    async def mark_sent(self, *, at_work: bool) -> None:
        """Nobody dies here."""

    async def refuse(self, _rejection: Rejection) -> None:
        await self._release()

    async def release(self, outcome: str) -> None:
        self.abandoned.append(outcome)
        await self._release()

    async def _release(self) -> None:
        self.hold.is_open = False

    def expect_input(self, tokens: int, audio: int) -> None:
        parsed = self.hold.plan.parsed._replace(estimated_input=tokens, estimated_audio=audio)
        self.hold.plan = self.hold.plan = self.hold.plan._replace(parsed=parsed)

    def begin(self) -> None:
        """The response has begun."""

    async def settle(self, report: Report, _outcome: str = "completed") -> None:
        if self.interrupt == "before":
            raise asyncio.CancelledError
        self.hold.is_open = False
        self.charged.append(report)
        if self.interrupt == "after":
            raise asyncio.CancelledError

    async def abandon(self, outcome: str, *, at_work: bool = False) -> None:
        if self.hold.is_open:
            self.abandoned.append(outcome)
            self.hold.is_open = False
