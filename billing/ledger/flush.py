"""The jobs that carry money between the stores: flush, outbox relay, reaper. Each step is idempotent.

    charges   balance store's journal ──flush──▶ SQL (committed) ──acknowledge──▶ forgotten
    credits   SQL outbox ──relay──▶ balance store (applied once, in order) ──▶ marked applied

Killed between any two of these arrows, the step is simply done again: nothing served is lost (I3), and the ids of
charges and the sequence of credits keep it from being booked twice (I4).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, NoReturn, Protocol

from billing.ledger.ledger import Ledger
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import Balances, Entry, Outstanding

log = logging.getLogger("tollkeeper.jobs")

FLUSH_BATCH = 500
"""Charges in one SQL transaction."""
RELAY_BATCH = 500
RELAY_SECONDS = 0.2
REAP_SECONDS = 0.5
LEASE_MS = 3_000
KEEP_SECONDS = 1.0
"""Well within the lease of whoever leads."""
BACK_OFF_SECONDS = 0.5


Step = tuple[Callable[[], Awaitable[int]], float, str]
"""(what to do, the pause in seconds when there was nothing to do, its name)."""


class ChargeJournal(Protocol):
    """Settled charges that wait for SQL (I3)."""

    async def pending(self, limit: int) -> list[Entry]:
        """Return the oldest entries."""
        ...

    async def acknowledge(self, entries: list[Entry]) -> None:
        """Forget entries that SQL has committed."""
        ...

    async def refused(self, entries: list[Entry]) -> None:
        """Take back entries that SQL did not take: it knows another epoch than the one they were read under."""
        ...

    async def depth(self) -> tuple[int, int]:
        """(entries waiting, age of the oldest in milliseconds)."""
        ...


class Share(ChargeJournal, Protocol):
    """The part of a journal that this process books, where several do."""

    async def look(self) -> int:
        """Stay one of those who flush, and find out which part is ours. Raises StoreUnavailable."""
        ...

    async def leave(self) -> None:
        """Leave our part to the others at once; from now on ours is what we had, and what is nobody else's."""
        ...


class Store(Balances, ChargeJournal, Protocol):
    """A balance store with its journal."""

    async def open(self) -> None:
        """Get ready."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...

    async def ping(self) -> None:
        """Raise StoreUnavailable unless it serves now, or a part of it."""
        ...

    def buckets_away(self) -> int:
        """Count the parts that do not serve now."""
        ...

    def away(self) -> str:
        """Say which part does not serve now, though others do; "" where none is away."""
        ...

    async def depth_within_reach(self) -> tuple[int, int]:
        """`depth` of the parts that serve now."""
        ...

    async def outstanding(self) -> Outstanding:
        """Every hold it has, whichever process made it, and whether that lives or not."""
        ...

    def rebuilt(self) -> int:
        """Count the parts that this process rebuilt from SQL since the last time this was asked."""
        ...


class Drained(NamedTuple):
    """Numbers of what a drain moved."""

    charges: int
    credits: int


async def flush_once(journal: ChargeJournal, ledger: Ledger, batch: int) -> int:
    """Move one batch of charges into SQL; return how many were booked. Raises StoreUnavailable.

    Buckets share nothing, so where the database takes several transactions at a time they are flushed in lanes, each by
    itself: while one waits for its commit another is got ready. All lanes come to their end, also when one fails.
    """
    lanes: dict[int, list[Entry]] = {}
    for entry in await journal.pending(batch):
        lanes.setdefault(entry.bucket % ledger.lanes, []).append(entry)
    done = await asyncio.gather(
        *(_flush_lane(journal, ledger, lane) for lane in lanes.values()), return_exceptions=True
    )
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return sum(one for one in done if isinstance(one, int))


async def _flush_lane(journal: ChargeJournal, ledger: Ledger, entries: list[Entry]) -> int:
    """Move charges of some buckets into SQL.

    A charge that cannot be booked keeps no other waiting: it stays in the journal, where its age is seen.
    """
    booked, stuck = await ledger.post_bookable(entries)
    if booked:
        await journal.acknowledge(booked)
    settled = {entry.position for entry in booked} | stuck.keys()
    refused = [entry for entry in entries if entry.position not in settled]
    if refused:
        await journal.refused(refused)
    if stuck:
        raise StoreUnavailable(
            "sql", f"{len(stuck)} charges cannot be booked, the first because: {next(iter(stuck.values()))}"
        )
    return len(booked)


async def relay_once(balances: Balances, ledger: Ledger) -> int:
    """Apply pending outbox rows to the balance store; return how many. Raises StoreUnavailable.

    A bucket that does not answer keeps no other waiting: its rows are left for the next time.
    """
    applied, unknown, away, after = list[int](), list[int](), dict[int, StoreUnavailable](), 0
    while not applied and len(away) < BUCKETS and (rows := await ledger.outbox_pending(RELAY_BATCH, after)):
        for row in rows:
            if (bucket := bucket_of(row.account_id)) in away:
                continue
            try:
                if await balances.credit(row.account_id, row.sequence, row.delta):
                    applied.append(row.row_id)
            except AccountNotFound:
                unknown.append(row.row_id)
            except StoreUnavailable as error:
                away[bucket] = error
        if not away:
            break
        after = rows[-1].row_id
    for row_id in unknown:
        log.error("outbox row %d names an unknown account", row_id)
    if applied:
        await ledger.outbox_applied(applied)
    for failure in away.values():
        raise failure
    return len(applied)


async def drain(balances: Balances, journal: ChargeJournal, ledger: Ledger, batch: int = FLUSH_BATCH) -> Drained:
    """Move everything that is pending, both ways. Raises StoreUnavailable."""
    charges = credited = 0
    while moved := await flush_once(journal, ledger, batch):
        charges += moved
    while moved := await relay_once(balances, ledger):
        credited += moved
    return Drained(charges, credited)


def not_told(_problem: str) -> None:
    """For work whose trouble is only logged."""


def raise_if_cancelled() -> None:
    """End a task that was to end, whatever a library made of it: some answer a cancellation with an error of their own.

    Raises CancelledError.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def repeat(
    step: Callable[[], Awaitable[int]], idle_seconds: float, name: str, tell: Callable[[str], None] = not_told
) -> NoReturn:
    """Run a step until it is cancelled: at once again while it finds work, after a pause when it does not or cannot.

    `tell` is told what is wrong when the step fails, and "" when it has worked.
    """
    failing = ""
    while True:
        try:
            found = await step()
            problem = ""
        except StoreUnavailable as error:
            problem, found = str(error), 0
            if not failing:
                log.warning("%s waits: %s", name, error)
        except Exception as error:
            # the one place where a job may not die: the error is logged and the work stays where it was
            problem, found = f"{name} failed ({type(error).__name__}); it is tried again", 0
            if problem != failing:  # said once, however often it is tried
                log.exception("%s failed; it will be tried again", name)
        raise_if_cancelled()
        if problem != failing:
            tell(problem)
        failing = problem
        if not found:
            await asyncio.sleep(BACK_OFF_SECONDS if failing else idle_seconds)


