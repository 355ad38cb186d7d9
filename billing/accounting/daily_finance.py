"""The day's figures: what was bought, deducted, what it cost us, what is owed to customers. All in millicredits (=
micro-dollars).

The margin here is the runbook's: deductions less the cost of the usage they paid for. Revenue recognition is
billing/accounting/journal.py.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import case, func, literal, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.summaries.reading import SUMS, Whose, asked_sums
from billing.ledger.usage_rows import UsageFilters
from billing.money.findings import Finding
from billing.money.postings import CASH, CUSTOMER, DISPUTES, PLATFORM_LOSS
from billing.storage.database import Database, Readable
from billing.storage.tables.core import MOVES, balances, transfers, usage, usage_daily
from billing.storage.tables.operations import finance_daily

DAY_MS = 86_400_000
CLOSE_AFTER_MS = 3_600_000
BOOKED_WITHIN_MS = 40 * DAY_MS
"""Usage is booked within that time of its request, also of a batch and of one that waited for a store."""
MOST_DAYS = 400
MANY = 20_000
"""Accounts that are added up at each look at what is owed; of more that takes longer than a page should."""
DAYS_AT_ONCE = 10
"""Of days that nobody computed in time; the next run takes the next ones."""
PURCHASES = ("purchase", "purchase_bonus")
PAYMENTS = ("purchase", "refund", "dispute")


class Figures(NamedTuple):
    """One UTC day.

    `purchased` are credits with their bonus; `liability` is what customers hold at the day's end (today: now);
    `loss` is what `platform_loss` took, as in the books: usage that nobody could be charged for, and money that went
    back beyond what was sold; `given_away` is the part of `cost` whose usage is free by decision (outside the rollout,
    charging off).
    """

    day: str
    purchased: int
    deducted: int
    cost: int
    loss: int
    liability: int
    requests: int
    given_away: int = 0

    @property
    def margin(self) -> int:
        """Deductions less the cost of what they paid for: what is given away on purpose is no loss of a price."""
        return self.deducted - (self.cost - self.given_away)


class RolledUp(NamedTuple):
    """The days that a roll-up computed, newest first, and those of them that were final by then."""

    days: list[Figures]
    closed: list[Figures]


class StoredFigures(NamedTuple):
    """The newest day that SQL has, when it was rolled up (Unix milliseconds), and the newest closed day."""

    newest: Figures | None
    updated_at: int
    closed: Figures | None


class ModelFigures(NamedTuple):
    """A model's usage since the beginning of some day."""

    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    charged: int
    cost: int


