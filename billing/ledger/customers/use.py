"""Use of API keys and by end users: when each was used last, what of budgets is gone, as the ledger has it."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, select

from billing.ledger.accounts import KeyBudget, KeyRow
from billing.ledger.customers.end_users import EndUser
from billing.ledger.summaries.reading import Whose, asked_sums
from billing.ledger.summaries.usage_days import DAY_MS
from billing.ledger.usage_rows import HAS_USER, UsageFilters
from billing.money.model_rates import fits_any
from billing.money.spend_periods import named_period_end_ms, period_name, period_start_ms
from billing.storage.database import Readable
from billing.storage.tables.core import api_keys, usage, usage_daily


class BudgetUse(NamedTuple):
    """A budget, the millicredits charged in its running period, and when that ends (Unix ms; None: never)."""

    budget: KeyBudget
    used: int
    ends: int | None


class KeyUse(NamedTuple):
    """Use of one key. `last_used_at` in Unix milliseconds, of the day only once its rows are summed up; None: never."""

    last_used_at: int | None
    budgets: tuple[BudgetUse, ...]


class KeyUses:
    """Reads the use of keys. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Readable) -> None:
        """`database` must be migrated."""
        self._db = database

    async def of(self, keys: Sequence[KeyRow], now_ms: int) -> dict[str, KeyUse]:
        """Return the use of each of these keys by its id."""
        ids = [key.id for key in keys]
        last = await self._last_used(ids)
        periods = {budget.period for key in keys for budget in key.all_budgets}
        spent = {period: await self._spent(ids, period_start_ms(period_name(period, now_ms))) for period in periods}
        found = {}
        for key in keys:
            uses = (_use_of(budget, spent[budget.period].get(key.id, []), now_ms) for budget in key.all_budgets)
            found[key.id] = KeyUse(last.get(key.id), tuple(uses))
        return found

    async def of_end_users(self, users: Sequence[EndUser], now_ms: int) -> list[tuple[BudgetUse, ...]]:
        """Return the use of each of these end users' budgets, in their order."""
        periods = {budget.period for user in users for budget in user.budgets}
        spent = {}
        for period in periods:
            spent[period] = await self._spent_by_users(users, period_start_ms(period_name(period, now_ms)))
        found = []
        for user in users:
            uses = []
            for budget in user.budgets:
                rows = spent[budget.period].get((user.wallet_id or user.account_id, user.name), [])
                uses.append(_use_of(budget, rows, now_ms))
            found.append(tuple(uses))
        return found

    async def _spent_by_users(
        self, users: Sequence[EndUser], since_ms: int
    ) -> dict[tuple[str, str], list[tuple[str, int]]]:
        """Sum what accounts were charged for these end users since the beginning of a day, by model."""
        payers = {user.wallet_id or user.account_id for user in users}
        query = (
            select(usage.c.account_id, usage.c.end_user, usage.c.model, func.sum(usage.c.charged_millicredits))
            .where(usage.c.account_id.in_(payers), usage.c.end_user.in_({user.name for user in users}))
            .where(HAS_USER, usage.c.created_at >= since_ms)
            .group_by(usage.c.account_id, usage.c.end_user, usage.c.model)
        )
        found: dict[tuple[str, str], list[tuple[str, int]]] = {}
        async with self._db.read() as connection:
            for account_id, name, model, amount in await connection.execute(query):
                found.setdefault((account_id, name), []).append((model, int(amount)))
        return found

    async def _last_used(self, ids: Sequence[str]) -> dict[str, int]:
        # of each key by itself: so the newest row is the first of the index, and no other is read
        newest = select(func.max(usage.c.created_at)).where(usage.c.key_id == api_keys.c.id).scalar_subquery()
        kept = select(func.max(usage_daily.c.asked_day)).where(usage_daily.c.key_id == api_keys.c.id).scalar_subquery()
        found: dict[str, int] = {}
        async with self._db.read() as connection:
            for key_id, at, day in await connection.execute(
                select(api_keys.c.id, newest, kept).where(api_keys.c.id.in_(ids))
            ):
                if at is not None or day is not None:
                    found[key_id] = max(int(at or 0), int(day or 0) * DAY_MS)
        return found

    async def _spent(self, ids: Sequence[str], since_ms: int) -> dict[str, list[tuple[str, int]]]:
        """Sum what keys were charged since the beginning of a day, by key and model."""
        found: dict[str, list[tuple[str, int]]] = {}
        async with self._db.read() as connection:
            since, whose = UsageFilters(since_ms=since_ms), Whose(key_ids=ids)
            for row in await connection.execute(await asked_sums(connection, ("key", "model"), since, whose)):
                found.setdefault(row.key, []).append((row.model, int(row.charged)))
        return found


def _use_of(budget: KeyBudget, rows: Sequence[tuple[str, int]], now_ms: int) -> BudgetUse:
    """Return the use of a budget, by what was charged in its period for each model."""
    used = sum(amount for model, amount in rows if budget.models is None or fits_any(model, budget.models))
    return BudgetUse(budget, used, named_period_end_ms(period_name(budget.period, now_ms)))
