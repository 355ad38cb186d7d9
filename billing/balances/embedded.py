"""The embedded store: balances in this process's memory, holds and charges group-committed to SQLite.

The memory (a `Book`) decides (I1, I2); a writer thread makes each decision persistent together with everything else
that was decided meanwhile, one commit (one fsync) at a time. A request may be forwarded before its hold
is on disk, but no byte of a paid answer goes out before `wait_persisted()` returns (I3).

One process owns the file, by a lock beside it. All holds found at opening are orphans of a process that
died: they are charged their checkpoint, or released when they never got one, before anything is served.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from billing.balances.book import AccountState, Book, BudgetState, KeyState
from billing.balances.journal_file import (
    ADD_CHARGE,
    ADD_HOLD,
    DROP_CHARGE,
    DROP_HOLD,
    MARK_HOLD,
    SET_FIGURES,
    SHRINK_HOLD,
    JournalWriter,
    Operation,
    journal_depth,
    lock_file,
    prepare_journal,
    read_charges,
)
from billing.balances.owed import Owed, owed_by, owed_of
from billing.ledger.ledger import Ledger
from billing.money.amounts import Millicredits
from billing.money.errors import StoreUnavailable
from billing.money.holds import (
    Checkpoint,
    Entry,
    Gone,
    Held,
    HoldRequest,
    Outstanding,
    Reading,
    Refused,
    Settled,
)
from billing.money.spend_periods import period_start_ms
from billing.storage.private_files import make_private

log = logging.getLogger("tollkeeper.embedded")

MOST_COUNTS = 50_000
"""Budgets and keys in memory from which those are forgotten that were not used for `IDLE_MS` milliseconds."""
IDLE_MS = 3_600_000
MOST_AT_ONCE = 1_000
"""Charges of a process that died which are booked at once as the next one opens the file."""


class EmbeddedBalances:
    """Balances and ChargeJournal for one process. Call `open()` first; every await is bounded."""

    def __init__(self, path: Path, ledger: Ledger, timeout_seconds: int | float) -> None:
        """`timeout_seconds` bounds how long a hold may wait for the disk before it is refused (503)."""
        self._path, self._ledger, self._timeout = path, ledger, timeout_seconds
        self._book, self._most_counts = Book(), MOST_COUNTS
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._writer: JournalWriter | None = None
        self._lock_file: IO[str] | None = None
        self._commits: dict[str, asyncio.Future[None]] = {}
        self._owed: list[Owed] = []
        """Of the processes before this one: accounts and budgets that are read from SQL are without it."""
        self._on_disk, self._all_read_at = 1, 0
        """Commits that may have left charges on disk; how many there were when a read found none.

        Equal: nothing to flush.
        """

    async def open(self) -> None:
        """Take the file, settle orphans, flush what a dead process left. Raises StoreUnavailable."""
        make_private(self._path)
        self._lock_file = lock_file(self._path)
        await asyncio.to_thread(prepare_journal, self._path)
        self._writer = JournalWriter(self._path, asyncio.get_running_loop())
        self._writer.start()
        while entries := await self.pending(MOST_AT_ONCE):
            booked, stuck = await self._ledger.post_bookable(entries)
            if booked:
                await self.acknowledge(booked)
            else:  # what SQL does not take stays, and keeps nobody from being served
                self._owed = owed_of(entries)
                log.error("%d charges cannot be booked: %s", len(stuck), next(iter(stuck.values())))
                break

    async def close(self) -> None:
        """Write what is queued and let the file go."""
        if self._writer:
            await asyncio.to_thread(self._writer.stop)
        if self._lock_file:
            self._lock_file.close()

    async def hold(self, request: HoldRequest) -> Held | Refused:
        """See Balances."""
        await self._load(request)
        result = self._book.hold(request, _clock_ms())
        self._add_hold(request, result)
        return result

    async def resume(self, request: HoldRequest) -> Held | Refused | Gone:
        """See Balances."""
        await self._load(request)
        result = self._book.resume(request, _clock_ms())
        self._add_hold(request, result)
        return result

    def _add_hold(self, request: HoldRequest, result: Held | Refused | Gone) -> None:
        if isinstance(result, Held) and request.hold_id not in self._commits:
            account_id = request.account_id
            self._commits[request.hold_id] = self._write(
                (ADD_HOLD, (request.hold_id, account_id, request.amount, request.record)), self._figures(account_id)
            )

    async def look(self, request: HoldRequest) -> Refused | None:
        """See Balances."""
        await self._load(request)
        return self._book.look(request, _clock_ms())

    async def wait_persisted(self, hold_id: str) -> None:
        """See Balances."""
        commit = self._commits.get(hold_id)
        if commit is not None and not commit.done():
            await self._committed(commit)

    async def settle(
        self, hold_id: str, account_id: str, due: Millicredits, record: bytes, tokens: int = -1
    ) -> Settled | Gone:
        """See Balances. Waits for the disk within the bound; past it the charge is queued, not lost."""
        result = self._book.settle(hold_id, account_id, due, tokens if tokens >= 0 else None)
        self._commits.pop(hold_id, None)
        if isinstance(result, Gone):
            return result
        operations: list[Operation] = [(DROP_HOLD, (hold_id,)), self._figures(account_id)]
        if record:
            now = time.time_ns() // 1_000_000
            operations.append((ADD_CHARGE, (account_id, result.charged, result.loss, record, now)))
        commit = self._write(*operations)
        if record:
            commit.add_done_callback(self._count_charge)
            try:
                await self._committed(commit)
            except StoreUnavailable:
                return result
        return result

    async def release(self, hold_id: str, account_id: str) -> Settled | Gone:
        """See Balances."""
        return await self.settle(hold_id, account_id, Millicredits(0), b"", 0)

    def checkpoint(self, mark: Checkpoint, *, at_once: bool = False) -> None:  # noqa: ARG002 - here each is on its way at once
        """See Balances."""
        if self._book.mark(mark):
            hold = self._book.holds[mark.hold_id]
            commit = self._write((MARK_HOLD, (hold.checkpoint, hold.record, mark.hold_id)))
            if mark.hold_id in self._commits:  # a hold without its checkpoint would be released after a crash
                self._commits[mark.hold_id] = commit

    def shrink(self, hold_id: str, account_id: str, amount: Millicredits) -> None:
        """See Balances."""
        if self._book.shrink(hold_id, amount):
            self._write((SHRINK_HOLD, (self._book.holds[hold_id].amount, hold_id)), self._figures(account_id))

    def detach(self, hold_id: str, account_id: str) -> None:
        """See Balances. There is no other process: the hold stays in the book."""
        self.checkpoint(Checkpoint(hold_id, account_id, Millicredits(0), b""))

    def forget(self, hold_id: str) -> None:
        """See Balances. There is no other process: who resolves it is in this one."""

    async def credit(self, account_id: str, sequence: int, delta: Millicredits) -> bool:
        """See Balances."""
        if account_id not in self._book.accounts:
            await self._load_account(account_id)
        applied = self._book.credit(account_id, sequence, delta)
        if applied:
            await self._committed(self._write(self._figures(account_id)))
        return applied

    async def read(self, account_id: str) -> Reading:
        """See Balances."""
        if account_id not in self._book.accounts:
            await self._load_account(account_id)
        account = self._book.accounts[account_id]
        return Reading(account.balance, account.held, account.sequence)

    async def ping(self) -> None:
        """Raise StoreUnavailable when the disk has not answered within the bound (I9)."""
        self._check_disk()

    async def pending(self, limit: int) -> list[Entry]:
        """See ChargeJournal."""
        seen = self._on_disk
        if seen == self._all_read_at:
            return []  # an idle server need not look 20 times a second
        entries = await asyncio.to_thread(read_charges, self._path, limit)
        if not entries:
            self._all_read_at = seen
        return entries

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """See ChargeJournal (I4: called after the commit)."""
        await self._committed(self._write(*((DROP_CHARGE, (int(entry.position),)) for entry in entries)))
        if self._owed:
            gone = {entry.position for entry in entries}
            self._owed = [one for one in self._owed if one.position not in gone]

    async def refused(self, entries: Sequence[Entry]) -> None:
        """See ChargeJournal. Never called: this journal has no epochs."""

    async def depth(self) -> tuple[int, int]:
        """See ChargeJournal."""
        return await asyncio.to_thread(journal_depth, self._path)

    async def outstanding(self) -> Outstanding:
        """Return the sum of the live holds; those of a process that died were resolved at opening."""
        holds = self._book.holds
        oldest = next(iter(holds.values()), None)  # a dict keeps its order
        age = _clock_ms() - oldest.since_ms if oldest is not None else 0
        return Outstanding(len(holds), sum(hold.amount for hold in holds.values()), age)

    async def depth_within_reach(self) -> tuple[int, int]:
        """See Store."""
        return await self.depth()

    def buckets_away(self) -> int:
        """See Store: it serves as a whole or not at all."""
        return 0

    def away(self) -> str:
        """See Store."""
        return ""

    def rebuilt(self) -> int:
        """Return 0: opening it is rebuilding it."""
        return 0

    def _count_charge(self, _commit: "asyncio.Future[None]") -> None:
        self._on_disk += 1

    def _figures(self, account_id: str) -> Operation:
        account = self._book.accounts[account_id]
        return SET_FIGURES, (account_id, account.balance, account.held, account.sequence)

    def _write(self, *operations: Operation) -> "asyncio.Future[None]":
        if self._writer is None:
            raise StoreUnavailable("embedded", "is not open")
        return self._writer.submit(operations)

    async def _committed(self, commit: "asyncio.Future[None]") -> None:
        try:
            async with asyncio.timeout(self._timeout):  # wait_for of Python 3.11 swallows who is cancelled as it ends
                await asyncio.shield(commit)
        except TimeoutError:
            raise StoreUnavailable("embedded", "the journal file cannot be written now", in_doubt=True) from None

    def _check_disk(self) -> None:
        if self._writer is None or self._writer.stuck_for() > self._timeout:
            raise StoreUnavailable("embedded", "the journal file cannot be written now")

    async def _load(self, request: HoldRequest) -> None:
        """Have the account and the key that a hold is for. Raises StoreUnavailable."""
        self._check_disk()
        if request.account_id not in self._book.accounts:
            await self._load_account(request.account_id)
        if request.limits.any:
            await self._load_key(request)

    async def _load_account(self, account_id: str) -> None:
        """Bring a first-seen account in from SQL, once even when many requests ask at the same time."""
        task = self._loading.get(account_id)
        if task is None:
            task = self._loading[account_id] = asyncio.create_task(self._load_figures(account_id))
            task.add_done_callback(lambda _: self._loading.pop(account_id, None))
        await asyncio.shield(task)

    async def _load_figures(self, account_id: str) -> None:
        posted = await self._ledger.posted(account_id)
        balance = posted.balance - owed_by(account_id, self._owed)
        self._book.accounts.setdefault(account_id, AccountState(balance, 0, posted.sequence))

    async def _load_key(self, request: HoldRequest) -> None:
        """Bring a limited key in, and from SQL what was spent of each of its budgets."""
        book, now = self._book, _clock_ms()
        if len(book.budgets) + len(book.keys) > self._most_counts and self._on_disk == self._all_read_at:
            book.forget_unused(now - IDLE_MS)  # SQL has whatever was charged until now
            self._most_counts = MOST_COUNTS + 2 * (len(book.budgets) + len(book.keys))
        for budget in request.limits.budgets:
            known = book.budgets.get(budget.scope)
            if known is None:
                spent = await self._ledger.budget_spent(request, budget)
                whose = (budget.end_user, request.account_id) if budget.end_user else (request.key_id, "")
                since = period_start_ms(budget.period)
                owed = sum(one.charged for one in self._owed if one.counts_for(*whose, since, budget.models))
                known = book.budgets.setdefault(budget.scope, BudgetState(budget.period, spent + owed))
            known.used_ms = now  # nobody forgets it while the others are read
        book.keys.setdefault(request.key_id, KeyState()).used_ms = now


def _clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000
