"""Usage summed up by whatever is asked for, and request by request: what the ledger has booked.

Summed from the sums of days where these have what is asked for (billing/ledger/summaries). What retention has dropped
stands under no end user and no tags, which no sums have; of before sums were kept, under no endpoint. Reads only.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select

from billing.ledger.summaries.reading import SUMS, Whose, asked_sums
from billing.ledger.usage_rows import UsageFilters, of_account
from billing.money.errors import BillingError
from billing.money.usage_record import UsageRow
from billing.storage.database import Readable
from billing.storage.rows import columns_of
from billing.storage.tables.core import usage

GROUPS = ("day", "account", "key", "model", "endpoint", "user", "tag")
"""What usage can be grouped by, in the order in which groups are sorted."""
MOST_GROUPS = 10_000
PAGE = 1_000
HOUR_MS = 3_600_000


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

    def __init__(self, database: Readable) -> None:
        """`database` must be migrated."""
        self._db = database

    async def sums(self, filters: UsageFilters, groups: Sequence[str], account_id: str | None) -> list[UsageSums]:
        """Sum requests by `groups` (of GROUPS), sorted by them; of one account or (None) of all.

        A request with several tags is in the group of each; one with none is in that of "".
        Times of the filters are exact where rows are kept, and whole days before. Raises TooManyGroups.
        """
        async with self._db.read() as connection:
            parts = (await asked_sums(connection, groups, filters, Whose(account_id))).subquery()
            keys = [parts.c[name] for name in groups]
            sums = [func.sum(parts.c[name]) for name in SUMS]
            query = select(*keys, *sums).group_by(*keys).order_by(*keys).limit(MOST_GROUPS + 1)
            rows = list(await connection.execute(query))
        if len(rows) > MOST_GROUPS:
            raise TooManyGroups
        width = len(groups)
        found = [UsageSums(tuple(row[:width]), *(int(one or 0) for one in row[width:])) for row in rows if row[width]]
        return _by_tag(found, groups.index("tag")) if "tag" in groups else found

    async def requests(self, filters: UsageFilters, account_id: str | None) -> AsyncIterator[list[UsageRow]]:
        """Every request that fits, the newest first, in pages; of one account or (None) of all.

        Of all hour by hour: no index has everybody's rows in their order, so each page sorts whatever it is taken from.
        """
        for part in [filters] if account_id is not None else await self._hours(filters):
            async for rows in self._pages(part, account_id):
                yield rows

    async def _hours(self, filters: UsageFilters) -> list[UsageFilters]:
        """Cut a time into hours, the newest first."""
        bounds = select(func.min(usage.c.created_at), func.max(usage.c.created_at)).where(*filters.conditions())
        async with self._db.read() as connection:
            first, last = (await connection.execute(bounds)).one()
        if first is None:
            return []
        starts = range(last, first - 1, -HOUR_MS)
        return [filters._replace(since_ms=max(at - HOUR_MS + 1, first), until_ms=at + 1) for at in starts]

    async def _pages(self, filters: UsageFilters, account_id: str | None) -> AsyncIterator[list[UsageRow]]:
        whose = [] if account_id is None else [of_account(account_id, filters)]
        while True:
            query = select(*columns_of(usage, UsageRow._fields)).where(*whose, *filters.conditions())
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
