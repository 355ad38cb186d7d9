"""The embedded store: balances in this process's memory, holds and charges group-committed to SQLite.

The memory (a `Book`) decides; a writer thread makes each decision durable together with everything else
that was decided meanwhile, one commit (one fsync) at a time. A request may be forwarded before its hold
is on disk, but no byte of a paid answer goes out before `wait_persisted()` says so (I3 of docs/architecture.md).

One process owns the file, by a lock beside it. All holds found at opening are orphans of a process that
died: they are charged their checkpoint, or released when they never got one, before anything is served.
"""

import asyncio
import contextlib
import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

from billing.ledger.ledger import Ledger
from billing.money.amounts import Millicredits
from billing.money.errors import StoreUnavailable
from billing.money.holds import (
    AccountState,
    Book,
    Checkpoint,
    Entry,
    Gone,
    Held,
    HoldRequest,
    KeyState,
    Outstanding,
    Reading,
    Refused,
    Settled,
)
from billing.money.spend_periods import period_start_ms

log = logging.getLogger("tollkeeper.embedded")

SCHEMA = """
CREATE TABLE IF NOT EXISTS holds (
    hold_id TEXT PRIMARY KEY, account_id TEXT NOT NULL, amount INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charges (
    position INTEGER PRIMARY KEY AUTOINCREMENT, account_id TEXT NOT NULL,
    charged INTEGER NOT NULL, loss INTEGER NOT NULL, record BLOB NOT NULL, settled_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS figures (
    account_id TEXT PRIMARY KEY, balance INTEGER NOT NULL, held INTEGER NOT NULL, sequence INTEGER NOT NULL) WITHOUT ROWID;
"""
ADD_HOLD = "INSERT INTO holds VALUES (?, ?, ?, 0, ?)"
MARK_HOLD = "UPDATE holds SET checkpoint = ?, record = ? WHERE hold_id = ?"
SHRINK_HOLD = "UPDATE holds SET amount = ? WHERE hold_id = ?"
DROP_HOLD = "DELETE FROM holds WHERE hold_id = ?"
ADD_CHARGE = "INSERT INTO charges (account_id, charged, loss, record, settled_at) VALUES (?, ?, ?, ?, ?)"
DROP_CHARGE = "DELETE FROM charges WHERE position = ?"
SET_FIGURES = "INSERT OR REPLACE INTO figures VALUES (?, ?, ?, ?)"
RETRY_SECONDS = 0.05

Operation = tuple[str, tuple[object, ...]]


