"""Events for the operator's own programs: a row for each that listens, written in the transaction in which it happened.

billing/jobs/notices.py delivers each until it is taken.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.events.endpoints import listeners
from billing.ledger.events.kinds import wants
from billing.money.errors import BillingError
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.payments import notices

KNOWN_SECONDS = 1.0
"""How long it is remembered who listens, so that what is told often need not ask each time."""
FILE = ""
"""Endpoint id of the URL of the configuration."""


class Notice(NamedTuple):
    """Something that happened to an account.

    `notice_id` names it, so that it is told once however often it is written. `at_ms`: when it happened (Unix
    milliseconds; 0: now); who began to listen later is not told.
    """

    notice_id: str
    account_id: str
    kind: str
    data: dict[str, Any]
    at_ms: int = 0


class NoticeRow(NamedTuple):
    """A queued notice. `payload` is the JSON body that is delivered; times in Unix milliseconds."""

    id: str
    account_id: str
    kind: str
    payload: str
    state: str
    attempts: int
    next_at: int
    created_at: int
    sent_at: int | None
    last_error: str
    endpoint_id: str

    @property
    def event_id(self) -> str:
        """Name of what happened, the same for everyone who is told."""
        return self.id.removesuffix(f"@{self.endpoint_id}") if self.endpoint_id else self.id


class _Listener(NamedTuple):
    endpoint_id: str
    kinds: tuple[str, ...]
    since: int


class NoticeFilters(NamedTuple):
    """Filters of a listing of notices; None: any."""

    state: str | None = None
    endpoint_id: str | None = None
    account_id: str | None = None
    kind: str | None = None


NOTICE_COLUMNS = columns_of(notices, NoticeRow._fields)


class NoticeNotFound(BillingError):
    """There is no notice of that id."""


class NoticeQueue:
    """Notices of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database, *, wanted: bool, kinds: tuple[str, ...] = ("*",)) -> None:
        """`wanted`: the configuration names a URL, which wants these `kinds`."""
        self._db = database
        self._file = [_Listener(FILE, kinds, 0)] if wanted else []
        self._known: list[_Listener] = []
        self._known_until = 0.0

    async def write(self, connection: AsyncConnection, told: Sequence[Notice]) -> None:
        """Queue notices inside the caller's transaction, for everyone who listens to their kinds."""
        if not told:
            return
        heard = await self._ask(connection)  # not who listened a moment ago: who has just begun is told already
        wanted = [(notice, found) for notice in told if (found := [one for one in heard if _is_told(notice, one)])]
        if not wanted:
            return
        now = now_ms()
        last = await _last_times(connection, {notice.account_id for notice, _ in wanted})
        rows: list[dict[str, Any]] = []
        for notice, listening in wanted:
            # an account's are told in this order, whatever the clock says
            at = last[notice.account_id] = max(now, last.get(notice.account_id, 0) + 1)
            rows += _rows(notice, listening, at, now)
        dialect = sqlite if self._db.is_sqlite else postgresql
        await connection.execute(dialect.insert(notices).on_conflict_do_nothing(), rows)

    async def write_if_heard(
        self, connection: AsyncConnection, kind: str, make: Callable[[], Sequence[Notice]]
    ) -> None:
        """Queue notices of a kind that few want, which are not even made when nobody does."""
        heard = self._known if time.monotonic() < self._known_until else await self._ask(connection)
        if any(wants(one.kinds, kind) for one in heard):
            await self.write(connection, make())

    async def is_heard(self, *kinds: str) -> bool:
        """Tell whether anybody listens to one of these kinds."""
        if time.monotonic() >= self._known_until:
            async with self._db.read() as connection:
                await self._ask(connection)
        return any(wants(one.kinds, kind) for one in self._known for kind in kinds)

    async def listing(self, state: str | None, limit: int) -> list[NoticeRow]:
        """Return notices, newest first."""
        return await self.found(NoticeFilters(state), limit)

    async def found(self, filters: NoticeFilters, limit: int, before: tuple[int, str] | None = None) -> list[NoticeRow]:
        """Return the notices that fit, newest first; `before`: those behind this time and id."""
        table = notices.c
        query = select(*NOTICE_COLUMNS).order_by(table.created_at.desc(), table.id).limit(limit)
        for name, value in filters._asdict().items():
            if value is not None:
                query = query.where(table[name] == value)
        if before is not None:
            query = query.where(
                (table.created_at < before[0]) | ((table.created_at == before[0]) & (table.id > before[1]))
            )
        async with self._db.read() as connection:
            return [NoticeRow(*row) for row in await connection.execute(query)]

    async def revive(self, notice_id: str, who: Who | None = None, reason: str = "") -> None:
        """Deliver a notice again, dead or sent. Raises NoticeNotFound."""
        async with self._db.write() as connection:
            changed = await connection.execute(
                update(notices).where(notices.c.id == notice_id).values(state="pending", attempts=0, next_at=now_ms())
            )
            if changed.rowcount != 1:
                raise NoticeNotFound(f"there is no notice {notice_id!r}")
            await record_change(connection, who, Change("event.replay", notice_id, None, {"state": "pending"}, reason))

    async def _ask(self, connection: AsyncConnection) -> list[_Listener]:
        """Find out who listens, and remember it for a moment."""
        rows = await listeners(connection)
        self._known = [*self._file, *(_Listener(row.id, row.patterns, row.created_at) for row in rows)]
        self._known_until = time.monotonic() + KNOWN_SECONDS
        return self._known


def _rows(notice: Notice, listening: Sequence[_Listener], at: int, now: int) -> list[dict[str, Any]]:
    """Return the rows of a notice, one a listener; what they are told is the same to the byte."""
    body = {
        "id": notice.notice_id,
        "kind": notice.kind,
        "accountId": notice.account_id,
        "createdAtMs": at,
        "data": notice.data,
    }
    payload = msgspec.json.encode(body).decode()
    return [
        {
            "id": f"{notice.notice_id}@{one.endpoint_id}" if one.endpoint_id else notice.notice_id,
            "account_id": notice.account_id,
            "kind": notice.kind,
            "payload": payload,
            "state": "pending",
            "next_at": now,
            "created_at": at,
            "endpoint_id": one.endpoint_id,
        }
        for one in listening
    ]


def _is_told(notice: Notice, one: _Listener) -> bool:
    return wants(one.kinds, notice.kind) and (not notice.at_ms or notice.at_ms >= one.since)


async def _last_times(connection: AsyncConnection, account_ids: Iterable[str]) -> dict[str, int]:
    """Return when each account's last notice was made."""
    query = select(notices.c.account_id, func.max(notices.c.created_at)).where(notices.c.account_id.in_(account_ids))
    return {row[0]: row[1] for row in await connection.execute(query.group_by(notices.c.account_id))}
