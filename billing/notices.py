"""What the operator's own app is told: written in the transaction in which it happened, delivered until it is taken.

pending ──2xx──▶ sent          anything else, or no answer: again after 10 s, 20 s, 40 s ... at most an hour
└──too often──▶ dead        `tollkeeper notices` lists and revives them
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.database import Database, now_ms
from billing.errors import BillingError
from billing.money_tables import notices
from billing.signatures import sign

FIRST_RETRY_MS = 10_000
LONGEST_RETRY_MS = 3_600_000
BATCH = 50
AT_ONCE = 5

Post = Callable[[bytes, dict[str, str]], Awaitable[str]]
"""Delivers a body with these headers; "" when it was taken (2xx), else why not."""


class Notice(NamedTuple):
    """Something that happened to an account. `notice_id` names it, so that it is told once however often it is written."""

    notice_id: str
    account_id: str
    kind: str
    data: dict[str, Any]


class NoticeNotFound(BillingError):
    """There is no notice of that id."""


class Notices:
    """Writes and delivers. Raises StoreUnavailable when SQL is away."""

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
                    {"id": notice.notice_id, "kind": notice.kind, "accountId": notice.account_id, "createdAtMs": now, "data": notice.data}
                ).decode(),
                "state": "pending",
                "next_at": now,
                "created_at": now,
            }
            for notice in told
        ]
        dialect = sqlite if self._db.is_sqlite else postgresql
        await connection.execute(dialect.insert(notices).on_conflict_do_nothing(), rows)

    async def deliver(self, post: Post, secret: str, max_attempts: int) -> int:
        """Deliver what is due; how many were taken."""
        now = now_ms()
        query = select(notices).where(notices.c.state == "pending", notices.c.next_at <= now)
        async with self._db.read() as connection:
            due = (await connection.execute(query.order_by(notices.c.next_at, notices.c.id).limit(BATCH))).mappings().all()
        room = asyncio.Semaphore(AT_ONCE)

        async def one(row: Any) -> bool:
            async with room:
                body = row["payload"].encode()
                headers = {"content-type": "application/json", "tollkeeper-signature": sign(body, secret, now_ms() // 1_000)}
                error = await post(body, headers)
            await self._note(row["id"], row["attempts"] + 1, error, max_attempts)
            return not error

        return sum(await asyncio.gather(*(one(row) for row in due)))

    async def listing(self, state: str | None, limit: int) -> list[dict[str, Any]]:
        """Notices, newest first."""
        query = select(notices).order_by(notices.c.created_at.desc(), notices.c.id).limit(limit)
        if state is not None:
            query = query.where(notices.c.state == state)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def revive(self, notice_id: str) -> None:
        """Deliver a notice again, dead or sent. Raises NoticeNotFound."""
        async with self._db.write() as connection:
            changed = await connection.execute(
                update(notices).where(notices.c.id == notice_id).values(state="pending", attempts=0, next_at=now_ms())
            )
            if changed.rowcount != 1:
                raise NoticeNotFound(f"there is no notice {notice_id!r}")

    async def _note(self, notice_id: str, attempts: int, error: str, max_attempts: int) -> None:
        now = now_ms()
        values: dict[str, Any] = {"attempts": attempts, "last_error": error[:500]}
        if not error:
            values |= {"state": "sent", "sent_at": now}
        elif attempts >= max_attempts:
            values |= {"state": "dead"}
        else:
            values |= {"next_at": now + min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** (attempts - 1))}
        async with self._db.write() as connection:
            await connection.execute(update(notices).where(notices.c.id == notice_id).values(**values))