def no_office() -> None:
    """Nothing was taken on."""


def while_leading(
    leads: Callable[[], Awaitable[bool]], step: Callable[[], Awaitable[int]], resign: Callable[[], None] = no_office
) -> Callable[[], Awaitable[int]]:
    """Make a step that is taken wherever `leads()` says that this process is the one to do so, and keep it that while
    the step lasts, however long: a lead that nobody asks for ends.

    `resign` leaves what this process had taken on to whoever leads now.
    """

    async def keep() -> NoReturn:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            with contextlib.suppress(StoreUnavailable):
                await leads()

    async def led() -> int:
        if not await leads():
            resign()
            return 0
        keeping = asyncio.create_task(keep())
        try:
            return await step()
        finally:
            keeping.cancel()

    return led


class TransferJobs:
    """The running jobs of one process. Where there are several each flushes its share, and one leads in all else."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        flush_seconds: float,
        batch: int = FLUSH_BATCH,
        lead: Callable[[], Awaitable[bool]] | None,
        share: Share | None,
        reap: Callable[[], Awaitable[int]] | None,
        beside: Sequence[Step] = (),
        more: Sequence[Step] = (),
    ) -> None:
        """`lead` tries to take the lease, `share` is what we flush (None: there is no other process).

        `reap` resolves orphans; `beside` run with every flush, `more` where this process leads.
        """
        self._store, self._ledger, self._batch, self._lead = store, ledger, batch, lead
        self._share, self._journal = share, share or store
        self._flush_seconds, self._reap, self._beside, self._more = flush_seconds, reap, beside, more
        self._leading = lead is None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every job."""
        steps: list[Step] = [
            (self._flush, self._flush_seconds, "flush"),
            (self._relay, RELAY_SECONDS, "outbox relay"),
            *self._beside,
        ]
        if self._reap is not None:
            steps.append((self._reap_once, REAP_SECONDS, "reaper"))
        steps += [(self._led(run), pause, name) for run, pause, name in self._more]
        if self._lead is not None:
            steps.append((self._take_lease, LEASE_MS / 3_000, "lease"))
        if self._share is not None:
            steps.append((self._share.look, LEASE_MS / 3_000, "share of the flush"))
        self._tasks = [asyncio.create_task(repeat(*step), name=step[2]) for step in steps]

    async def stop(self) -> None:
        """Stop, after a last flush if the stores allow one."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            if self._share is not None:
                await self._share.leave()
        with contextlib.suppress(StoreUnavailable):
            # who leads, of all: the names of the dead last a while. What others settle meanwhile is not for us
            journal = self._store if self._leading else self._journal
            while await flush_once(journal, self._ledger, self._batch) >= self._batch:
                """There may be more."""
            for step, _, _ in self._beside:
                while await step():
                    """There may be more."""
            while self._leading and await relay_once(self._store, self._ledger):
                """There may be more."""

    async def _flush(self) -> int:
        """One batch; only a full one is followed by the next at once, so that small ones gather meanwhile."""
        moved = await flush_once(self._journal, self._ledger, self._batch)
        return moved if moved >= self._batch else 0

    async def _relay(self) -> int:
        return await relay_once(self._store, self._ledger) if self._leading else 0

    async def _reap_once(self) -> int:
        return await self._reap() if self._leading and self._reap is not None else 0

    def _led(self, run: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[int]]:
        async def step() -> int:
            return await run() if self._leading else 0

        return step

    async def _take_lease(self) -> int:
        self._leading = False if self._lead is None else await self._lead()
        return 0
