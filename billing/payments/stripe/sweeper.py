"""Search for what Stripe never told us: missed events, purchases that stand still, objects whose event was never made.

Stripe keeps events for 30 days, gives up delivering after three, and may fail to make one at all; so a sweep asks for
events *and* objects. Everything found goes through the same syncs as a webhook; a sweep that finds nothing changes
nothing.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from billing.money.errors import StoreUnavailable, StripeRefused
from billing.payments.purchase_store import NEVER_HEARD, Purchase, PurchaseStore
from billing.payments.stripe.event_types import KINDS
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe.objects import OWN_ID, CheckoutSession, Dispute, Intent, Refund
from billing.payments.stripe.sync import Outcome, Sync
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import claims, sweep_marks

log = logging.getLogger("tollkeeper.sweeper")

KEPT_DAYS = 30
DAY_SECONDS = 86_400
OVERLAP_SECONDS = 3_600
IN_FLIGHT_SECONDS = 120
STUCK_MS = 120_000
NEVER_ASKED_MS = 900_000
QUIET_MS = 300_000
MARK = "events"
NO_SUCH = "resource_missing"
"""Stripe's code for an id it does not know."""

Thing = TypeVar("Thing", CheckoutSession, Intent, Refund, Dispute)


class Swept(NamedTuple):
    """Counts and lines of one sweep.

    `fixed`: what had not reached us and now has; `problems`: what could not be looked at.
    """

    events: int
    missed_events: int
    objects: int
    fixed: tuple[str, ...]
    problems: tuple[str, ...]


