"""SQLite's connection as the engine drives it: a statement with its rows is one trip to the connection's thread.

aiosqlite's own cursor makes four (open, execute, fetch, close), and each wakes a thread and then the loop, which is
most of what a small statement costs.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import aiosqlite

ROWS_AT_ONCE = 1_000
"""So many come with the statement itself; whoever reads row by row asks for the others as they are wanted."""
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON")
"""With the last, a row that OR REPLACE takes away is a deleted one to our triggers."""


class SqliteConnection(aiosqlite.Connection):
    """aiosqlite's connection with cursors of one trip, and none to roll back what has not begun."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        """`connector` opens the database, in the connection's thread."""
        super().__init__(connector, ROWS_AT_ONCE)
        self._thread.daemon = True  # a process never waits for it at its end
        self._in_doubt = False

    def cursor(self) -> "OneTripCursor":  # type: ignore[override]  # there is nothing to wait for
        """Make a cursor; nothing of it is in the database yet."""
        return OneTripCursor(self)

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do this in the connection's thread."""
        return await self._execute(work, *arguments)

    def open_cursor(self) -> sqlite3.Cursor:
        """Open a cursor of SQLite's; in the connection's thread."""
        return self._conn.cursor()

    async def rollback(self) -> None:
        """Roll back, if there is a transaction, or could be one after something that nobody waited for."""
        if self._in_doubt or self.in_transaction:
            await super().rollback()
            self._in_doubt = False

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._in_doubt = True
            raise


class OneTripCursor(aiosqlite.Cursor):
    """A statement and its rows; SQLite's cursor is there only while rows are left to fetch."""

    def __init__(self, connection: SqliteConnection) -> None:
        """Let `connection` run the statement."""
        self.iter_chunk_size = ROWS_AT_ONCE
        self._through = connection
        self._open: sqlite3.Cursor | None = None
        self._in_doubt = False
        self._rows: list[Any] = []
        self._facts: tuple[Any, int, int | None] = (None, -1, None)

    @property
    def description(self) -> Any:
        """Columns of the rows; None: there are no rows."""
        return self._facts[0]

    @property
    def rowcount(self) -> int:
        """Number of rows that were changed."""
        return self._facts[1]

    @property
    def lastrowid(self) -> int | None:
        """Row that was inserted last."""
        return self._facts[2]

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> "OneTripCursor":
        """Run the statement and fetch its first rows."""
        await self._trip(self._begin, sqlite3.Cursor.execute, sql, parameters or ())
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> "OneTripCursor":
        """Run the statement with each of these."""
        await self._trip(self._begin, sqlite3.Cursor.executemany, sql, parameters)
        return self

    async def fetchone(self) -> Any:
        """Fetch the next row; None: there is no other."""
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Fetch as many of the rows that are left."""
        wanted = size or 1
        if len(self._rows) < wanted and self._open is not None:
            await self._trip(self._fetch, max(wanted - len(self._rows), ROWS_AT_ONCE))
        rows, self._rows = self._rows[:wanted], self._rows[wanted:]
        return rows

    async def fetchall(self) -> list[Any]:
        """Fetch all rows that are left."""
        if self._open is not None:
            await self._trip(self._fetch, -1)
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Forget the rows, and end a statement that has not come to its end."""
        if self._in_doubt or self._open is not None:
            await self._trip(self._end)
        self._rows = []

    async def _trip(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            await self._through.run(work, *arguments)
        except asyncio.CancelledError:
            self._in_doubt = True  # it goes on, and nobody waits for its end
            raise

    # what follows runs in the connection's thread

    def _begin(self, how: Callable[..., Any], sql: str, parameters: Iterable[Any]) -> None:
        cursor = self._through.open_cursor()
        how(cursor, sql, parameters)
        self._open, self._rows = cursor, []
        if cursor.description:
            self._fetch(ROWS_AT_ONCE)
        else:
            self._end()

    def _fetch(self, size: int) -> None:
        if self._open is None:
            return
        rows = self._open.fetchall() if size < 0 else self._open.fetchmany(size)
        self._rows = [*self._rows, *rows] if self._rows else rows
        if len(rows) < size or size < 0:
            self._end()
        else:
            self._facts = (self._open.description, self._open.rowcount, self._open.lastrowid)

    def _end(self) -> None:
        cursor, self._open = self._open, None
        if cursor is not None:
            self._facts = (cursor.description, cursor.rowcount, cursor.lastrowid)
            cursor.close()


async def connect(database: str, **options: Any) -> SqliteConnection:
    """Open a database as the engine wants it: safe at every commit, constraints kept, transactions begun by us alone.

    The driver must not open transactions by itself: we say BEGIN IMMEDIATE, so that a write transaction waits for the
    lock at its start and never fails half-way with "database is locked".
    """

    def open_it() -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(database, **{**options, "isolation_level": None})
        try:
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").close()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    connection = SqliteConnection(open_it)
    await connection
    return connection
