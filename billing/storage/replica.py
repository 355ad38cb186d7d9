"""A replica of PostgreSQL: what only shows and reports reads from it while it is well, and from the primary else.

How late it is, is measured in what the primary has written: at each look its position in the log is marked with the
time, and the newest mark that the replica has replayed says as of when it has everything. So an idle primary makes
nobody late, no two clocks are compared, and a replica that is cut off from its primary is late by itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, cast

from sqlalchemy import CursorResult, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.money.errors import StoreUnavailable
from billing.storage.database import Database, translated
from billing.storage.migrate import current_revision, newest_revision

LOOK_SECONDS = 1.0
LOOK_WITHIN_SECONDS = 1.0
LATEST_SECONDS = 5.0
"""Later than that it is not read from: what somebody changes is in force everywhere within 5 s, and then to be seen."""
BACK_SECONDS = 3.0
"""No later than that it is read from again, so that one about the limit does not come and go. A busy primary's replica
is a look late by this measure."""
MOST_MARKS = 600
BEFORE_ALL = -1
"""Position of a replica that was not seen to have replayed anything."""

WHICH = "system_identifier || '/' || current_database() || '/' || current_schema() FROM pg_control_system()"
PRIMARY = text(f"SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint, {WHICH}")
REPLICA = text(f"SELECT pg_is_in_recovery(), (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint, {WHICH}")

NOT_SEEN = "has not been seen to follow the primary yet"
AWAY = "does not answer"
NO_REPLICA = "is no replica: it takes writes itself"
ANOTHER = "is a copy of another database than database.url names"
LATE = f"is more than {LATEST_SECONDS:.0f} s behind the primary"
REFUSED = "cannot be looked at"
UNKNOWN = "does not say what it has replayed, so nobody knows how late it is"
ALONE = "cannot be compared with the primary, which does not answer"
OLD_SCHEMA = "does not have the schema of this version"


class _Mark(NamedTuple):
    """Position in the primary's log at a time (monotonic seconds), and until when charges were booked (Unix ms)."""

    at: float
    position: int
    booked_until: int


