"""Sources of the books, account by account: whatever touched customers, read row by row, one account at a time.

Usage comes summed by day, from the kept sums where they are whole and from the ledger before; everything else row by
row. All of a run is read from one snapshot, and no more of it is in memory than some accounts.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Row, Select, and_, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.summaries.usage_days import DAY_MS
from billing.money.postings import COGS, CUSTOMER, PLATFORM_LOSS, REVENUE, payable
from billing.money.revenue_recognition import Position
from billing.storage.tables.core import MOVES, transfers
from billing.storage.tables.payments import claims
from billing.storage.tables.summaries import books_accounts, books_days, usage_days

PAGE = 1_000
BATCH = 500
OF_CHARGES = ("usage_cost", "platform_loss")
CUSTOMERS = (CUSTOMER, CUSTOMER[:-1] + chr(ord(CUSTOMER[-1]) + 1))
"""Names of customers' accounts are from the first on and before the second: a range of an index."""


class CustomerMovement(NamedTuple):
    """Something that touched a customer: a row, or a day's usage in one. Days since 1970; `effect` in millicredits."""

    day: int
    account_id: str
    kind: str
    reference: str
    effect: int
    expires_at: int | None = None


class BookedDays(NamedTuple):
    """Booked days (since 1970) from `first` on, before `end`. `kept`: the day from which on sums are whole."""

    first: int
    end: int
    kept: int

    def within(self) -> tuple[ColumnElement[bool], ...]:
        """Return the condition that a transfer was booked on these days."""
        return transfers.c.created_at >= self.first * DAY_MS, transfers.c.created_at < self.end * DAY_MS


class KeptDay(NamedTuple):
    """The books at the end of a booked day, of all accounts together. -1: before everything."""

    day: int
    at: Position


Movements = list[CustomerMovement]
"""Of one account: its usage by day, then the rest in order of booking."""
NOTHING_KEPT = KeptDay(-1, Position(0, 0, 0, 0, 0))


async def kept_before(connection: AsyncConnection, day: int) -> KeptDay:
    """Return the newest kept books of before a day."""
    table = books_days.c
    columns = (table.day, table.recognised, table.deferred, table.outstanding, table.overdrawn, table.adjusted)
    query = select(*columns).where(table.day < day).order_by(table.day.desc()).limit(1)
    row = (await connection.execute(query)).first()
    return NOTHING_KEPT if row is None else KeptDay(row[0], Position(*map(int, row[1:])))


async def accounts_moved(
    connection: AsyncConnection, days: BookedDays, only: Sequence[str] | None = None
) -> AsyncIterator[list[tuple[str, str | None, Movements]]]:
    """Accounts that something touched, some at a time: id, state kept before the first of these days, what touched it.

    `only`: of these accounts.
    """
    batch: list[tuple[str, Movements]] = []
    async for one in _movements_by_account(connection, days, only):
        batch.append(one)
        if len(batch) == BATCH:
            yield await _with_states(connection, days.first, batch)
            batch = []
    if batch:
        yield await _with_states(connection, days.first, batch)


async def _with_states(
    connection: AsyncConnection, first: int, batch: list[tuple[str, Movements]]
) -> list[tuple[str, str | None, Movements]]:
    table, states = books_accounts.c, dict[str, str]()
    if first > 0:
        ids = [account_id for account_id, _ in batch]
        query = select(table.account_id, table.state).where(table.account_id.in_(ids), table.day < first)
        # in order of their days: the newest is what stays
        states = {row[0]: row[1] for row in await connection.execute(query.order_by(table.day))}
    return [(account_id, states.get(account_id), movements) for account_id, movements in batch]


async def _movements_by_account(
    connection: AsyncConnection, days: BookedDays, only: Sequence[str] | None
) -> AsyncIterator[tuple[str, Movements]]:
    bytewise = "BINARY" if connection.dialect.name == "sqlite" else "C"
    used, moved = used_by_day(days).subquery(), moves(days).subquery()
    of_these = [[] if only is None else [table.c.account_id.in_(only)] for table in (used, moved)]
    name = used.c.account_id.collate(bytewise)
    usage = await connection.stream(select(used).where(*of_these[0]).order_by(name, used.c.day))
    name = moved.c.account_id.collate(bytewise)
    rest = await connection.stream(select(moved).where(*of_these[1]).order_by(name, moved.c.id))
    streams = [_by_account(usage.partitions(PAGE), _of_usage), _by_account(rest.partitions(PAGE), _of_move)]
    heads = [await anext(stream, None) for stream in streams]
    while any(heads):
        account_id, found = min(head[0] for head in heads if head), Movements()
        for place, head in enumerate(heads):
            if head and head[0] == account_id:
                found += head[1]
                heads[place] = await anext(streams[place], None)
        yield account_id, found


