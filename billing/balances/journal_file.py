"""The embedded store's file: its tables, the thread that writes it, and reading it beside its owner.

Every decision of the store's memory is a list of operations; the writer commits, in their order, all that gathered
while it committed those before (one fsync each). A future per batch says when it is on disk (I3).
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry, Reading
from billing.storage.private_files import ONLY_OURS

log = logging.getLogger("tollkeeper.embedded")

SCHEMA = """
CREATE TABLE IF NOT EXISTS holds (
    hold_id TEXT PRIMARY KEY, account_id TEXT NOT NULL, amount INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charges (
    position INTEGER PRIMARY KEY AUTOINCREMENT, account_id TEXT NOT NULL,
    charged INTEGER NOT NULL, loss INTEGER NOT NULL, record BLOB NOT NULL, settled_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS figures (
    account_id TEXT PRIMARY KEY, balance INTEGER NOT NULL, held INTEGER NOT NULL,
    sequence INTEGER NOT NULL) WITHOUT ROWID;
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


class JournalWriter(threading.Thread):
    """Commits queued operations in order; while one commit runs, the next batch gathers."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        """Open the file and start the writing thread; `loop` hears of commits."""
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
        """Return the seconds that the running commit has been trying."""
        since = self._busy_since
        return time.monotonic() - since if since else 0.0

    def stop(self) -> None:
        """Commit what is queued, then end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.join()

    def run(self) -> None:
        """Commit batch after batch until stopped."""
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
                    # a full or locked disk needs no trace
                    log.error("the journal file cannot be written, it is tried again: %s", error)  # noqa: TRY400 - a full disk is no fault of ours
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
    handle = os.fdopen(os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, ONLY_OURS), "w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise StoreUnavailable("embedded", f"{path} is in use by a running server") from None
    return handle


def read_charges(path: Path, limit: int) -> list[Entry]:
    """Return the oldest unflushed charges."""
    with _reading(path) as connection:
        rows = connection.execute(
            "SELECT position, charged, loss, record FROM charges ORDER BY position LIMIT ?", (limit,)
        )
        return [Entry(str(position), charged, loss, record) for position, charged, loss, record in rows]


def read_figures(
    path: Path, only: Collection[str] | None = None
) -> tuple[dict[str, Reading], dict[str, int], dict[str, int]]:
    """Return one consistent snapshot: figures, held and unflushed millicredits, each by account (of `only` these)."""
    with _reading(path) as connection:
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
    """Return (unflushed charges, age of the oldest in milliseconds)."""
    with _reading(path) as connection:
        count, oldest = connection.execute("SELECT count(*), min(settled_at) FROM charges").fetchone()
    return count, max(0, time.time_ns() // 1_000_000 - oldest) if oldest else 0


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a connection to read with, closed at the end; sqlite errors become StoreUnavailable."""
    if not path.exists():
        raise StoreUnavailable("embedded", f"there is no journal at {path}")
    connection = _connect(path)
    try:
        yield connection
    except sqlite3.Error as error:
        raise StoreUnavailable("embedded", str(error)) from error
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def prepare_journal(path: Path) -> None:
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
