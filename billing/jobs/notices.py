"""Notices, delivered to everyone who listens until they are taken.

pending ──2xx──▶ sent          anything else, or no answer: again after 10 s, 20 s, 40 s ... at most an hour
└──too often──▶ dead        `tollkeeper events list --state dead`, `events replay`

To one listener, an account's notices go one after the other, in the order in which they were written: while one is
tried again, those behind it wait; one that is dead waits for nobody. What was sent and not recorded, because the
process died, is sent again: at least once, under the same id.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from sqlalchemy import and_, delete, exists, or_, select, update

from billing.ledger.notices import NOTICE_COLUMNS, NoticeRow
from billing.payments.stripe.signatures import sign_with_all
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import notices

FIRST_RETRY_MS = 10_000
LONGEST_RETRY_MS = 3_600_000
BATCH = 50
AT_ONCE = 5
MOST_ATTEMPTS = 12
"""Then a notice is dead."""
WAIT_SECONDS = 1.0
"""How long a step waits for listeners that are slow; they go on by themselves."""
KEEP_MS = 30 * 86_400_000
"""How long what was sent, or is dead, can be looked at and sent again."""
DROP_BATCH = 500

Post = Callable[[bytes, dict[str, str]], Awaitable[str]]
"""Delivers a body with these headers; "" when it was taken (2xx), else why not."""


class Target(NamedTuple):
    """A listener, how it is reached, and what is signed with (two secrets while a rotation's grace lasts)."""

    endpoint_id: str
    post: Post
    secrets: Sequence[str]


class NoticeDelivery:
    """The sending side of the queue. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` has the queue."""
        self._db = database
        self._running: dict[str, asyncio.Task[int]] = {}

    async def deliver(self, targets: Sequence[Target], max_attempts: int = MOST_ATTEMPTS) -> int:
        """Deliver what is due; how many were taken. A listener that is slow keeps no other waiting."""
        for target in targets:
            if target.endpoint_id not in self._running:
                work = self._deliver_to(target, max_attempts)
                self._running[target.endpoint_id] = asyncio.create_task(work)
        if not self._running:
            return 0
        await asyncio.wait(self._running.values(), timeout=WAIT_SECONDS)
        ended = [name for name, task in self._running.items() if task.done()]
        return sum([self._running.pop(name).result() for name in ended])

    async def close(self) -> None:
        """Leave what is on its way: it is sent again."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def drop_old(self) -> int:
        """Drop some of what is over and was kept long enough; how many went."""
        old = select(notices.c.id).where(notices.c.state != "pending", notices.c.created_at < now_ms() - KEEP_MS)
        async with self._db.write() as connection:
            gone = await connection.execute(delete(notices).where(notices.c.id.in_(old.limit(DROP_BATCH))))
        return gone.rowcount

    async def _deliver_to(self, target: Target, max_attempts: int) -> int:
        due = await self._due(target.endpoint_id)
        # the first says whether the others need be tried now: somebody who is away costs one wait, not fifty
        if not due or not await self._send(target, due[0], max_attempts):
            return 0
        room = asyncio.Semaphore(AT_ONCE)

        async def one(row: NoticeRow) -> bool:
            async with room:
                return await self._send(target, row, max_attempts)

        return 1 + sum(await asyncio.gather(*(one(row) for row in due[1:])))

    async def _due(self, endpoint_id: str) -> list[NoticeRow]:
        """Return the notices to send now: of each account the first that waits, if its time has come."""
        earlier = notices.alias()
        before = or_(
            earlier.c.created_at < notices.c.created_at,
            and_(earlier.c.created_at == notices.c.created_at, earlier.c.id < notices.c.id),
        )
        waits = exists().where(
            earlier.c.endpoint_id == endpoint_id,
            earlier.c.state == "pending",
            earlier.c.account_id == notices.c.account_id,
            before,
        )
        query = select(*NOTICE_COLUMNS).where(
            notices.c.endpoint_id == endpoint_id, notices.c.state == "pending", notices.c.next_at <= now_ms(), ~waits
        )
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(notices.c.next_at, notices.c.id).limit(BATCH))
            return [NoticeRow(*row) for row in rows]

    async def _send(self, target: Target, row: NoticeRow, max_attempts: int) -> bool:
        body = row.payload.encode()
        headers = {
            "content-type": "application/json",
            "tollkeeper-signature": sign_with_all(body, target.secrets, now_ms() // 1_000),
        }
        error = await target.post(body, headers)
        await self._record_attempt(row.id, row.attempts + 1, error, max_attempts)
        return not error

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
            waiting = and_(
                notices.c.id == notice_id, notices.c.state == "pending"
            )  # an endpoint may be removed meanwhile
            await connection.execute(update(notices).where(waiting).values(**values))