class EmbeddedBalances:
    """Implements Balances and Journal for one process. Call `open()` first; every await is bounded."""

    def __init__(self, path: Path, ledger: Ledger, timeout_seconds: int | float) -> None:
        """`timeout_seconds` bounds how long a hold may wait for the disk before it is refused (503)."""
        self._path, self._ledger, self._timeout = path, ledger, timeout_seconds
        self._book = Book()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._writer: _Writer | None = None
        self._lock_file: IO[str] | None = None
        self._commits: dict[str, asyncio.Future[None]] = {}
        self._on_disk, self._all_read_at = 1, 0
        """Commits that may have left charges on disk; how many there were when a read found none.

        Equal: nothing to flush.
        """

    async def open(self) -> None:
        """Take the file, settle orphans, flush what a dead process left. Raises StoreUnavailable."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = lock_file(self._path)
        await asyncio.to_thread(_prepare, self._path)
        self._writer = _Writer(self._path, asyncio.get_running_loop())
        self._writer.start()
        while entries := await self.pending(1_000):
            await self._ledger.post(entries)
            await self.acknowledge(entries)

    async def close(self) -> None:
        """Write what is queued and let the file go."""
        if self._writer:
            await asyncio.to_thread(self._writer.stop)
        if self._lock_file:
            self._lock_file.close()

    async def hold(self, request: HoldRequest) -> Held | Refused:
        """See Balances."""
        self._check_disk()
        account_id = request.account_id
        if account_id not in self._book.accounts:
            await self._load_account(account_id)
        if request.limits.any and request.key_id not in self._book.keys:
            await self._load_key(request)
        result = self._book.hold(request, _clock_ms())
        if isinstance(result, Held) and request.hold_id not in self._commits:
            self._commits[request.hold_id] = self._write(
                (ADD_HOLD, (request.hold_id, account_id, request.amount, request.record)), self._figures(account_id)
            )
        return result

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
            commit.add_done_callback(self._note_charge)
            try:
                await self._committed(commit)
            except StoreUnavailable:
                return result
        return result

    async def release(self, hold_id: str, account_id: str) -> Settled | Gone:
        """See Balances."""
        return await self.settle(hold_id, account_id, Millicredits(0), b"", 0)

    def checkpoint(self, mark: Checkpoint) -> None:
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
        """Raise StoreUnavailable when the disk has not answered within the bound."""
        self._check_disk()

    async def pending(self, limit: int) -> list[Entry]:
        """The oldest unflushed charges."""
        seen = self._on_disk
        if seen == self._all_read_at:
            return []  # an idle server need not look 20 times a second
        entries = await asyncio.to_thread(read_charges, self._path, limit)
        if not entries:
            self._all_read_at = seen
        return entries

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Forget charges that SQL has committed."""
        await self._committed(self._write(*((DROP_CHARGE, (int(entry.position),)) for entry in entries)))

    async def refused(self, entries: Sequence[Entry]) -> None:
        """Does not happen: this journal has no epochs."""

    async def depth(self) -> tuple[int, int]:
        """(unflushed charges, age of the oldest in milliseconds)."""
        return await asyncio.to_thread(journal_depth, self._path)

    async def outstanding(self) -> Outstanding:
        """The live holds; those of a process that died were resolved at opening."""
        holds = self._book.holds
        oldest = next(iter(holds.values()), None)  # a dict keeps its order
        age = _clock_ms() - oldest.since_ms if oldest is not None else 0
        return Outstanding(len(holds), sum(hold.amount for hold in holds.values()), age)

    def rebuilt(self) -> int:
        """Does not happen: opening it is rebuilding it."""
        return 0

    def _note_charge(self, _commit: "asyncio.Future[None]") -> None:
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
            await asyncio.wait_for(asyncio.shield(commit), self._timeout)
        except TimeoutError:
            raise StoreUnavailable("embedded", "the journal file cannot be written now", in_doubt=True) from None

    def _check_disk(self) -> None:
        if self._writer is None or self._writer.stuck_for() > self._timeout:
            raise StoreUnavailable("embedded", "the journal file cannot be written now")

    async def _load_account(self, account_id: str) -> None:
        """Bring a first-seen account in from SQL, once even when many requests ask at the same time."""
        task = self._loading.get(account_id)
        if task is None:
            task = self._loading[account_id] = asyncio.create_task(self._load(account_id))
            task.add_done_callback(lambda _: self._loading.pop(account_id, None))
        await asyncio.shield(task)

    async def _load(self, account_id: str) -> None:
        posted = await self._ledger.posted(account_id)
        self._book.accounts.setdefault(account_id, AccountState(posted.balance, 0, posted.sequence))

    async def _load_key(self, request: HoldRequest) -> None:
        spent = 0
        if request.limits.spend_limit is not None:
            spent = await self._ledger.key_spent(request.key_id, period_start_ms(request.limits.period))
        self._book.keys.setdefault(request.key_id, KeyState(period=request.limits.period, spent=spent))


