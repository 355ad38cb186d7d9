"""The day's figures: what was bought, deducted, what it cost us, what is owed to customers. All in millicredits (= micro-dollars).

The margin here is the runbook's: deductions less the cost of the usage they paid for. Revenue recognition is billing/books.py.
"""

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import case, func, select
from sqlalchemy.dialects import postgresql, sqlite

from billing.database import Database, now_ms
from billing.ops_tables import finance_daily
from billing.tables import balances, transfers, usage

DAY_MS = 86_400_000
PURCHASES = ("purchase", "purchase_bonus")


class Figures(NamedTuple):
    """One UTC day. `liability` is what customers hold at its end (today: now)."""

    day: str
    purchased: int
    deducted: int
    cost: int
    loss: int
    liability: int
    requests: int

    @property
    def margin(self) -> int:
        """Deductions less the cost of what they paid for."""
        return self.deducted - self.cost


class ModelFigures(NamedTuple):
    """A model's usage since some time."""

    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    charged: int
    cost: int


class Finance:
    """Computes, keeps and reads daily figures. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def compute(self, day: date) -> Figures:
        """The figures of a day from the ledger and the usage rows as they are now."""
        start, end = span(day)
        within = (transfers.c.created_at >= start, transfers.c.created_at < end)
        by_kind = select(transfers.c.kind, func.sum(transfers.c.amount_millicredits)).where(*within).group_by(transfers.c.kind)
        number = select(func.count()).select_from(usage).where(usage.c.created_at >= start, usage.c.created_at < end)
        async with self._db.read() as connection:
            kinds = {row[0]: int(row[1]) for row in await connection.execute(by_kind)}
            requests = int((await connection.execute(number)).scalar_one())
        purchased = sum(kinds.get(kind, 0) for kind in PURCHASES)
        liability = await self.liability()
        return Figures(
            day.isoformat(),
            purchased,
            kinds.get("usage", 0),
            kinds.get("usage_cost", 0),
            kinds.get("platform_loss", 0),
            liability,
            requests,
        )

    async def liability(self) -> int:
        """What customers hold now: the sum of balances above zero."""
        held = func.sum(case((balances.c.posted_millicredits > 0, balances.c.posted_millicredits), else_=0))
        async with self._db.read() as connection:
            return int((await connection.execute(select(func.coalesce(held, 0)))).scalar_one())

    async def roll_up(self, today: date, days: int = 2) -> list[Figures]:
        """Compute and keep the last days, today among them. A finished day keeps the liability it ended with."""
        found = [await self.compute(today - timedelta(days=back)) for back in range(days)]
        dialect = sqlite if self._db.is_sqlite else postgresql
        async with self._db.write() as connection:
            for figures in found:
                values = {
                    "purchased_millicredits": figures.purchased,
                    "deducted_millicredits": figures.deducted,
                    "cost_millicredits": figures.cost,
                    "loss_millicredits": figures.loss,
                    "requests": figures.requests,
                    "updated_at": now_ms(),
                }
                statement = dialect.insert(finance_daily).values(day=figures.day, liability_millicredits=figures.liability, **values)
                if figures.day == today.isoformat():
                    values["liability_millicredits"] = figures.liability
                await connection.execute(statement.on_conflict_do_update(index_elements=["day"], set_=values))
        return found

    async def days(self, limit: int) -> list[Figures]:
        """The days that were rolled up, newest first."""
        columns = (
            finance_daily.c.day,
            finance_daily.c.purchased_millicredits,
            finance_daily.c.deducted_millicredits,
            finance_daily.c.cost_millicredits,
            finance_daily.c.loss_millicredits,
            finance_daily.c.liability_millicredits,
            finance_daily.c.requests,
        )
        async with self._db.read() as connection:
            return [Figures(*row) for row in await connection.execute(select(*columns).order_by(finance_daily.c.day.desc()).limit(limit))]

    async def top_models(self, since_ms: int, limit: int) -> list[ModelFigures]:
        """The models that cost us most since a time."""
        cost = func.sum(usage.c.cost_millicredits)
        columns = (
            usage.c.model,
            func.count(),
            func.sum(usage.c.input_tokens),
            func.sum(usage.c.output_tokens),
            func.sum(usage.c.charged_millicredits),
            cost,
        )
        query = (
            select(*columns).where(usage.c.created_at >= since_ms).group_by(usage.c.model).order_by(cost.desc(), usage.c.model).limit(limit)
        )
        async with self._db.read() as connection:
            return [ModelFigures(row[0], *(int(value) for value in row[1:])) for row in await connection.execute(query)]


def span(day: date) -> tuple[int, int]:
    """A UTC day's first millisecond, and the next day's."""
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000
    return start, start + DAY_MS


def day_of(milliseconds: int) -> date:
    """The UTC day of a time."""
    return datetime.fromtimestamp(milliseconds // 1_000, UTC).date()
