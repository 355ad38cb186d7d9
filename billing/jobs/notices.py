"""Notices, delivered to the operator's own app until it takes them.

pending ──2xx──▶ sent          anything else, or no answer: again after 10 s, 20 s, 40 s ... at most an hour
└──too often──▶ dead        `tollkeeper notices` lists and revives them
"""

import asyncio
from collections.abc import Awaitable, Callable

from sqlalchemy import select, update

from billing.ledger.notices import NOTICE_COLUMNS, NoticeRow
from billing.payments.stripe.signatures import sign
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import notices

FIRST_RETRY_MS = 10_000
LONGEST_RETRY_MS = 3_600_000
BATCH = 50
AT_ONCE = 5
MOST_ATTEMPTS = 12
"""Then a notice is dead."""

Post = Callable[[bytes, dict[str, str]], Awaitable[str]]
"""Delivers a body with these headers; "" when it was taken (2xx), else why not."""


class NoticeDelivery:
    """The sending side of the queue. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` has the queue."""
        self._db = database

    async def deliver(self, post: Post, secret: str, max_attempts: int = MOST_ATTEMPTS) -> int:
        """Deliver what is due; how many were taken."""
        now = now_ms()
        query = select(*NOTICE_COLUMNS).where(notices.c.state == "pending", notices.c.next_at <= now)
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(notices.c.next_at, notices.c.id).limit(BATCH))
            due = [NoticeRow(*row) for row in rows]
        room = asyncio.Semaphore(AT_ONCE)

        async def one(row: NoticeRow) -> bool:
            async with room:
                body = row.payload.encode()
                headers = {
                    "content-type": "application/json",
                    "tollkeeper-signature": sign(body, secret, now_ms() // 1_000),
                }
                error = await post(body, headers)
            await self._record_attempt(row.id, row.attempts + 1, error, max_attempts)
            return not error

        return sum(await asyncio.gather(*(one(row) for row in due)))

    async def _record_attempt(self, notice_id: str, attempts: int, error: str, max_attempts: int) -> None:
        now = now_ms()
        values: dict[str, str | int] = {"attempts": attempts, "last_error": error[:500]}
        if not error:
            values |= {"state": "sent", "sent_at": now}
        elif attempts >= max_attempts:
            values |= {"state": "dead"}
        else:
            values |= {"next_at": now + min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** (attempts - 1))}
        async with self._db.write() as connection:
            await connection.execute(update(notices).where(notices.c.id == notice_id).values(**values))
