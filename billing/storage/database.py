"""One SQL database, SQLite or PostgreSQL, behind two context managers: `read()` and `write()`."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import certifi
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from billing.money.errors import StoreUnavailable
from billing.storage.private_files import make_private
from billing.storage.sqlite_connection import connect as connect_sqlite
from config.store_urls import SQLALCHEMY_FIELDS, SYSTEM_ROOTS

SQLITE_CLOCK = "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
POSTGRESQL_CLOCK = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
LET_GO_SECONDS = 15
"""Pause between two statements of a transaction that writes, at which PostgreSQL ends it and frees its rows.

A machine that is cut off says no more and never hangs up: until the kernel's keep-alive, for two hours, nobody else
could book a charge of those accounts.
"""
OUR_FAULT = (IntegrityError, ProgrammingError, DataError)
OUR_FAULT_STATES = ("22", "23", "42", "P0")
"""Classes of SQLSTATE: data that does not fit, broken constraints, wrong SQL, a trigger of ours that said no."""


class Readable(Protocol):
    """A database, or a replica of it, for readers that only show and report: it takes no writes."""

    @property
    def is_sqlite(self) -> bool:
        """True where its SQL is SQLite's."""

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a connection for reading, each statement its own snapshot. Raises StoreUnavailable."""


class Database:
    """An engine and its manners: bounded waits, write transactions that take their lock at once."""

    def __init__(
        self, url: str, pool_size: int, timeout_seconds: int | float, statement_seconds: int | float | None = None
    ) -> None:
        """`timeout_seconds` bounds connecting, one statement, and waiting for a lock or a pooled connection.

        `statement_seconds` is another bound for one statement, for jobs that read whole tables.
        """
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._timeout_seconds, self._writing = timeout_seconds, asyncio.Lock()
        if self.is_sqlite:
            self.engine = _sqlite(self.url, timeout_seconds, transactions=True)
            self.reader = _sqlite(self.url, timeout_seconds, transactions=False)
        else:
            statement = timeout_seconds if statement_seconds is None else statement_seconds
            self.engine = _postgresql(self.url, pool_size, timeout_seconds, statement)
            self.reader = _postgresql(self.url, pool_size, timeout_seconds, statement, isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading, each statement its own snapshot. Raises StoreUnavailable."""
        with translated():
            async with self.reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end, rolled back on any exception. Raises StoreUnavailable."""
        with translated():
            async with self._turn(), self.engine.begin() as connection:
                if not self.is_sqlite:  # here and not for the connection: PgBouncer hands one to many
                    limit = f"SET LOCAL idle_in_transaction_session_timeout = {LET_GO_SECONDS * 1_000}"
                    await connection.exec_driver_sql(limit)
                yield connection

    async def clock_ms(self, connection: AsyncConnection) -> int:
        """Return the database's own time in Unix milliseconds: of what one machine begins and another ends, as a lease,
        since machines differ.
        """
        statement = SQLITE_CLOCK if self.is_sqlite else POSTGRESQL_CLOCK
        return int((await connection.execute(text(statement))).scalar_one())

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let writers of this process into SQLite one by one: who waits for its lock sleeps up to 0.1 s."""
        if not self.is_sqlite:
            yield
            return
        async with asyncio.timeout(self._timeout_seconds):
            await self._writing.acquire()
        try:
            yield
        finally:
            self._writing.release()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading whose statements see one moment, and may be read row by row (`stream`).

        Raises StoreUnavailable.
        """
        engine = self.reader if self.is_sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ")
        with translated():
            async with engine.connect() as connection:
                if self.is_sqlite:
                    await connection.exec_driver_sql("BEGIN")
                try:
                    yield connection
                finally:
                    # of a statement that was cancelled the connection is gone, and an error would hide the cancellation
                    if self.is_sqlite and not connection.invalidated:
                        await connection.exec_driver_sql("ROLLBACK")

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        await self.reader.dispose()


def _sqlite(url: URL, timeout_seconds: int | float, *, transactions: bool) -> AsyncEngine:
    """Without `transactions` every statement commits by itself: reading then takes no lock and no round trips."""
    # a reader has nothing to roll back, and asking for it costs a third of a small read
    reset = "rollback" if transactions else None
    engine = create_async_engine(
        url,
        connect_args={"timeout": timeout_seconds, "async_creator_fn": connect_sqlite},
        hide_parameters=True,
        pool_reset_on_return=reset,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def make_folder(
        *_connecting: object,
    ) -> None:  # not before: who only asks whether there is a ledger leaves no trace
        if url.database and url.database != ":memory:":
            make_private(Path(url.database))

    if transactions:

        @event.listens_for(engine.sync_engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql(
    url: URL, pool_size: int, timeout_seconds: int | float, statement_seconds: int | float, **options: str
) -> AsyncEngine:
    ours, fields = _split_fields(url)
    return create_async_engine(
        ours,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=timeout_seconds,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"timeout": timeout_seconds, "command_timeout": statement_seconds, **fields},
        **options,
    )


def _split_fields(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL with the fields that SQLAlchemy reads, and the rest as arguments of asyncpg.

    libpq's own fields (`sslmode` and its kin) go to asyncpg as a DSN: there it gives them libpq's meaning.
    config/store_urls.py says which there are.
    """
    fields = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    ours = url.set(query={name: url.query[name] for name in SQLALCHEMY_FIELDS if name in fields})
    found: dict[str, Any] = {}
    if "statement_cache_size" in fields:
        found["statement_cache_size"] = int(fields.pop("statement_cache_size"))
    if "ssl" in fields:
        fields["sslmode"] = fields.pop("ssl")
    if fields.get("sslrootcert") == SYSTEM_ROOTS:
        fields["sslrootcert"] = certifi.where()
    libpq = {name: value for name, value in fields.items() if name not in (*SQLALCHEMY_FIELDS, "channel_binding")}
    if libpq:
        found["dsn"] = f"postgresql://?{urlencode(libpq, quote_via=quote)}"
    return ours, found


def now_ms() -> int:
    """Return this machine's wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def is_our_fault(error: DBAPIError) -> bool:
    """Tell whether the database answered and refused what we sent, so that trying again cannot help."""
    root = error.orig
    refused_by_driver = isinstance(
        getattr(root, "__cause__", None), ValueError
    )  # asyncpg, before it sends a number too large
    return (
        isinstance(error, OUR_FAULT)
        or str(getattr(root, "sqlstate", "") or "")[:2] in OUR_FAULT_STATES
        or refused_by_driver
    )


class translated:  # noqa: N801 - reads as a statement
    """Turns every way in which a database can be away into StoreUnavailable."""

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        """Raise StoreUnavailable where the error says that."""
        if error is None or isinstance(error, (StoreUnavailable, asyncio.CancelledError)):
            return
        # a failover's read-only server or a full disk arrive as plain DBAPIErrors: only what is our own fault is not
        # "away"
        away = isinstance(error, (OperationalError, InterfaceError, PoolTimeout, OSError, TimeoutError))
        if isinstance(error, DBAPIError):
            away = error.connection_invalidated or not is_our_fault(error)
        if away or type(error).__module__.startswith("asyncpg"):
            root = getattr(error, "orig", None) or error
            raise StoreUnavailable("sql", f"{type(root).__name__}: {root}", in_doubt=True) from error