class _Gathered:
    """Counts and lines while a sweep goes on."""

    def __init__(self, settled: int) -> None:
        """`settled` (Unix seconds): what happened later may still be on its way to us."""
        self._settled = settled
        self.events = self.missed = self.objects = self.unread = 0
        self.fixed: list[str] = []
        self.problems: list[str] = []

    async def sync(self, what: str, call: Awaitable[Outcome]) -> None:
        """Apply one object; a change is something that should have reached us before, but for what just happened.

        Raises StoreUnavailable.
        """
        self.objects += 1
        with self._going_on(what):
            outcome = await call
            if outcome.changed and outcome.happened <= self._settled:
                self.fixed.append(f"{what}: {outcome.text}")

    @contextlib.contextmanager
    def listing(self, what: str) -> Iterator[None]:
        """Read a list to its end. Raises StoreUnavailable."""
        self.unread += 1
        with self._going_on(f"the list of {what}"):
            yield
            self.unread -= 1

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Write down what cannot be read or applied: it must not keep the rest waiting, whatever is wrong with it."""
        try:
            yield
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one object's fault must not keep the others waiting
            self.problems.append(f"{what}: {type(error).__name__}: {error}")


class Sweeper:
    """The search for what we missed at Stripe. Raises StoreUnavailable."""

    def __init__(
        self, database: Database, gateway: StripeGateway, inbox: Inbox, purchases: PurchaseStore, sync: Sync
    ) -> None:
        """`sync` applies what is found."""
        self._db, self._gateway, self._inbox, self._purchases, self._sync = database, gateway, inbox, purchases, sync

    async def sweep(self, days: int | None = None, *, livemode: bool) -> Swept:
        """One sweep: since the last one (and an hour before it), or over so many days."""
        now = now_ms() // 1_000
        oldest = now - KEPT_DAYS * DAY_SECONDS
        mark = await self._mark(MARK)
        since = now - days * DAY_SECONDS if days is not None else max(oldest, mark - OVERLAP_SECONDS)
        gathered = _Gathered(now - IN_FLIGHT_SECONDS)
        with gathered.listing("events"):
            await self._events(
                gathered, max(since, oldest), now if days is not None else now - IN_FLIGHT_SECONDS, livemode=livemode
            )
        await self._objects(gathered, since)
        if not gathered.unread:  # or else the next sweep reads from the same time on
            await self._set_mark(MARK, now)
        await self._never_opened(gathered)
        await self._standing_still(gathered)
        await self._open_claims(gathered)
        for line in gathered.fixed:
            log.error("had not reached us: %s", line)
        for line in gathered.problems:
            log.error("cannot be settled: %s", line)
        return Swept(
            gathered.events, gathered.missed, gathered.objects, tuple(gathered.fixed), tuple(gathered.problems)
        )

    async def _never_opened(self, gathered: _Gathered) -> None:
        """Look for purchases that Stripe may not have been asked for: the process may have died in between."""
        for purchase in await self._purchases.waiting(("created",), before_ms=now_ms() - STUCK_MS):
            await gathered.sync(purchase.id, self._heard_of(purchase))
            await self._purchases.record_look(purchase.id)

    async def _heard_of(self, purchase: Purchase) -> Outcome:
        """Settle what Stripe has of a purchase; when it has nothing for long enough, give the purchase up."""
        call = await self._look_for(purchase)
        if call is not None:
            return await call
        if purchase.created_at < now_ms() - NEVER_ASKED_MS:
            await self._purchases.give_up(purchase.id, "failed", NEVER_HEARD)
        return Outcome(NEVER_HEARD)

    async def _look_for(self, purchase: Purchase) -> Awaitable[Outcome] | None:
        """Return what is to be applied, if Stripe has anything. Raises StoreUnavailable, StripeRefused."""
        if not purchase.customer_id:
            return None
        try:
            if purchase.origin == "checkout":
                async for session in self._gateway.sessions(customer=purchase.customer_id):
                    if session.client_reference_id == purchase.id:
                        return self._sync.session(session.id)
                return None
            async for intent in self._gateway.intents(customer=purchase.customer_id):
                if intent.metadata.get(OWN_ID) == purchase.id:
                    return self._sync.intent(intent.id)
        except StripeRefused as refused:
            if refused.code != NO_SUCH:
                raise
        return None  # also of a customer that is not there

    async def _standing_still(self, gathered: _Gathered) -> None:
        for purchase in await self._purchases.waiting(("open", "processing"), before_ms=now_ms() - QUIET_MS):
            if purchase.session_id is not None:
                await gathered.sync(purchase.session_id, self._sync.session(purchase.session_id))
            elif purchase.payment_intent_id is not None:
                await gathered.sync(purchase.payment_intent_id, self._sync.intent(purchase.payment_intent_id))
            await self._purchases.record_look(purchase.id)  # the next sweep looks at those that were not looked at

    async def _open_claims(self, gathered: _Gathered) -> None:
        """Sync refunds on their way and disputes without an end."""
        moving = claims.c.status.in_(("pending", "requires_action")) | (
            (claims.c.kind == "dispute") & claims.c.counts & ~claims.c.lost  # a dispute that still holds credits
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(select(claims.c.kind, claims.c.id).where(moving))).all()
        for kind, claim_id in rows:
            await gathered.sync(
                claim_id, self._sync.refund(claim_id) if kind == "refund" else self._sync.dispute(claim_id)
            )

    async def _events(self, gathered: _Gathered, since: int, until: int, *, livemode: bool) -> None:
        async for event, payload in self._gateway.events(since, sorted(KINDS)):
            if isinstance(event.created, int) and event.created <= until and event.livemode == livemode:
                gathered.events += 1
                gathered.missed += await self._inbox.store(event, payload, "sweep")

    async def _objects(self, gathered: _Gathered, since: int) -> None:
        created = {"gte": since}
        await _each(
            gathered, "sessions", self._gateway.sessions(created=created), self._unsettled_session, self._sync.session
        )
        await _each(
            gathered, "payments", self._gateway.intents(created=created), self._unsettled_intent, self._sync.intent
        )
        await _each(gathered, "refunds", self._gateway.refunds(created=created), self._unknown_claim, self._sync.refund)
        await _each(
            gathered, "disputes", self._gateway.disputes(created=created), self._unknown_claim, self._sync.dispute
        )

    async def _unsettled_session(self, session: CheckoutSession) -> bool:
        if session.status != "complete" or not session.client_reference_id:
            return False
        purchase = await self._purchases.get(session.client_reference_id)
        return purchase is not None and (purchase.state != "credited" or not purchase.fee_booked)

    async def _unsettled_intent(self, intent: Intent) -> bool:
        purchase = await self._purchases.get(intent.metadata.get(OWN_ID, ""))
        if purchase is None or purchase.origin != "auto" or intent.status != "succeeded":
            return False
        return purchase.state != "credited" or not purchase.fee_booked

    async def _unknown_claim(self, thing: Refund | Dispute) -> bool:
        query = select(claims.c.status, claims.c.amount_cents).where(claims.c.id == thing.id)
        async with self._db.read() as connection:
            known = (await connection.execute(query)).first()
        return known is None or tuple(known) != (thing.status or "pending", thing.amount)

    async def _mark(self, name: str) -> int:
        query = select(sweep_marks.c.value).where(sweep_marks.c.name == name)
        async with self._db.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none() or 0

    async def _set_mark(self, name: str, value: int) -> None:
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(sweep_marks).values(name=name, value=value)
        async with self._db.write() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


async def _each(
    gathered: _Gathered,
    what: str,
    things: AsyncIterator[Thing],
    wanted: Callable[[Thing], Awaitable[bool]],
    sync: Callable[[str], Awaitable[Outcome]],
) -> None:
    """Apply those of a list that are wanted; one that cannot be read ends its list, and no other."""
    with gathered.listing(what):
        async for thing in things:
            if await wanted(thing):
                await gathered.sync(thing.id, sync(thing.id))