class Finance:
    """Computes and reads daily figures. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Readable) -> None:
        """`database` must be migrated."""
        self._db = database

    async def compute(self, day: date) -> Figures:
        """Compute a day from the ledger and the usage rows as they are now."""
        start, end = span(day)
        within = (transfers.c.created_at >= start, transfers.c.created_at < end)
        amount = transfers.c.amount_millicredits
        lost = case(
            (transfers.c.debit_account == PLATFORM_LOSS, amount),
            (transfers.c.credit_account == PLATFORM_LOSS, -amount),
            else_=0,
        )
        by_kind = select(transfers.c.kind, func.sum(amount), func.sum(lost)).where(*within).group_by(transfers.c.kind)
        detail = select(func.count()).select_from(usage).where(usage.c.created_at >= start, usage.c.created_at < end)
        sums = select(func.coalesce(func.sum(usage_daily.c.requests), 0)).where(
            usage_daily.c.asked_day == start // DAY_MS
        )
        free = (
            select(func.coalesce(func.sum(transfers.c.amount_millicredits), 0))
            .join(usage, usage.c.charge_id == transfers.c.reference_id)
            # the day's rows by their time: by their kind, which has an index too, they are those of all days
            .where(*within, transfers.c.kind + "" == "usage_cost", usage.c.free)
            .where(usage.c.created_at >= start - BOOKED_WITHIN_MS, usage.c.created_at < end)
        )
        kept = select(finance_daily.c.given_away_millicredits).where(finance_daily.c.day == day.isoformat())
        async with self._db.read() as connection:
            # of rows that retention has dropped, what was rolled up while they were there
            given_away = max(int(cost) for cost in (await connection.execute(union_all(free, kept))).scalars())
            rows = (await connection.execute(by_kind)).all()
            requests = sum(int(number) for number in (await connection.execute(union_all(detail, sums))).scalars())
        kinds = {kind: int(moved) for kind, moved, _ in rows}
        return Figures(
            day.isoformat(),
            sum(kinds.get(kind, 0) for kind in PURCHASES),
            kinds.get("usage", 0),
            kinds.get("usage_cost", 0),
            sum(int(loss) for _, _, loss in rows),
            await self.liability(end),
            requests,
            given_away,
        )

    async def owed(self, now: int) -> int:
        """Return what customers hold: added up, and of very many what was rolled up last, half a minute ago."""
        some = select(balances.c.account_id).limit(MANY + 1).subquery()
        async with self._db.read() as connection:
            many = int((await connection.execute(select(func.count()).select_from(some))).scalar_one()) > MANY
        newest = (await self.kept()).newest if many else None
        if newest is not None and newest.day == day_of(now).isoformat():
            return newest.liability
        return await self.liability()

    async def liability(self, at_ms: int | None = None) -> int:
        """Return what customers held at a time (None: now): balances above zero, later transfers taken back."""
        if at_ms is None:
            posted = balances.c.posted_millicredits
            held = select(func.coalesce(func.sum(posted), 0)).where(posted > 0)
            async with self._db.read() as connection:
                return int((await connection.execute(held)).scalar_one())
        late, amount = transfers.c.created_at >= at_ms, func.sum(transfers.c.amount_millicredits)
        # the later rows by their time: grouped by a column that has an index, they would be read from that, all of them
        raised, lowered = transfers.c.credit_account + "", transfers.c.debit_account + ""
        sides = union_all(
            select(raised.label("name"), amount.label("moved"))
            .where(late, raised.startswith(CUSTOMER))
            .group_by(raised),
            select(lowered, -amount).where(late, lowered.startswith(CUSTOMER)).group_by(lowered),
        ).subquery()
        later = select(sides.c.name, func.sum(sides.c.moved).label("moved")).group_by(sides.c.name).subquery()
        then = balances.c.posted_millicredits - func.coalesce(later.c.moved, 0)
        joined = balances.outerjoin(later, later.c.name == literal(CUSTOMER) + balances.c.account_id)
        query = select(func.coalesce(func.sum(case((then > 0, then), else_=0)), 0)).select_from(joined)
        async with self._db.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def paid(self, first: date, last: date) -> dict[str, int]:
        """By day, in millionths of a dollar: what customers paid for credits, without tax, less what refunds and
        disputes took back.

        Days without any are left out. Read where money came in and went out: these accounts have few transfers,
        whatever is used.
        """
        day = (transfers.c.created_at - transfers.c.created_at % DAY_MS) // DAY_MS
        amount = func.sum(transfers.c.amount_millicredits)
        within = (
            transfers.c.created_at.between(span(first)[0], span(last)[1] - 1),
            transfers.c.kind.in_(PAYMENTS),
            MOVES,  # by which the index is chosen that has no charge in it
        )
        came = select(day.label("day"), amount).where(transfers.c.debit_account.in_((CASH, DISPUTES)), *within)
        went = select(day.label("day"), -amount).where(transfers.c.credit_account.in_((CASH, DISPUTES)), *within)
        found: defaultdict[str, int] = defaultdict(int)
        async with self._db.read() as connection:
            for number, moved in await connection.execute(union_all(came.group_by("day"), went.group_by("day"))):
                found[day_of(int(number) * DAY_MS).isoformat()] += int(moved)
        return dict(found)

    async def days(self, limit: int) -> list[Figures]:
        """Return the days that were rolled up, newest first."""
        return [figures for figures, _ in await self._days(limit)]

    async def kept(self) -> StoredFigures:
        """Return what there is to show, whichever process computed it."""
        rows = await self._days(DAYS_AT_ONCE)
        closed = [
            figures for figures, updated in rows if updated >= span(date.fromisoformat(figures.day))[1] + CLOSE_AFTER_MS
        ]
        newest, updated_at = rows[0] if rows else (None, 0)
        return StoredFigures(newest, updated_at, closed[0] if closed else None)

    async def _days(self, limit: int) -> list[tuple[Figures, int]]:
        columns = (
            finance_daily.c.day,
            finance_daily.c.purchased_millicredits,
            finance_daily.c.deducted_millicredits,
            finance_daily.c.cost_millicredits,
            finance_daily.c.loss_millicredits,
            finance_daily.c.liability_millicredits,
            finance_daily.c.requests,
            finance_daily.c.given_away_millicredits,
            finance_daily.c.updated_at,
        )
        query = select(*columns).order_by(finance_daily.c.day.desc()).limit(limit)
        async with self._db.read() as connection:
            return [(Figures(*row[:-1]), int(row[-1])) for row in await connection.execute(query)]

    async def top_models(self, since_ms: int, limit: int) -> list[ModelFigures]:
        """Return the models that cost us most since the beginning of a time's day."""
        found: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(SUMS))
        since = UsageFilters(since_ms=since_ms - since_ms % DAY_MS)
        async with self._db.read() as connection:
            for row in await connection.execute(await asked_sums(connection, ("model",), since, Whose())):
                for place, part in enumerate(row[1:]):
                    found[row.model][place] += int(part)
        models = [ModelFigures(model, *sums) for model, sums in found.items() if sums[0]]
        return sorted(models, key=lambda one: (-one.cost, one.model))[:limit]