class _Writer(threading.Thread):
    """Commits queued operations in order; while one commit runs, the next batch gathers."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="embedded-journal", daemon=True)
        self._path, self._loop = path, loop
        self._wake = threading.Condition()
        self._queue: list[Operation] = []
        self._future: asyncio.Future[None] | None = None
        self._stopping = False
        self._busy_since = 0.0

    def submit(self, operations: Sequence[Operation]) -> "asyncio.Future[None]":
        """Queue operations; the future resolves when they are on disk. Called on the event loop's thread."""
        with self._wake:
            if self._future is None:
                self._future = self._loop.create_future()
                self._wake.notify()
            self._queue.extend(operations)
            return self._future

    def stuck_for(self) -> float:
        """How long the running commit has been trying, in seconds."""
        since = self._busy_since
        return time.monotonic() - since if since else 0.0

    def stop(self) -> None:
        """Commit what is queued, then end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        """The thread's loop."""
        connection = _connect(self._path)
        while True:
            with self._wake:
                while not self._queue and not self._stopping:
                    self._wake.wait()
                batch, future = self._queue, self._future
                self._queue, self._future = [], None
            if batch:
                self._busy_since = time.monotonic()
                self._commit(connection, batch)
                self._busy_since = 0.0
            if future is not None:
                self._resolve(future)
            if self._stopping and not self._queue:
                connection.close()
                return

    def _commit(self, connection: sqlite3.Connection, batch: list[Operation]) -> None:
        """Try until it is done: what the memory decided must reach the disk, or be known not to (stuck_for)."""
        failing = False
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                for statement, values in batch:
                    connection.execute(statement, values)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if not failing:
                    log.error("the journal file cannot be written, it is tried again: %s", error)
                failing = True
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _resolve(self, future: "asyncio.Future[None]") -> None:
        try:
            self._loop.call_soon_threadsafe(_set_done, future)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more


def lock_file(path: Path) -> IO[str]:
    """Own the journal file. Raises StoreUnavailable when another process does."""
    handle = Path(f"{path}.lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise StoreUnavailable("embedded", f"{path} is in use by a running server") from None
    return handle


def read_charges(path: Path, limit: int) -> list[Entry]:
    """The oldest unflushed charges of a journal file, read beside its owner."""
    with _reader(path) as connection:
        rows = connection.execute(
            "SELECT position, charged, loss, record FROM charges ORDER BY position LIMIT ?", (limit,)
        )
        return [Entry(str(position), charged, loss, record) for position, charged, loss, record in rows]


def read_figures(
    path: Path, only: Collection[str] | None = None
) -> tuple[dict[str, Reading], dict[str, int], dict[str, int]]:
    """One consistent snapshot of a journal file: figures, held and unflushed millicredits, each by account (of `only`
    these).
    """
    with _reader(path) as connection:
        connection.execute("BEGIN")
        if only is None:
            rows = connection.execute("SELECT * FROM figures").fetchall()
        else:
            rows = [
                row
                for name in only
                for row in connection.execute("SELECT * FROM figures WHERE account_id = ?", (name,))
            ]
        held = dict(connection.execute("SELECT account_id, sum(amount) FROM holds GROUP BY account_id").fetchall())
        charged = dict(
            connection.execute("SELECT account_id, sum(charged) FROM charges GROUP BY account_id").fetchall()
        )
    return {row[0]: Reading(*row[1:]) for row in rows}, held, charged


def journal_depth(path: Path) -> tuple[int, int]:
    """(unflushed charges, age of the oldest in milliseconds) of a journal file."""
    with _reader(path) as connection:
        count, oldest = connection.execute("SELECT count(*), min(settled_at) FROM charges").fetchone()
    return count, max(0, time.time_ns() // 1_000_000 - oldest) if oldest else 0


class _reader:  # noqa: N801 - reads as a statement
    """A read-only connection that is closed at the end; sqlite errors become StoreUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise StoreUnavailable("embedded", f"there is no journal at {self._path}")
        self._connection = _connect(self._path)
        return self._connection

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._connection.close()
        if isinstance(error, sqlite3.Error):
            raise StoreUnavailable("embedded", str(error)) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _prepare(path: Path) -> None:
    """Create the tables; charge every orphan its checkpoint, release the others; forget old figures."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(SCHEMA)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO charges (account_id, charged, loss, record, settled_at) "
            "SELECT account_id, min(checkpoint, amount), 0, record, ? FROM holds WHERE checkpoint > 0",
            (time.time_ns() // 1_000_000,),
        )
        connection.execute("DELETE FROM holds")
        connection.execute("DELETE FROM figures")
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise StoreUnavailable("embedded", f"{path}: {error}") from error
    finally:
        connection.close()


def _set_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000
