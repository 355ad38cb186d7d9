"""Low-balance notices, once per crossing, from the ledger's balances: requests know nothing of them.

An account is armed while it is at or above its threshold. Falling below is one crossing, told once; it is armed again
when it has been above again. An account that never was above (a new one) has crossed nothing.
"""

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.notices import Notice, NoticeQueue
from billing.storage.database import Database
from billing.storage.tables.core import balances
from billing.storage.tables.payments import balance_marks

KIND = "balance.low"
BATCH = 500


class LowBalance:
    """Watches balances. Raises StoreUnavailable."""

    def __init__(self, database: Database, notices: NoticeQueue, default_threshold: int) -> None:
        """`default_threshold` in millicredits; 0: only accounts with a threshold of their own."""
        self._db, self._notices, self._default = database, notices, default_threshold

    async def threshold(self, account_id: str) -> int | None:
        """Return the account's own threshold in millicredits; None: the configured one."""
        query = select(balance_marks.c.threshold_millicredits).where(balance_marks.c.account_id == account_id)
        async with self._db.read() as connection:
            found: int | None = (await connection.execute(query)).scalar_one_or_none()
            return found

    async def set_threshold(self, account_id: str, threshold: int | None, who: Who | None = None) -> None:
        """Change it (millicredits).

        On which side the account is now is no crossing. `who`: for the audit log, where it is another one.
        """
        query = (
            select(balances.c.posted_millicredits, balance_marks.c.threshold_millicredits)
            .outerjoin(balance_marks, balance_marks.c.account_id == balances.c.account_id)
            .where(balances.c.account_id == account_id)
        )
        async with self._db.write() as connection:
            posted, before = (await connection.execute(query)).one()
            below = posted < (self._default if threshold is None else threshold)
            await self._upsert(connection, account_id, {"threshold_millicredits": threshold, "below": below})
            if threshold != before:
                await record_change(connection, who, Change("low_balance.set", account_id, before, threshold))

    async def watch(self) -> int:
        """Arm and fire; how many notices were queued."""
        if not await self._notices.is_heard(KIND):
            return 0
        limit = func.coalesce(balance_marks.c.threshold_millicredits, self._default)
        joined = balances.outerjoin(balance_marks, balance_marks.c.account_id == balances.c.account_id)
        posted = balances.c.posted_millicredits
        rises = and_(or_(balance_marks.c.below.is_(None), balance_marks.c.below), posted >= limit)
        falls = and_(balance_marks.c.below.is_(False), posted < limit)
        query = (
            select(balances.c.account_id, posted, limit)
            .select_from(joined)
            .where(limit > 0, or_(rises, falls))
            .limit(BATCH)
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return 0
        told: list[Notice] = []
        async with self._db.write() as connection:
            for account_id, balance, threshold in sorted(tuple(row) for row in rows):
                if balance >= threshold:
                    await self._upsert(connection, account_id, {"below": False})
                    continue
                statement = update(balance_marks).where(
                    balance_marks.c.account_id == account_id, balance_marks.c.below.is_(False)
                )
                crossed = statement.values(below=True, crossing=balance_marks.c.crossing + 1).returning(
                    balance_marks.c.crossing
                )
                crossing = (await connection.execute(crossed)).scalar_one_or_none()
                if crossing is not None:
                    told.append(_notice(account_id, crossing, balance, threshold))
            await self._notices.write(connection, told)
        return len(told)

    async def _upsert(self, connection: AsyncConnection, account_id: str, values: dict[str, int | bool | None]) -> None:
        dialect = sqlite if self._db.is_sqlite else postgresql
        statement = dialect.insert(balance_marks).values(account_id=account_id, **values)
        await connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=values))


def _notice(account_id: str, crossing: int, balance: int, threshold: int) -> Notice:
    data = {"balanceMillicredits": str(balance), "thresholdMillicredits": str(threshold)}
    return Notice(f"low_balance:{account_id}:{crossing}", account_id, KIND, data)
