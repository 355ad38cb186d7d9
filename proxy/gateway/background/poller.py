"""Background responses: polled and settled by us, once, also when the client never returns and across restarts.

A worker that was told "queued" writes down who is owed what (Objects.begin_background) and detaches the hold. The
process that runs the jobs takes every open one on: it resumes the same hold, asks upstream, and when the response has
ended

    1. checkpoints the decided charge on the hold (a crash after this is settled by the reaper, with exactly this
    charge) 2. marks the response as settled in SQL 3. charges.

A crash before 2 is taken on again by the next process; after 2 by nobody, since the checkpoint is enough (I3, I4).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx

from billing.ledger.accounts import ApiKey, KeyRules
from billing.ledger.flush import repeat
from billing.ledger.ledger import Ledger
from billing.ledger.rate_cards import RateCards
from billing.ledger.upstream_objects import BackgroundResponse
from billing.money.amounts import Millicredits
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.pricing import PriceBook
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.answers.reports import answer_texts, response_report
from proxy.gateway.background.pending import PendingRecord, decode_pending, pending_plan
from proxy.gateway.plan import Plan
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput

log = logging.getLogger("tollkeeper.background")

POLL_SECONDS = 1.0
AT_ONCE = 200
GONE = "gone"
ENDED = ("completed", "incomplete", "failed", "cancelled", GONE)
LONGEST_HOURS = 24


class _Taken(NamedTuple):
    """A background response that this process holds for."""

    pending: BackgroundResponse
    record: PendingRecord
    plan: Plan
    hold: RequestHold

    @property
    def key(self) -> ApiKey:
        """The key that is charged."""
        return ApiKey(self.record.key_id, self.pending.account_id, "active", KeyRules(), None)

    async def resume(self, amount: Millicredits) -> bool:
        """Hold for it; where it is held already, make that hold live on. Raises StoreUnavailable."""
        # nothing was held because nothing was to be charged when it began
        return await self.hold.resume(self.plan, self.key, amount, free=self.record.held == 0)


class BackgroundResponses:
    """The one poller; run it where the jobs run."""

    def __init__(self, services: Services, ledger: Ledger, cards: RateCards, client: httpx.AsyncClient) -> None:
        """`client` talks to the upstream with its key; only control-plane traffic goes through it."""
        self._services, self._ledger, self._cards, self._client = services, ledger, cards, client
        self._taken: dict[str, _Taken] = {}

    async def poll(self) -> int:
        """Look at every open background response once; return how many were settled. Raises StoreUnavailable."""
        objects = self._services.tenants.objects
        pending = await objects.open_background(AT_ONCE)
        for response_id in self._taken.keys() - {one.response_id for one in pending}:
            del self._taken[response_id]
        # first all of them, so that no hold runs out while another response is asked about
        taken = [self._taken.get(one.response_id) or await self._take_on(one) for one in pending]
        asked = [self._settle_if_ended(one) for one in taken if one is not None]
        # all of them to their ends: one that is still at work must not be asked about a second time
        found = await asyncio.gather(*asked, return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return sum(one for one in found if isinstance(one, int))

    async def _take_on(self, pending: BackgroundResponse) -> _Taken | None:
        """Hold for it, unless it turns out to be charged already. Raises StoreUnavailable."""
        services, record = self._services, decode_pending(pending.record)
        try:
            terms = await self._terms(record)
            plan = pending_plan(record, terms.prices)
        except StoreUnavailable:
            raise
        except BillingError as error:
            log.error("background response %s cannot be priced: %s", pending.response_id, error)  # noqa: TRY400 - a price is missing, nothing failed
            return None
        if await self._ledger.charged_ids([pending.charge_id]):
            await services.tenants.objects.end_background(pending.response_id)
            return None
        started = time.monotonic() - (now_ms() - record.started_ms) / 1_000
        hold = RequestHold(services, terms, pending.charge_id, record.started_ms, started)
        taken = _Taken(pending, record, plan, hold)
        if not await taken.resume(Millicredits(record.held)):
            return None
        self._taken[pending.response_id] = taken
        return taken

    async def _terms(self, record: PendingRecord) -> PricingTerms:
        """Terms it was begun under, though another card may be active by now.

        Raises StoreUnavailable, RateCardError.
        """
        services, origin = self._services, record.book
        insurance = (
            services.settings.metering.zero_completion_insurance if record.insurance is None else record.insurance
        )
        books = (services.prices, *(one.hold.terms.prices for one in self._taken.values()))
        book = books[0] if origin is None else next((book for book in books if book.origin == origin), None)
        if book is None and origin is not None:
            book = await asyncio.to_thread(
                PriceBook, await self._cards.get(origin.card_id), origin.markup, origin.rounding
            )
        return PricingTerms(book or services.prices, insurance)

    async def _settle_if_ended(self, taken: _Taken) -> int:
        """Ask upstream; settle when it has ended. Returns 1 then."""
        pending = taken.pending
        answer = await self._fetch(pending.response_id)
        too_old = now_ms() - pending.created_at > LONGEST_HOURS * 3_600_000
        if answer is None and not too_old:
            return 0
        answer = answer or {}
        if answer.get("status") not in ENDED and not too_old:
            return 0
        await self._settle(taken, answer)
        return 1

    async def _fetch(self, response_id: str) -> dict[str, Any] | None:
        """Response as upstream has it; an empty one when it is gone there; None when upstream cannot say now."""
        try:
            reply = await self._client.get(f"/responses/{response_id}")
        except httpx.HTTPError:
            return None
        if reply.status_code == httpx.codes.NOT_FOUND:
            log.error("background response %s is gone upstream; its input is charged", response_id)
            return {"id": response_id, "status": GONE}
        if reply.status_code != httpx.codes.OK:
            return None
        try:
            found = reply.json()
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    async def _settle(self, taken: _Taken, answer: dict[str, Any]) -> None:
        services, pending, hold = self._services, taken.pending, taken.hold
        report = response_report(answer)
        used = report.usage is not None and report.usage.output_tokens > 0 and answer.get("status") == "cancelled"
        produced = used or bool(answer.get("output")) or answer.get("status") in ("completed", "incomplete", GONE)
        outcome: Outcome = "completed" if answer.get("status") in ("completed", "incomplete") else "upstream_error"
        decision = await hold.decide(report, ObservedOutput(answer_texts(answer), errored=not produced), outcome)
        if not await taken.resume(hold.amount):  # whatever became of the hold meanwhile: a checkpoint needs one
            return
        hold.checkpoint_decided(decision)
        await services.tenants.objects.end_background(pending.response_id)
        self._taken.pop(pending.response_id, None)
        await hold.charge(decision, [], 0)
        await services.tenants.record_made(
            pending.account_id, pending.charge_id, report, decision.usage, taken.plan.parsed
        )


async def follow_background(poller: BackgroundResponses, leads: Callable[[], Awaitable[bool]]) -> None:
    """Poll for ever, wherever `leads()` says that this process is the one to do so."""

    async def step() -> int:
        if await leads():
            await poller.poll()
        return 0

    await repeat(step, POLL_SECONDS, "background responses")
