"""Usage summed up by whatever is asked for, and request by request: what the ledger has booked.

What retention has dropped is summed from `usage_daily`, which has no endpoint, end user and tags: there it stands under
none. Reads only.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, false, func, literal, select, union_all

from billing.accounting.daily_finance import DAY_MS
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import BillingError
from billing.money.usage_record import UsageRow
from billing.storage.database import Database
from billing.storage.rows import columns_of
from billing.storage.tables.core import usage, usage_daily

GROUPS = ("day", "account", "key", "model", "endpoint", "user", "tag")
"""What usage can be grouped by, in the order in which groups are sorted."""
UNKNOWN = ("endpoint", "user", "tag")
"""Groups that sums of dropped rows do not have."""
MOST_GROUPS = 10_000
PAGE = 1_000
SUMS = ("requests", "input_tokens", "output_tokens", "charged", "cost")


class TooManyGroups(BillingError):
    """There are more groups than an answer holds: ask for less at once."""


class UsageSums(NamedTuple):
    """One group. `group` has a value for each name it was asked by (a day as whole days since 1970); amounts are
    millicredits.
    """

    group: tuple[Any, ...]
    requests: int
    input_tokens: int
    output_tokens: int
    charged: int
    cost: int


class UsageSummaries:
    """Reads of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def sums(self, filters: UsageFilters, groups: Sequence[str], account_id: str | None) -> list[UsageSums]:
        """Sum requests by `groups` (of GROUPS), sorted by them; of one account or (None) of all.

        A request with several tags is in the group of each; one with none is in that of "".
        Times of the filters are exact where rows are kept, and whole days before. Raises TooManyGroups.
        """
        both = union_all(_detail(filters, groups, account_id), _dropped(filters, groups, account_id)).subquery()
        keys = [both.c[name] for name in groups]
        sums = [func.sum(both.c[name]) for name in SUMS]
        query = select(*keys, *sums).group_by(*keys).order_by(*keys).limit(MOST_GROUPS + 1)
        async with self._db.read() as connection:
            rows = list(await connection.execute(query))
        if len(rows) > MOST_GROUPS:
            raise TooManyGroups
        width = len(groups)
        found = [UsageSums(tuple(row[:width]), *(int(one or 0) for one in row[width:])) for row in rows if row[width]]
        return _by_tag(found, groups.index("tag")) if "tag" in groups else found

    async def requests(self, filters: UsageFilters, account_id: str | None) -> AsyncIterator[list[UsageRow]]:
        """Every request that fits, the newest first, in pages; of one account or (None) of all."""
        while True:
            query = select(*columns_of(usage, UsageRow._fields)).where(*_of(usage.c, account_id), *filters.conditions())
            query = query.order_by(usage.c.created_at.desc(), usage.c.charge_id.desc()).limit(PAGE)
            async with self._db.read() as connection:
                rows = [UsageRow(*row) for row in await connection.execute(query)]
            if rows:
                yield rows
            if len(rows) < PAGE:
                return
            filters = filters._replace(before=(rows[-1].created_at, rows[-1].charge_id))


def _by_tag(rows: Sequence[UsageSums], place: int) -> list[UsageSums]:
    """Return sums by each tag, of sums by all tags of a request. Raises TooManyGroups."""
    found: dict[tuple[Any, ...], UsageSums] = {}
    for row in rows:
        for tag in row.group[place].split("\n"):
            group = (*row.group[:place], tag, *row.group[place + 1 :])
            before = found.get(group, UsageSums(group, 0, 0, 0, 0, 0))
            found[group] = UsageSums(group, *(old + new for old, new in zip(before[1:], row[1:], strict=True)))
    if len(found) > MOST_GROUPS:
        raise TooManyGroups
    return [found[group] for group in sorted(found)]


def _detail(filters: UsageFilters, groups: Sequence[str], account_id: str | None) -> Select[Any]:
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
    keys = [columns[name].label(name) for name in groups]
    sums = (
        func.count(),
        func.sum(table.input_tokens),
        func.sum(table.output_tokens),
        func.sum(table.charged_millicredits),
        func.sum(table.cost_millicredits),
    )
    query = select(*keys, *(one.label(name) for one, name in zip(sums, SUMS, strict=True)))
    return query.where(*_of(table, account_id), *filters.conditions()).group_by(*(columns[name] for name in groups))


def _dropped(filters: UsageFilters, groups: Sequence[str], account_id: str | None) -> Select[Any]:
    table = usage_daily.c
    columns: dict[str, ColumnElement[Any]] = {
        "day": table.asked_day,
        "account": table.account_id,
        "key": table.key_id,
        "model": table.model,
        **dict.fromkeys(UNKNOWN, literal("")),
    }
    keys = [columns[name].label(name) for name in groups]
    sums = (
        table.requests,
        table.input_tokens,
        table.output_tokens,
        table.charged_millicredits,
        table.cost_millicredits,
    )
    query = select(*keys, *(func.sum(one, type_=BigInteger).label(name) for one, name in zip(sums, SUMS, strict=True)))
    conditions = _of(table, account_id)
    for column, value in ((table.model, filters.model), (table.key_id, filters.key_id)):
        if value is not None:
            conditions.append(column == value)
    if any(one is not None for one in (filters.endpoint, filters.end_user, filters.tag)):
        conditions.append(false())
    if filters.since_ms is not None:
        conditions.append(table.asked_day >= -(-filters.since_ms // DAY_MS))
    if filters.until_ms is not None:
        conditions.append(table.asked_day < filters.until_ms // DAY_MS)
    return query.where(*conditions).group_by(*(columns[name] for name in groups if name not in UNKNOWN))


def _of(table: Any, account_id: str | None) -> list[ColumnElement[bool]]:
    return [] if account_id is None else [table.account_id == account_id]
