"""Events of budgets of API keys that are used by 50, 80 or 100 %, told once in each period.

Looked at are keys that were charged since the last look, by what the ledger says; at the start, and when another
process that booked charges is gone, every key with a limit.
"""

import hashlib
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import KeyRow
from billing.ledger.customers.use import BudgetUse, KeyUses
from billing.ledger.notices import Notice, NoticeQueue
from billing.money.holds import Entry
from billing.money.spend_periods import period_name
from billing.money.usage_record import decode_record
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import api_keys
from billing.storage.tables.events import limit_marks

KIND = "limit.reached"
THRESHOLDS = (100, 80, 50)
BATCH = 200
MOST_AT_START = 10_000


class LimitWatch:
    """Watches budgets. Raises StoreUnavailable."""

    def __init__(self, database: Database, notices: NoticeQueue) -> None:
        """`notices` take what is told."""
        self._db, self._notices, self._uses = database, notices, KeyUses(database)
        self._charged: dict[str, None] = {}
        self._started = False

    def take(self, entries: Sequence[Entry]) -> None:
        """Take charges that were booked: their keys are looked at next."""
        self._charged.update(dict.fromkeys(decode_record(entry.record).key_id for entry in entries))

    def look_at_all(self) -> None:
        """Look at every key with a limit once more: another process that watched is gone, and with it what it took."""
        self._started = False

    async def step(self) -> int:
        """Look at some of what was charged; how many keys were looked at."""
        if not await self._notices.is_heard(KIND):
            self._charged.clear()
            self._started = False
            return 0
        if not self._started:
            async with self._db.read() as connection:
                ids = (
                    await connection.execute(select(api_keys.c.id).where(*_limited()).limit(MOST_AT_START))
                ).scalars()
                self._charged.update(dict.fromkeys(ids))
            self._started = True
        looked = list(self._charged)[:BATCH]
        if looked:
            for key_id in looked:  # what is charged meanwhile is looked at again
                del self._charged[key_id]
            try:
                await self._look_at(looked)
            except BaseException:
                self._charged.update(dict.fromkeys(looked))
                raise
        return len(looked)

    async def _look_at(self, key_ids: Sequence[str]) -> None:
        query = select(*columns_of(api_keys, KeyRow._fields)).where(api_keys.c.id.in_(key_ids), *_limited())
        query = query.order_by(api_keys.c.id)  # so are marks locked: others may look at the same keys
        async with self._db.read() as connection:
            rows = [KeyRow(*row) for row in await connection.execute(query)]
        if not rows:
            return
        now = now_ms()
        uses = await self._uses.of(rows, now)
        async with self._db.write() as connection:
            told: list[Notice] = []
            for row in rows:
                for use in uses[row.id].budgets:
                    told += await self._mark(connection, row, use, now)
            await self._notices.write(connection, told)

    async def _mark(self, connection: AsyncConnection, key: KeyRow, use: BudgetUse, now: int) -> Iterable[Notice]:
        """Keep how much of a budget was told; the notice of it, if it is more than before in this period."""
        budget, period = use.budget, period_name(use.budget.period, now)
        name = budget.scope("")[1:]
        used = next((one for one in THRESHOLDS if budget.limit > 0 and use.used * 100 >= budget.limit * one), 0)
        known = select(limit_marks.c.period, limit_marks.c.percent).where(
            limit_marks.c.key_id == key.id, limit_marks.c.budget == name
        )
        row = (await connection.execute(known.with_for_update())).first()
        told = row.percent if row is not None and row.period == period else 0
        if used == told:
            return ()
        # less than was told, in the same period: the limit was raised, and what is left of it is told again
        dialect = sqlite if self._db.is_sqlite else postgresql
        values = {"period": period, "percent": used}
        statement = dialect.insert(limit_marks).values(key_id=key.id, budget=name, **values)
        await connection.execute(statement.on_conflict_do_update(index_elements=["key_id", "budget"], set_=values))
        if used < told:
            return ()
        data = {
            "keyId": key.id,
            "percent": used,
            "period": budget.period,
            "models": budget.models,
            "limitMillicredits": str(budget.limit),
            "usedMillicredits": str(use.used),
        }
        named = hashlib.sha256(f"{name} {period} {used} {budget.limit}".encode()).hexdigest()[:16]
        return (Notice(f"limit:{key.id}:{named}", key.account_id, KIND, data),)


def _limited() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of a key that works and has a limit."""
    return api_keys.c.revoked_at.is_(None), or_(
        api_keys.c.spend_limit_millicredits.is_not(None), api_keys.c.budgets.is_not(None)
    )
