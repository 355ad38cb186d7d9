"""Stripe's events in SQL: stored before they are acknowledged, handled afterwards; ids kept for ever, contents not."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import func, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.dismissals import OBJECT, dismiss
from billing.money.errors import BillingError
from billing.money.findings import Finding
from billing.payments.stripe.event_types import KINDS
from billing.payments.stripe.objects import Event
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import claims, purchases, stripe_customers, stripe_inbox

UNHANDLED = ("pending", "parked")
SWEEP = "sweep"


class EventNotFound(BillingError):
    """No event of that id is in the inbox."""

    def __init__(self, event_id: str) -> None:
        """`event_id` as asked for."""
        super().__init__(
            f"there is no event {event_id!r} in the inbox; `tollkeeper stripe sweep` fetches what never arrived"
        )


class WaitingEvent(NamedTuple):
    """An event that is due.

    `received_at` (Unix milliseconds): of one that never arrived and was fetched, when Stripe made it. `replayed`: it
    was handled before; then `received_at` is when it was asked for again.
    """

    event_id: str
    type: str
    object_id: str
    attempts: int
    received_at: int
    replayed: bool


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row of stripe_inbox. `created` in Unix seconds, the other times in Unix milliseconds."""

    event_id: str
    type: str
    object_id: str
    api_version: str
    created: int
    source: str
    received_at: int
    payload: str
    state: str
    attempts: int
    next_at: int
    handled_at: int | None
    replayed_at: int | None
    outcome: str


class InboxDepth(NamedTuple):
    """The number of events that wait, and for how long the oldest has, in milliseconds.

    One that was handled before, since its replay.
    """

    waiting: int
    oldest_ms: int


class _DueRow(NamedTuple):
    """The columns of stripe_inbox that handling an event needs."""

    event_id: str
    type: str
    object_id: str
    attempts: int
    received_at: int
    source: str
    created: int
    handled_at: int | None
    replayed_at: int | None