class Replica:
    """A replica and its primary, as one Readable.

    `problem` says why it is not read from, "" while it is; `booked_until`, until when (Unix ms) charges are on it.
    """

    def __init__(self, primary: Database, url: str, pool_size: int, timeout_seconds: int | float) -> None:
        """Nothing is connected yet, and the primary is read from until `look` has found the replica well."""
        self._primary, self._replica = primary, Database(url, pool_size, timeout_seconds)
        # apart, so that reports which fill the pool do not make it look away
        self._looks = Database(url, 1, LOOK_WITHIN_SECONDS)
        self._marks, self._which = deque[_Mark](), ""
        self._fresh = _Mark(time.monotonic(), BEFORE_ALL, 0)
        self.problem, self.details, self.lag_seconds = NOT_SEEN, "", 0.0
        self.booked_until, self._failures = 0, 0

    @property
    def is_sqlite(self) -> bool:
        """Never: there are replicas of PostgreSQL only."""
        return False

    @property
    def used(self) -> bool:
        """True while it is read from."""
        return not self.problem

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading, each statement its own snapshot. The primary is asked what the replica fails.

        Raises StoreUnavailable when the primary is away as well.
        """
        if not self.used:
            async with self._primary.read() as connection:
                yield connection
            return
        asking = _AskedAgain(self._replica.reader, self._primary.reader)
        try:
            with translated():
                async with asking:
                    yield asking
        finally:
            if asking.left:
                self.count_failure()

    async def look(self, booked_until: int) -> None:
        """Look at both, and decide from where is read. `booked_until`: until when charges are booked (Unix ms)."""
        try:
            compared = await self._mark(booked_until)
            problem, details = await self._find_problem()
            if problem == LATE and not compared:
                problem, details = ALONE, ""
        except DBAPIError as error:  # a right that our role lacks, there or here
            problem, details = REFUSED, str(error.orig)
        self.problem, self.details = problem, details
        self.lag_seconds = time.monotonic() - self._fresh.at if problem or self._marks else 0.0

    def count_failure(self) -> None:
        """Count a read that the primary was asked for, as the replica failed at it."""
        self._failures += 1

    def failures(self) -> int:
        """Return how many there were since this was asked last."""
        found, self._failures = self._failures, 0
        return found

    async def close(self) -> None:
        """Close every connection."""
        await self._replica.close()
        await self._looks.close()

    async def _mark(self, booked_until: int) -> bool:
        """Mark where the primary is; False: it cannot be asked, so nobody knows how late a replica is."""
        now = time.monotonic()  # before it is asked: what was committed by then is before its position
        try:
            async with asyncio.timeout(LOOK_WITHIN_SECONDS), self._primary.read() as connection:
                position, self._which = (await connection.execute(PRIMARY)).one()
        except (StoreUnavailable, TimeoutError):
            return False
        if len(self._marks) < MOST_MARKS:
            self._marks.append(_Mark(now, position, booked_until))
        return True

    async def _find_problem(self) -> tuple[str, str]:
        """Return why the replica is not to be read from, and what else is to be logged of it; "" where it is well."""
        try:
            async with asyncio.timeout(LOOK_WITHIN_SECONDS), self._looks.read() as connection:
                recovering, position, which = (await connection.execute(REPLICA)).one()
            async with asyncio.timeout(LOOK_WITHIN_SECONDS):
                revision = await current_revision(self._looks)
        except StoreUnavailable as error:
            return AWAY, str(error)
        except TimeoutError:
            return AWAY, ""
        if not recovering:
            return NO_REPLICA, ""
        if position is None:  # of a service whose replicas are not PostgreSQL's own
            return UNKNOWN, ""
        if self._which and which != self._which:
            return ANOTHER, f"{which}, not {self._which}"
        if revision != newest_revision():
            return OLD_SCHEMA, f"{revision}, not {newest_revision()}"
        if position < self._fresh.position:  # made anew of an older copy, or another server under the same name
            self._fresh = self._fresh._replace(position=BEFORE_ALL)
        while self._marks and self._marks[0].position <= position:
            self._fresh = self._marks.popleft()
            self.booked_until = self._fresh.booked_until
        if self._fresh.position == BEFORE_ALL:
            return NOT_SEEN, ""
        behind = time.monotonic() - self._fresh.at
        if behind > (LATEST_SECONDS if self.used else BACK_SECONDS):
            return LATE, f"{behind:.1f} s"
        return "", ""


class _AskedAgain(AsyncConnection):
    """A connection to the replica that moves to the primary, for good, once the replica fails it.

    That is away, was too slow, or ended the statement because replaying was in its way.
    """

    def __init__(self, replica: AsyncEngine, primary: AsyncEngine) -> None:
        super().__init__(replica)
        self._primary, self.left = primary, False

    async def start(self, is_ctxmanager: bool = False) -> AsyncConnection:
        """Connect."""
        try:
            with translated():
                return await super().start(is_ctxmanager)
        except StoreUnavailable:
            return await self._move()

    async def execute(self, statement: Any, parameters: Any = None, **options: Any) -> CursorResult[Any]:
        """Execute a statement, at the primary where the replica fails."""
        if not self.left:
            with suppress(StoreUnavailable), translated():
                return cast("CursorResult[Any]", await super().execute(statement, parameters, **options))
            with suppress(StoreUnavailable), translated():
                await self.invalidate()
                await self.close()
            await self._move()
        return cast("CursorResult[Any]", await super().execute(statement, parameters, **options))

    async def _move(self) -> AsyncConnection:
        self.left = True
        self.engine, self.sync_engine = self._primary, self._primary.sync_engine
        self.sync_connection = None
        return await super().start()
