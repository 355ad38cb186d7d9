"""The balance store that the settings name, and the jobs it needs."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from billing.balances.embedded import EmbeddedBalances
from billing.balances.redis.flush_share import FlushShare
from billing.balances.redis.store import RedisBalances
from billing.jobs.limit_watch import LimitWatch
from billing.ledger.flush import Step, Store, TransferJobs
from billing.ledger.ledger import Ledger, OnBooked
from billing.ledger.notices import NoticeQueue
from billing.money.holds import Entry
from billing.money.usage_record import decode_record
from billing.storage.database import Database, Readable
from config.settings import Settings
from proxy.observability.metrics import Metrics

ORPHANED = b'"outcome":"orphaned"'
LEASE_MS = 3_000
LIMITS_SECONDS = 1.0
ONE_LOOK_SECONDS = 2.0
"""SQL that answers within its bound is asked again at the next look: so much later its next answer is known."""

BalanceStore = EmbeddedBalances | RedisBalances


def make_store(settings: Settings, ledger: Ledger) -> BalanceStore:
    """Balance store that the settings name, not yet open."""
    if settings.redis.url:
        return RedisBalances(
            settings.redis.url, ledger, settings.redis.timeout_seconds, settings.advanced.hold_lease_seconds * 1_000
        )
    return EmbeddedBalances(Path(settings.embedded.path), ledger, settings.advanced.embedded_timeout_seconds)


@contextlib.asynccontextmanager
async def opened_store(settings: Settings, ledger: Ledger) -> AsyncIterator[BalanceStore]:
    """Balance store, open. Raises StoreUnavailable."""
    store = make_store(settings, ledger)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def jobs_of(
    settings: Settings, store: BalanceStore, booking: "Booking", more: Sequence[Step] = (), flusher: str = ""
) -> TransferJobs:
    """Jobs for this store: on Redis with a reaper, led by one process and flushed by all; else alone in the house.

    `more`: what one process of all does; `flusher`: the name of those of one machine, one after the other.
    """
    ledger = booking.ledger
    lead = share = reap = None
    if isinstance(store, RedisBalances):
        lead, reap = leader_of(store, "jobs"), store.reap
        patience = settings.database.timeout_seconds + ONE_LOOK_SECONDS
        name = flusher or secrets.token_hex(8)
        share = FlushShare(store.servers, store, ledger.reach, name, LEASE_MS, patience, booking.limits.look_at_all)
    return TransferJobs(
        store,
        ledger,
        flush_seconds=settings.advanced.journal_flush_interval_ms / 1_000,
        lead=lead,
        share=share,
        reap=reap,
        beside=[booking.step],
        more=more,
    )


def leader_of(store: BalanceStore, name: str) -> Callable[[], Awaitable[bool]]:
    """Make the question whether this process is the one to do `name`: the embedded store's always is."""
    owner = secrets.token_hex(8)

    async def leads() -> bool:
        return await store.lead(name, owner, LEASE_MS) if isinstance(store, RedisBalances) else True

    return leads


def publish_store(metrics: Metrics, store: Store) -> None:
    """Count what this process had to rebuild."""
    metrics.stores.rebuilds.inc(store.rebuilt())


class Booking(NamedTuple):
    """The ledger of a process that books charges: it counts them, tells of them, and has budgets of keys watched."""

    ledger: Ledger
    limits: LimitWatch

    @property
    def step(self) -> Step:
        """The job that watches, wherever charges are booked."""
        return self.limits.step, LIMITS_SECONDS, "limits of keys"


def booking(database: Database, notices: NoticeQueue, metrics: Metrics, shown_from: Readable | None = None) -> Booking:
    """Make the ledger of whoever books: every process that may, tells of what it booked.

    `shown_from`: a replica that pages of it may be read from.
    """
    count, limits = count_booked(metrics), LimitWatch(database, notices)

    def booked(entries: Sequence[Entry]) -> None:
        count(entries)
        limits.take(entries)

    return Booking(Ledger(database, booked, notices, shown_from), limits)


def count_booked(metrics: Metrics) -> OnBooked:
    """Count what only who books it sees: charges of requests whose process died, and losses."""

    def count(entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.loss:
                metrics.count_loss(entry.loss)
            if ORPHANED in entry.record:
                metrics.count_abandoned(decode_record(entry.record), entry.charged)

    return count