class DailyFinance(Finance):
    """Also computes what is to be kept, and keeps it."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        super().__init__(database)
        self._database = database

    async def roll_up(self, now: int, days: int | None = None) -> RolledUp:
        """Compute and keep today and every day that is not closed, or so many days. Times are Unix milliseconds.

        A day is closed when it was computed an hour after its end: nothing is booked on it any more.
        """
        today = day_of(now)
        wanted = await self._open_days(now) if days is None else [today - timedelta(days=back) for back in range(days)]
        found = [await self.compute(day) for day in wanted]
        closed = [figures for day, figures in zip(wanted, found, strict=True) if now >= span(day)[1] + CLOSE_AFTER_MS]
        dialect = sqlite if self._database.is_sqlite else postgresql
        async with self._database.write() as connection:
            for figures in found:
                values = {
                    "purchased_millicredits": figures.purchased,
                    "deducted_millicredits": figures.deducted,
                    "cost_millicredits": figures.cost,
                    "loss_millicredits": figures.loss,
                    "liability_millicredits": figures.liability,
                    "requests": figures.requests,
                    "given_away_millicredits": figures.given_away,
                    "updated_at": now,
                }
                statement = dialect.insert(finance_daily).values(day=figures.day, **values)
                await connection.execute(statement.on_conflict_do_update(index_elements=["day"], set_=values))
        return RolledUp(found, closed)

    async def _open_days(self, now: int) -> list[date]:
        """Today and the days before it that were never computed after they had ended, newest first."""
        today = day_of(now)
        query = (
            select(finance_daily.c.day, finance_daily.c.updated_at)
            .order_by(finance_daily.c.day.desc())
            .limit(MOST_DAYS)
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
            first = (await connection.execute(select(func.min(transfers.c.created_at)))).scalar_one()
        if first is None:
            return [today]
        closed = {row[0] for row in rows if row[1] >= span(date.fromisoformat(row[0]))[1] + CLOSE_AFTER_MS}
        age = min((today - day_of(first)).days, MOST_DAYS - 1)
        past = [today - timedelta(days=back) for back in range(1, age + 1)]
        return [today, *(day for day in past if day.isoformat() not in closed)][:DAYS_AT_ONCE]


def below_target(days: Iterable[Figures], target_percent: int) -> list[Finding]:
    """Days whose margin was below so many per cent of deductions. Expected is the margin that would have done."""
    found = []
    for figures in days:
        wanted = -(-figures.deducted * target_percent // 100)  # rounded up; a negative target plans for a loss
        if figures.margin < wanted:
            found.append(Finding("margin of a day below target", figures.day, wanted, figures.margin, 0))
    return found


def span(day: date) -> tuple[int, int]:
    """Return a UTC day's first millisecond, and the next day's."""
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000
    return start, start + DAY_MS


def day_of(milliseconds: int) -> date:
    """Return the UTC day of a time."""
    return datetime.fromtimestamp(milliseconds // 1_000, UTC).date()
