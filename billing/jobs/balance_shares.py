"""Low balances in per cent of what there was when money last came in, told once each until it is above again."""

from collections.abc import Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.notices import Notice, NoticeQueue
from billing.storage.database import Database
from billing.storage.tables.core import balances
from billing.storage.tables.events import balance_peaks

KIND = "balance.low"
NOTHING_TOLD = 101
BATCH = 500


class BalanceShares:
    """Watches balances. Raises StoreUnavailable."""

    def __init__(self, database: Database, notices: NoticeQueue, percents: Sequence[int]) -> None:
        """`percents`: thresholds, 1 to 99; none: nothing is watched."""
        self._db, self._notices = database, notices
        self._percents = sorted(set(percents))

    async def watch(self) -> int:
        """Keep what balances are compared with, and tell; how many accounts had news."""
        if not self._percents or not await self._notices.is_heard(KIND):
            return 0
        peaks, posted = balance_peaks.c, balances.c.posted_millicredits
        share = posted * 100
        # above all that there was, or above again what was told: from here on it is measured anew
        rises = or_(
            and_(peaks.peak_millicredits.is_(None), posted > 0),
            posted > peaks.peak_millicredits,
            and_(peaks.told_percent < NOTHING_TOLD, share >= peaks.peak_millicredits * peaks.told_percent),
        )
        falls = or_(*(and_(peaks.told_percent > one, share < peaks.peak_millicredits * one) for one in self._percents))
        query = (
            select(balances.c.account_id, posted, peaks.peak_millicredits, peaks.told_percent, peaks.crossing)
            .select_from(balances.outerjoin(balance_peaks, peaks.account_id == balances.c.account_id))
            .where(or_(rises, falls))
            .limit(BATCH)
        )
        told = []
        async with self._db.write() as connection:
            for account_id, balance, peak, told_percent, crossing in (await connection.execute(query)).all():
                reached = [one for one in self._percents if peak is not None and balance * 100 < peak * one]
                if peak is None or balance > peak or balance * 100 >= peak * told_percent:
                    values = {
                        "peak_millicredits": balance,
                        "told_percent": NOTHING_TOLD,
                        "crossing": (crossing or 0) + 1,
                    }
                else:
                    values = {"peak_millicredits": peak, "told_percent": reached[0], "crossing": crossing}
                    told.append(_notice(account_id, crossing, balance, peak, reached[0]))
                dialect = sqlite if self._db.is_sqlite else postgresql
                statement = dialect.insert(balance_peaks).values(account_id=account_id, **values)
                await connection.execute(statement.on_conflict_do_update(index_elements=["account_id"], set_=values))
            await self._notices.write(connection, told)
        return len(told)


def _notice(account_id: str, crossing: int, balance: int, peak: int, percent: int) -> Notice:
    data = {
        "balanceMillicredits": str(balance),
        "thresholdMillicredits": str(peak * percent // 100),
        "thresholdPercent": percent,
        "ofMillicredits": str(peak),
    }
    return Notice(f"low_share:{account_id}:{crossing}:{percent}", account_id, KIND, data)
