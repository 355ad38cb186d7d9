"""Sums of usage by the time at which it was asked for: from kept sums of whole days, else from single rows.

A time is cut into whole days from `since_day` on, which are read from the kept sums, and the rest, which is read from
single rows (`usage`, and `usage_daily` for days of which they were dropped): edges of a time that is no whole day, days
before sums were kept, and whatever is grouped by or filtered by end users and tags, which sums do not have.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, Table, false, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.selectable import CompoundSelect

from billing.ledger.summaries.usage_days import DAY_MS, since_day
from billing.ledger.usage_rows import UsageFilters
from billing.storage.database import now_ms
from billing.storage.tables.core import usage, usage_daily
from billing.storage.tables.summaries import model_days, usage_days

SUMS = ("requests", "input_tokens", "output_tokens", "charged", "cost")
"""Columns of a sum, behind those that it is grouped by."""
ONLY_ROWS = ("user", "tag")
"""Groups that no sums have."""
OF_MODELS = {"day", "model"}
"""Groups that sums of everybody have."""


class Whose(NamedTuple):
    """Whose usage is summed: an account's (None: everybody's), or some keys'."""

    account_id: str | None = None
    key_ids: Sequence[str] | None = None

    def conditions(self, table: Table) -> list[ColumnElement[bool]]:
        """Return the conditions of its rows."""
        found = [] if self.account_id is None else [table.c.account_id == self.account_id]
        return found if self.key_ids is None else [*found, table.c.key_id.in_(self.key_ids)]


class Days(NamedTuple):
    """Whole days from one on, up to another that is not among them (None: no end)."""

    first: int
    end: int | None


class Cut(NamedTuple):
    """A time as what kept sums are read for, and the rest: (from, until) in Unix ms, and days of dropped rows."""

    kept: Days | None
    rows: list[tuple[int | None, int | None]]
    dropped: Days | None


async def asked_sums(
    connection: AsyncConnection, groups: Sequence[str], filters: UsageFilters, whose: Whose
) -> CompoundSelect[Any] | Select[Any]:
    """Return the query of sums by these groups (day, account, key, model, endpoint, user, tag), each with SUMS.

    A group may come in several rows. Times of the filters are exact where rows are kept, and whole days before.
    """
    only_rows = not set(groups).isdisjoint(ONLY_ROWS) or filters.end_user is not None or filters.tag is not None
    cut = cut_time(filters, None if only_rows else await since_day(connection), now_ms())
    parts = [_rows(filters._replace(since_ms=since, until_ms=until), groups, whose) for since, until in cut.rows]
    if cut.kept is not None:
        parts.append(_kept(cut.kept, filters, groups, whose))
    if cut.dropped is not None:
        parts.append(_dropped(cut.dropped, filters, groups, whose))
    return union_all(*parts) if len(parts) > 1 else parts[0]


def cut_time(filters: UsageFilters, kept_since: int | None, now: int) -> Cut:
    """Cut a time; `kept_since`: from which day on sums may be read (None: not at all). A time up to now has no end."""
    since, until = filters.since_ms, filters.until_ms
    first = 0 if since is None else -(-since // DAY_MS)
    end = None if until is None or until >= now else until // DAY_MS
    start = first if kept_since is None else max(first, kept_since)
    if kept_since is None or (end is not None and start >= end):
        return Cut(None, [(since, until)], Days(first, None if until is None else until // DAY_MS))
    rows: list[tuple[int | None, int | None]] = []
    if (since or 0) < start * DAY_MS:
        rows.append((since, start * DAY_MS))
    if end is not None and until is not None and end * DAY_MS < until:
        rows.append((end * DAY_MS, until))
    return Cut(Days(start, end), rows, Days(first, start) if first < start else None)


def _kept(days: Days, filters: UsageFilters, groups: Sequence[str], whose: Whose) -> Select[Any]:
    by_model = whose == Whose() and set(groups) <= OF_MODELS and filters.key_id is None and filters.endpoint is None
    table = model_days if by_model else usage_days
    conditions = [*whose.conditions(table), table.c.asked_day >= days.first]
    if days.end is not None:
        conditions.append(table.c.asked_day < days.end)
    if not by_model:
        # nothing is booked days before it was asked for: a second condition, by which a range of the key is read
        conditions.append(table.c.booked_day >= days.first - 1)
    return _summed(table, groups, conditions, filters)


def _dropped(days: Days, filters: UsageFilters, groups: Sequence[str], whose: Whose) -> Select[Any]:
    conditions = [*whose.conditions(usage_daily), usage_daily.c.asked_day >= days.first]
    if days.end is not None:
        conditions.append(usage_daily.c.asked_day < days.end)
    if any(one is not None for one in (filters.endpoint, filters.end_user, filters.tag)):
        conditions.append(false())
    return _summed(usage_daily, groups, conditions, filters._replace(endpoint=None))


def _summed(
    table: Table, groups: Sequence[str], conditions: Sequence[ColumnElement[bool]], filters: UsageFilters
) -> Select[Any]:
    """Sum rows of a table of sums."""
    names = {"day": "asked_day", "account": "account_id", "key": "key_id", "model": "model", "endpoint": "endpoint"}
    known = {name: table.c[column] for name, column in names.items() if column in table.c}
    keys = [known.get(name, literal("")).label(name) for name in groups]
    figures = ("requests", "input_tokens", "output_tokens", "charged_millicredits", "cost_millicredits")
    sums = [func.sum(table.c[column], type_=BigInteger).label(name) for column, name in zip(figures, SUMS, strict=True)]
    asked = (("model", filters.model), ("key_id", filters.key_id), ("endpoint", filters.endpoint))
    equal = [table.c[column] == value for column, value in asked if value is not None]
    query = select(*keys, *sums).where(*conditions, *equal)
    return query.group_by(*(known[name] for name in groups if name in known))


def _rows(filters: UsageFilters, groups: Sequence[str], whose: Whose) -> Select[Any]:
    """Sum single rows."""
    table = usage.c
    columns = {
        "day": table.created_at // DAY_MS,
        "account": table.account_id,
        "key": table.key_id,
        "model": table.model,
        "endpoint": table.endpoint,
        "user": table.end_user,
        "tag": table.tags,
    }
    sums = (
        func.count(),
        func.sum(table.input_tokens),
        func.sum(table.output_tokens),
        func.sum(table.charged_millicredits),
        func.sum(table.cost_millicredits),
    )
    keys = [columns[name].label(name) for name in groups]
    query = select(*keys, *(one.label(name) for one, name in zip(sums, SUMS, strict=True)))
    return query.where(*whose.conditions(usage), *filters.conditions()).group_by(*(columns[name] for name in groups))