async def others(connection: AsyncConnection, days: BookedDays) -> dict[int, list[tuple[str, str, int]]]:
    """Booked day → (debit, credit, millicredits) of what touches no customer."""
    day = (transfers.c.created_at - transfers.c.created_at % DAY_MS) // DAY_MS
    amount = func.sum(transfers.c.amount_millicredits)
    alone = and_(~transfers.c.debit_account.startswith(CUSTOMER), ~transfers.c.credit_account.startswith(CUSTOMER))
    sides = (transfers.c.debit_account, transfers.c.credit_account)
    queries = [select(day, *sides, amount).where(MOVES, alone, *days.within()).group_by(day, *sides)]
    early = days._replace(end=min(days.end, days.kept))
    if early.first < early.end:
        parts = select(day, *sides, amount).where(transfers.c.kind.in_(OF_CHARGES), *early.within())
        queries.append(parts.group_by(day, *sides))
    found: defaultdict[int, list[tuple[str, str, int]]] = defaultdict(list)
    for query in queries:
        for number, debit, credit, moved in await connection.execute(query):
            found[int(number)].append((debit, credit, int(moved)))
    table = usage_days.c
    sums = select(table.booked_day, table.upstream, func.sum(table.cost_millicredits), _sum(table.loss_millicredits))
    late = (table.booked_day >= max(days.first, days.kept), table.booked_day < days.end)
    for number, upstream, cost, loss in await connection.execute(
        sums.where(*late).group_by(table.booked_day, table.upstream)
    ):
        found[number] += [(COGS, payable(upstream), int(cost)), (PLATFORM_LOSS, REVENUE, int(loss))]
    return found


async def owners_of_claims(connection: AsyncConnection) -> dict[str, str]:
    """Claim → the purchase whose lot it takes from."""
    return {row[0]: row[1] for row in await connection.execute(select(claims.c.id, claims.c.purchase_id))}


def used_by_day(days: BookedDays) -> Any:
    """Select account, day and millicredits of charged usage."""
    table = usage_days.c
    late = (table.booked_day >= max(days.first, days.kept), table.booked_day < days.end)
    kept = (
        select(table.account_id, table.booked_day.label("day"), _sum(table.charged_millicredits).label("amount"))
        .where(table.charged, *late)
        .group_by(table.account_id, table.booked_day)
    )
    early = days._replace(end=min(days.end, days.kept))
    if early.first >= early.end:
        return kept
    day = (transfers.c.created_at - transfers.c.created_at % DAY_MS) // DAY_MS
    account_id = func.substr(transfers.c.debit_account, len(CUSTOMER) + 1)
    single = select(account_id, day, _sum(transfers.c.amount_millicredits))
    single = single.where(transfers.c.kind == "usage", *early.within()).group_by(transfers.c.debit_account, day)
    return union_all(kept, single)


def moves(days: BookedDays) -> Any:
    """Select what touched customers and is no usage."""
    found: list[Select[Any]] = []
    for side, other, sign in (
        (transfers.c.credit_account, transfers.c.debit_account, 1),
        (transfers.c.debit_account, transfers.c.credit_account, -1),
    ):
        touched = [side >= CUSTOMERS[0], side < CUSTOMERS[1], MOVES, *days.within()]
        if sign < 0:  # of two customers a row counts for who is credited
            touched.append(~other.startswith(CUSTOMER))
        fields = (
            transfers.c.id,
            func.substr(side, len(CUSTOMER) + 1).label("account_id"),
            transfers.c.created_at,
            transfers.c.kind,
            transfers.c.reference_id,
            (transfers.c.amount_millicredits * literal(sign)).label("effect"),
            transfers.c.expires_at,
        )
        found.append(select(*fields).where(*touched))
    return union_all(*found)


async def _by_account(
    pages: AsyncIterator[Sequence[Row[Any]]], read: Callable[[Row[Any]], CustomerMovement]
) -> AsyncIterator[tuple[str, Movements]]:
    """Rows that come sorted by account, those of an account together."""
    account_id, found = "", Movements()
    async for page in pages:
        for row in page:
            movement = read(row)
            if movement.account_id != account_id and found:
                yield account_id, found
                found = []
            account_id = movement.account_id
            found.append(movement)
    if found:
        yield account_id, found


def _of_usage(row: Row[Any]) -> CustomerMovement:
    return CustomerMovement(int(row.day), row.account_id, "usage", "", -int(row.amount))


def _of_move(row: Row[Any]) -> CustomerMovement:
    day = int(row.created_at) // DAY_MS
    return CustomerMovement(day, row.account_id, row.kind, row.reference_id, int(row.effect), row.expires_at)


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return func.sum(column, type_=BigInteger)
