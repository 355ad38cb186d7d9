"""The handling of the inbox: each event leads to one sync of the object it is about; events of one object share a sync.

stored (2xx to Stripe) ──▶ synced ──▶ done            killed in between: it is simply synced again
│ └────▶ ignored         unknown type, or an object that is not ours
└──────▶ parked          cannot be applied yet, or Stripe is away: tried again, at most 5 min apart
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from billing.money.errors import StoreUnavailable
from billing.payments.stripe.event_types import KINDS
from billing.payments.stripe.inbox import Inbox, WaitingEvent, read_event
from billing.payments.stripe.objects import EventObject
from billing.payments.stripe.sync import Outcome, Sync
from billing.payments.stripe_customers import StripeCustomers
from billing.storage.database import now_ms

log = logging.getLogger("tollkeeper.stripe")

BATCH = 200
AT_ONCE = 8
FIRST_RETRY_MS = 1_000
LONGEST_RETRY_MS = 300_000
ALERT_MS = 300_000
LONGEST_OUTCOME = 2_000


class Subject(NamedTuple):
    """The object that several events are about."""

    kind: str
    object_id: str


class StripeWorker:
    """One step handles what is due. Safe to run twice at once: everything under it is idempotent."""

    def __init__(
        self, inbox: Inbox, sync: Sync, customers: StripeCustomers, handled: Callable[[int], None] = lambda _: None
    ) -> None:
        """Call `handled`, for each event handled for the first time, with the milliseconds since it was received."""
        self._inbox, self._sync, self._customers, self._handled = inbox, sync, customers, handled

    async def step(self) -> int:
        """Handle a batch; return how many events were finished. Raises StoreUnavailable when SQL is away."""
        subjects: defaultdict[Subject, list[WaitingEvent]] = defaultdict(list)
        for event in await self._inbox.due(BATCH):
            kind = KINDS.get(event.type)
            subjects[Subject(kind, event.object_id) if kind and event.object_id else Subject("", event.type)].append(
                event
            )
        room = asyncio.Semaphore(AT_ONCE)

        async def handle(subject: Subject, events: list[WaitingEvent]) -> int:
            async with room:
                return await self._handle(subject, events)

        work = [handle(subject, events) for subject, events in subjects.items()]
        results = await asyncio.gather(*work, return_exceptions=True)
        finished = 0
        for (subject, events), result in zip(subjects.items(), results, strict=True):
            if isinstance(result, BaseException):
                await self._park(subject, events, result)
            else:
                finished += result
        return finished

    async def _handle(self, subject: Subject, events: Sequence[WaitingEvent]) -> int:
        ids = [event.event_id for event in events]
        if not subject.kind:
            known = events[0].type in KINDS
            await self._inbox.finish(ids, "it names no object" if known else "a type we do not handle", ignored=True)
        else:
            outcome = await (self._warn(ids[0]) if subject.kind == "risk" else self.apply(subject))
            await self._inbox.finish(ids, outcome.text[:LONGEST_OUTCOME], ignored=outcome.foreign)
        now = now_ms()
        for event in events:
            if not event.replayed:
                self._handled(now - event.received_at)
        return len(ids)

    async def apply(self, subject: Subject) -> Outcome:
        """Sync one object. Raises what Sync raises."""
        sync = self._sync
        if subject.kind == "method":
            ours = await self._customers.forget_method(subject.object_id)
            return Outcome("saved method removed" if ours else "not a saved method", foreign=not ours)
        calls = {
            "session": sync.session,
            "intent": sync.intent,
            "payment": sync.payment,
            "refund": sync.refund,
            "charge": sync.refunds_of,
            "dispute": sync.dispute,
        }
        return await calls[subject.kind](subject.object_id)

    async def _warn(self, event_id: str) -> Outcome:
        """Act on a warning, which names its payment itself. Raises what Sync raises."""
        payload = (await self._inbox.get(event_id)).payload
        if not payload:
            return Outcome("handled before, and its content was dropped since", foreign=True)
        about = read_event(payload.encode()).data
        named = about.object if about is not None else EventObject()
        intent_id, charge_id = (_id(value) for value in (named.payment_intent, named.charge))
        if intent_id is None and charge_id is None:
            return Outcome("a warning that names no payment", foreign=True)
        return await self._sync.risk(intent_id, charge_id)

    async def _park(self, subject: Subject, events: Sequence[WaitingEvent], error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) or (isinstance(error, StoreUnavailable) and error.store == "sql"):
            raise error
        now = now_ms()
        attempts = max(event.attempts for event in events)
        wait = min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** min(attempts, 20))
        level = logging.ERROR if now - min(event.received_at for event in events) > ALERT_MS else logging.WARNING
        # an error that is not one of ours is a fault of this code or of Stripe's answer: it must not hold up the others
        trace = error if not isinstance(error, (StoreUnavailable, ValueError)) else None
        log.log(level, "%s %s waits: %s", subject.kind, subject.object_id, error, exc_info=trace)
        reason = f"{type(error).__name__}: {error}"[:LONGEST_OUTCOME]
        await self._inbox.park([event.event_id for event in events], reason, now + wait)


def _id(value: object) -> str | None:
    """Return the id of what an event names, expanded or not."""
    found = value.get("id") if isinstance(value, dict) else value
    return found[:255] if isinstance(found, str) and found else None
