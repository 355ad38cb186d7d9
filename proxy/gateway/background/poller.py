"""Background responses: polled and settled by us, once, also when the client never returns and across restarts.

A worker that was told "queued" writes down who is owed what (Objects.begin_background) and detaches the hold. The
process that runs the jobs takes every open one on: it resumes the same hold, asks upstream, and when the response has
ended

    1. checkpoints the decided charge on the hold (a crash after this is settled by the reaper, with exactly this
    charge) 2. marks the response as settled in SQL 3. charges.

A crash before 2 is taken on again by the next process; after 2 by nobody, since the checkpoint is enough (I3, I4). A
process that was slow may find that another leads and has taken the same on: whoever marks it charges it.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from billing.ledger.accounts import ApiKey, KeyRules
from billing.ledger.ledger import Ledger
from billing.ledger.objects.upstream_objects import BackgroundResponse
from billing.money.amounts import Millicredits
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.events import RESPONSE_EVENTS, EventMeter
from proxy.gateway.answers.reports import answer_texts, response_report
from proxy.gateway.background.open_work import MOST_OPEN, OpenWork
from proxy.gateway.background.pending import PendingRecord, decode_pending, pending_plan
from proxy.gateway.background.terms import Catalogues
from proxy.gateway.plan import Plan
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import Services
from proxy.gateway.settlement import ObservedOutput
from proxy.gateway.upstream.tenants import ConversationShare

log = logging.getLogger("tollkeeper.background")

AT_ONCE = 64
"""Responses that are asked about side by side."""
GONE = "gone"
ENDED = ("completed", "incomplete", "failed", "cancelled", GONE)
WITHOUT_USAGE = ("failed", "cancelled")
"""Ends at which upstream may not say what was used."""
LONGEST_HOURS = 24
READ_SECONDS = 30.0


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


class BackgroundResponses(OpenWork[BackgroundResponse, _Taken]):
    """The one poller of background responses."""

    kind = "background response"
    seconds = 1.0

    def __init__(self, services: Services, ledger: Ledger, catalogues: Catalogues) -> None:
        """Take the services of this process; nothing is held yet."""
        super().__init__(services, ledger, catalogues, at_once=AT_ONCE)

    async def _open(self) -> Sequence[BackgroundResponse]:
        return await self._objects.open_background(MOST_OPEN)

    async def _end(self, row: BackgroundResponse) -> bool:
        return await self._objects.end_background(row.response_id)

    async def _take_on(self, row: BackgroundResponse) -> _Taken | None:
        record = decode_pending(row.record)
        found = await self._resumable(row, record, lambda prices: pending_plan(record, prices))
        if found is None:
            return None
        taken = _Taken(row, record, *found)
        if record.conversation:
            share = ConversationShare(record.conversation, record.conversation_reserved, record.conversation_seen)
            taken.hold.share = share
        return taken if await taken.resume(Millicredits(record.held)) else None

    async def _look_at(self, held: _Taken) -> int:
        pending = held.pending
        answer = await self._fetch(pending)
        too_old = now_ms() - pending.created_at > LONGEST_HOURS * 3_600_000
        if answer is None and not too_old:
            return 0
        answer = answer or {}
        if answer.get("status") not in ENDED and not too_old:
            return 0
        events = None
        if held.record.stream and answer.get("status") in WITHOUT_USAGE and response_report(answer).usage is None:
            events = await self._read_events(pending)
            if events is None and not too_old:
                return 0
        await self._settle(held, answer, events)
        return 1

    async def _read_events(self, pending: BackgroundResponse) -> EventMeter | None:
        """Read all events of a streamed response that does not say what it used; None when they cannot be had."""
        meter = EventMeter(RESPONSE_EVENTS, 1)
        path = f"/responses/{pending.response_id}?stream=true"
        try:
            client = self._services.upstreams.client(pending.upstream)
            async with asyncio.timeout(READ_SECONDS), client.stream("GET", path) as events:
                if events.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                    return None
                if events.status_code == httpx.codes.OK:
                    async for data in events.aiter_bytes():
                        meter.feed(data)
        except (httpx.HTTPError, TimeoutError):
            return None
        return meter

    async def _fetch(self, pending: BackgroundResponse) -> dict[str, Any] | None:
        """Response as upstream has it; an empty one when it is gone there; None when upstream cannot say now."""
        response_id = pending.response_id
        try:
            reply = await self._services.upstreams.client(pending.upstream).get(f"/responses/{response_id}")
        except httpx.HTTPError:
            return None
        if reply.status_code == httpx.codes.NOT_FOUND:
            log.error("background response %s is gone upstream; its input is charged", response_id)
            return {"id": response_id, "status": GONE}
        if reply.status_code != httpx.codes.OK:
            return None
        return decode_object(reply.content)

    async def _settle(self, taken: _Taken, answer: dict[str, Any], read: EventMeter | None = None) -> None:
        """Charge it by its own usage; without any by its output, or by what its events (if it was streamed) showed."""
        pending, hold = taken.pending, taken.hold
        report, events = response_report(answer), read or EventMeter(RESPONSE_EVENTS, 1)
        texts, media = events.streamed()
        if events.streamed_anything:
            made = events.report()
            told = made.usage if report.usage is None else report.usage
            report = report._replace(usage=told, calls=made.calls, containers=made.containers)
            report = report._replace(pictures=made.pictures, drawn=made.drawn)
        used = report.usage is not None and report.usage.output_tokens > 0 and answer.get("status") == "cancelled"
        shown = bool(answer.get("output")) or events.streamed_anything
        produced = used or shown or answer.get("status") in ("completed", "incomplete", GONE)
        outcome: Outcome = "completed" if answer.get("status") in ("completed", "incomplete") else "upstream_error"
        observed = ObservedOutput(texts if any(texts) else answer_texts(answer), media, errored=not produced)
        decision = await hold.decide(report, observed, outcome)
        if not await taken.resume(hold.amount):  # whatever became of the hold meanwhile: a checkpoint needs one
            return
        if await hold.record_made(report, decision):
            return  # whoever asks for it sees the ids of its items: they have their owner before it has ended, or later
        await hold.checkpoint_decided(decision)
        ends_here = await self._end(pending)
        self._held.pop(pending.charge_id, None)
        if not ends_here:
            hold.forget()
            return
        await hold.charge(decision, [], 0)
        await hold.correct_share(decision)