class Inbox:
    """The inbox. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def store(self, event: Event, payload: bytes, source: str) -> bool:
        """Keep an event; False when it is there already. Committed when this returns."""
        now = now_ms()
        row = {
            "event_id": event.id,
            "type": event.type[:120],
            "object_id": (event.data.object.id if event.data else None) or "",
            "api_version": (event.api_version or "")[:40],
            "created": event.created if isinstance(event.created, int) else 0,
            "source": source,
            "received_at": now,
            # what we do not handle may hold a buyer's name and address, and nothing ever reads it
            "payload": payload.decode().replace("\0", "") if event.type in KINDS else "",
            "state": "pending",
            "next_at": now,
        }
        async with self._db.read() as connection:  # most repeats cost no write lock
            known = select(stripe_inbox.c.event_id).where(stripe_inbox.c.event_id == event.id)
            if (await connection.execute(known)).first() is not None:
                return False
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(stripe_inbox).values(row).on_conflict_do_nothing().returning(stripe_inbox.c.event_id)
        async with self._db.write() as connection:
            return (await connection.execute(statement)).first() is not None

    async def due(self, limit: int) -> list[WaitingEvent]:
        """Return what is to be handled now, longest waiting first."""
        columns = (
            stripe_inbox.c.event_id,
            stripe_inbox.c.type,
            stripe_inbox.c.object_id,
            stripe_inbox.c.attempts,
            stripe_inbox.c.received_at,
            stripe_inbox.c.source,
            stripe_inbox.c.created,
            stripe_inbox.c.handled_at,
            stripe_inbox.c.replayed_at,
        )
        query = select(*columns).where(stripe_inbox.c.state.in_(UNHANDLED), stripe_inbox.c.next_at <= now_ms())
        first = select(func.min(stripe_inbox.c.received_at)).where(stripe_inbox.c.source == "webhook")
        async with self._db.read() as connection:
            found = await connection.execute(query.order_by(stripe_inbox.c.next_at).limit(limit))
            rows = [_DueRow(*row) for row in found]
            fetched = any(row.source == SWEEP for row in rows)
            # what Stripe made before it ever delivered anything to us was not late: there was no endpoint
            delivers_since = (await connection.execute(first)).scalar_one() if fetched else None
        return [WaitingEvent(*row[:4], _waits_since(row, delivers_since), row.handled_at is not None) for row in rows]

    async def finish(self, event_ids: Sequence[str], outcome: str, *, ignored: bool = False) -> None:
        """Record that these are handled."""
        values = {"state": "ignored" if ignored else "done", "handled_at": now_ms(), "outcome": outcome}
        async with self._db.write() as connection:
            await connection.execute(
                update(stripe_inbox)
                .where(stripe_inbox.c.event_id.in_(event_ids), stripe_inbox.c.state.in_(UNHANDLED))
                .values(**values)
            )

    async def park(self, event_ids: Sequence[str], reason: str, again_at: int) -> None:
        """Try these again later."""
        values = {"state": "parked", "next_at": again_at, "outcome": reason, "attempts": stripe_inbox.c.attempts + 1}
        async with self._db.write() as connection:
            await connection.execute(
                update(stripe_inbox)
                .where(stripe_inbox.c.event_id.in_(event_ids), stripe_inbox.c.state.in_(UNHANDLED))
                .values(**values)
            )

    async def replay(self, event_id: str, who: Who | None = None, reason: str = "") -> None:
        """Handle an event again, whatever became of it. `who`: the admin for the audit log. Raises EventNotFound."""
        async with self._db.write() as connection:
            state = (
                await connection.execute(select(stripe_inbox.c.state).where(stripe_inbox.c.event_id == event_id))
            ).scalar_one_or_none()
            values = {"state": "pending", "next_at": now_ms(), "attempts": 0}
            if state not in UNHANDLED:
                values["replayed_at"] = now_ms()  # one that never was handled has waited since it came
            changed = await connection.execute(
                update(stripe_inbox).where(stripe_inbox.c.event_id == event_id).values(values)
            )
            if changed.rowcount != 1:
                raise EventNotFound(event_id)
            await record_change(
                connection, who, Change("webhook.replay", event_id, {"state": state}, {"state": "pending"}, reason)
            )

    async def ignore(self, event_id: str, reason: str, who: Who) -> None:
        """Close an event that waits, because a person says that it is nothing to us. Raises EventNotFound."""
        waits = (stripe_inbox.c.event_id == event_id, stripe_inbox.c.state.in_(UNHANDLED))
        outcome = f"ignored by {who.actor}: {reason}"
        async with self._db.write() as connection:
            before = (
                await connection.execute(select(stripe_inbox.c.state, stripe_inbox.c.outcome).where(*waits))
            ).first()
            if before is None:
                raise EventNotFound(event_id)
            values = {"state": "ignored", "handled_at": now_ms(), "outcome": outcome}
            await connection.execute(update(stripe_inbox).where(*waits).values(**values))
            await self._dismiss_object(connection, event_id, reason, who)
            was = {"state": before[0], "outcome": before[1]}
            await record_change(connection, who, Change("webhook.ignore", event_id, was, {"state": "ignored"}, reason))

    async def _dismiss_object(self, connection: AsyncConnection, event_id: str, reason: str, who: Who) -> None:
        """Have every check pass over what the event is about, or the next sweep would try it again."""
        query = select(stripe_inbox.c.object_id).where(stripe_inbox.c.event_id == event_id)
        object_id = (await connection.execute(query)).scalar_one()
        if object_id:
            await dismiss(connection, [Finding(OBJECT, object_id, 0, 0, 0)], reason, who)

    async def drop_payloads(self, before_ms: int, limit: int = 1_000) -> int:
        """Empty what events handled before a time carried (Unix ms); return how many. Their ids stay for ever.

        Buyers' names and addresses stand in it. A repeat is known by its id, and a replay fetches the object anew.
        """
        old = select(stripe_inbox.c.event_id).where(
            stripe_inbox.c.state.not_in(UNHANDLED), stripe_inbox.c.handled_at < before_ms, stripe_inbox.c.payload != ""
        )
        async with self._db.write() as connection:
            emptied = update(stripe_inbox).where(stripe_inbox.c.event_id.in_(old.limit(limit))).values(payload="")
            return (await connection.execute(emptied)).rowcount

    async def erase_account(self, account_id: str) -> int:
        """Empty what handled events about an account's payments carried; return how many."""
        bought = select(purchases).where(purchases.c.account_id == account_id).subquery()
        ids = union_all(
            select(bought.c.session_id),
            select(bought.c.payment_intent_id),
            select(bought.c.charge_id),
            select(claims.c.id).where(claims.c.purchase_id.in_(select(bought.c.id))),
            select(stripe_customers.c.customer_id).where(stripe_customers.c.account_id == account_id),
            select(stripe_customers.c.payment_method_id).where(stripe_customers.c.account_id == account_id),
        ).subquery()
        about = (
            stripe_inbox.c.object_id.in_(select(ids.c[0]).where(ids.c[0] != "")),
            stripe_inbox.c.state.not_in(UNHANDLED),
            stripe_inbox.c.payload != "",
        )
        async with self._db.write() as connection:
            return (await connection.execute(update(stripe_inbox).where(*about).values(payload=""))).rowcount

    async def get(self, event_id: str) -> StoredEvent:
        """Return an event as stored. Raises EventNotFound."""
        async with self._db.read() as connection:
            query = select(stripe_inbox).where(stripe_inbox.c.event_id == event_id)
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise EventNotFound(event_id)
        return StoredEvent(**row)

    async def depth(self) -> InboxDepth:
        """Return how much waits."""
        since = func.coalesce(stripe_inbox.c.replayed_at, stripe_inbox.c.received_at)
        query = select(func.count(), func.min(since)).where(stripe_inbox.c.state.in_(UNHANDLED))
        async with self._db.read() as connection:
            number, oldest = (await connection.execute(query)).one()
        return InboxDepth(number, max(0, now_ms() - oldest) if number else 0)

    async def counts(self) -> list[tuple[str, str, int]]:
        """Return (type, state, number) of every type and state."""
        query = select(stripe_inbox.c.type, stripe_inbox.c.state, func.count()).group_by(
            stripe_inbox.c.type, stripe_inbox.c.state
        )
        async with self._db.read() as connection:
            return [
                (row[0], row[1], row[2])
                for row in await connection.execute(query.order_by(stripe_inbox.c.type, stripe_inbox.c.state))
            ]

    async def of_object(self, object_id: str) -> list[str]:
        """Return the ids of the events about an object, in the order they came."""
        query = select(stripe_inbox.c.event_id).where(stripe_inbox.c.object_id == object_id)
        async with self._db.read() as connection:
            return list(
                (
                    await connection.execute(query.order_by(stripe_inbox.c.received_at, stripe_inbox.c.event_id))
                ).scalars()
            )

    async def versions(self, since_ms: int) -> list[str]:
        """Return the API versions of events received since a time (Unix milliseconds)."""
        query = select(stripe_inbox.c.api_version).where(stripe_inbox.c.received_at >= since_ms).distinct()
        async with self._db.read() as connection:
            return sorted((await connection.execute(query)).scalars())

    async def listing(self, state: str | None, limit: int) -> list[StoredEvent]:
        """Return events as stored, newest first."""
        query = select(stripe_inbox).order_by(stripe_inbox.c.received_at.desc(), stripe_inbox.c.event_id).limit(limit)
        if state is not None:
            query = query.where(stripe_inbox.c.state == state)
        async with self._db.read() as connection:
            return [StoredEvent(**row) for row in (await connection.execute(query)).mappings()]


def _waits_since(row: _DueRow, delivers_since: int | None) -> int:
    if row.replayed_at is not None:
        return row.replayed_at
    made = row.created * 1_000
    missed = row.source == SWEEP and delivers_since is not None and made >= delivers_since
    return min(made, row.received_at) if missed else row.received_at


def read_event(body: bytes) -> Event:
    """Return the envelope of a verified body. Raises ValueError for what we cannot read (not JSON, no id, no type)."""
    body.decode()  # what is not UTF-8 can neither be stored nor be Stripe's
    event = msgspec.json.decode(body, type=Event)
    if not event.id or not event.type or len(event.id) > 255:
        raise ValueError("an event without an id or a type")
    return event
