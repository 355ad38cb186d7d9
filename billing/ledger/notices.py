"""News for the operator's own app: a row, written in the transaction in which it happened.

billing/jobs/notices.py delivers it until it is taken.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.errors import BillingError
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.payments import notices


class Notice(NamedTuple):
    """Something that happened to an account.

    `notice_id` names it, so that it is told once however often it is written.
    """

    notice_id: str
    account_id: str
    kind: str
    data: dict[str, Any]


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


NOTICE_COLUMNS = columns_of(notices, NoticeRow._fields)


class NoticeNotFound(BillingError):
    """There is no notice of that id."""


class NoticeQueue:
    """Notices of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database, *, wanted: bool) -> None:
        """`wanted`: somebody listens; otherwise nothing is written."""
        self._db, self._wanted = database, wanted

    async def write(self, connection: AsyncConnection, told: Sequence[Notice]) -> None:
        """Queue notices inside the caller's transaction."""
        if not self._wanted or not told:
            return
        now = now_ms()
        rows = [
            {
                "id": notice.notice_id,
                "account_id": notice.account_id,
                "kind": notice.kind,
                "payload": msgspec.json.encode(
                    {
                        "id": notice.notice_id,
                        "kind": notice.kind,
                        "accountId": notice.account_id,
                        "createdAtMs": now,
                        "data": notice.data,
                    }
                ).decode(),
                "state": "pending",
                "next_at": now,
                "created_at": now,
            }
            for notice in told
        ]
        dialect = sqlite if self._db.is_sqlite else postgresql
        await connection.execute(dialect.insert(notices).on_conflict_do_nothing(), rows)

    async def listing(self, state: str | None, limit: int) -> list[NoticeRow]:
        """Return notices, newest first."""
        query = select(*NOTICE_COLUMNS).order_by(notices.c.created_at.desc(), notices.c.id).limit(limit)
        if state is not None:
            query = query.where(notices.c.state == state)
        async with self._db.read() as connection:
            return [NoticeRow(*row) for row in await connection.execute(query)]

    async def revive(self, notice_id: str) -> None:
        """Deliver a notice again, dead or sent. Raises NoticeNotFound."""
        async with self._db.write() as connection:
            changed = await connection.execute(
                update(notices).where(notices.c.id == notice_id).values(state="pending", attempts=0, next_at=now_ms())
            )
            if changed.rowcount != 1:
                raise NoticeNotFound(f"there is no notice {notice_id!r}")
