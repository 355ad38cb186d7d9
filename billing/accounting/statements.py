"""One account's month: balances at both ends, purchases, what went back, usage by model and day. Days and months are
UTC.

Everything counts on the day on which the ledger booked it, so that opening + movements = closing to the millicredit.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Table, and_, case, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.summaries.usage_days import DAY_MS, since_day
from billing.money.postings import CASH, DISPUTES, customer
from billing.storage.database import Readable
from billing.storage.tables.core import MOVES, accounts, transfers, usage, usage_daily
from billing.storage.tables.payments import claims, purchases
from billing.storage.tables.summaries import usage_days

UNKNOWN = "unknown"
RETURNING = ("refund", "refund_tax", "refund_loss", "dispute", "dispute_tax", "dispute_loss")
"""Bookings that move a buyer's money: back to the buyer when they credit `cash` or `disputes`."""
NAMED_KIND = case(
    (and_(transfers.c.kind == "adjustment", transfers.c.reference_type != "grant"), transfers.c.reference_type),
    else_=transfers.c.kind,
)
"""What a booking is called: credits that were given by rule or for a code by what gave them."""
SHOWN_REASON = case((transfers.c.reason_shown, transfers.c.reason), else_="")
"""Why something was booked, where the customer may read it."""
MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")


class StatementPurchase(NamedTuple):
    """A credited purchase; `at` in Unix milliseconds, money in cents, credits in millicredits.

    `paid_cents` is what was paid, tax and all: of a payment that a person accepted it need not be the package's price.
    """

    at: int
    purchase_id: str
    package_code: str
    paid_cents: int
    tax_cents: int
    millicredits: int
    receipt_url: str


class StatementUsage(NamedTuple):
    """A day's charges for one model."""

    day: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    millicredits: int


class StatementEntry(NamedTuple):
    """Anything else that changed the balance: refunds, disputes, adjustments.

    `returned` is the money that went back with it, `returned_tax` the tax in that, both in millionths of a dollar;
    negative when it came to us again: a failed refund, a dispute won.
    """

    at: int
    kind: str
    reference: str
    reason: str
    millicredits: int
    returned: int = 0
    returned_tax: int = 0


class _Booking(NamedTuple):
    """A row of the account that is no usage; `effect` on its balance in millicredits, signed."""

    at: int
    kind: str
    reference: str
    reason: str
    effect: int


class _UsageSum(NamedTuple):
    """Charges booked on one day (days since 1970) for one model; `summed`: read from `usage_daily`, and also told of
    without a model.

    `model` None: charges without a usage row.
    """

    day: int
    model: str | None
    requests: int
    input_tokens: int | None
    output_tokens: int | None
    millicredits: int
    summed: int


class Returned(NamedTuple):
    """The money of one booking of a refund or dispute. See StatementEntry."""

    at: int
    kind: str
    money: int
    tax: int


class Statement(NamedTuple):
    """A month of an account. Balances in millicredits; opening + everything in it = closing.

    What entries returned in money stands beside that: it is no part of the balances.
    """

    account_id: str
    name: str
    month: str
    opening: int
    closing: int
    purchases: list[StatementPurchase]
    entries: list[StatementEntry]
    usage: list[StatementUsage]

    @property
    def usage_total(self) -> int:
        """Millicredits that usage took."""
        return sum(row.millicredits for row in self.usage)


class Statements:
    """Reads statements. Raises StoreUnavailable."""

    def __init__(self, database: Readable) -> None:
        """`database` must be migrated."""
        self._db = database

    async def read(self, account_id: str, month: str) -> Statement:
        """Return the statement of a month written YYYY-MM. Raises ValueError when it is not written so."""
        start, end = month_bounds(month)
        who = customer(account_id)
        async with self._db.read() as connection:
            named = await connection.execute(select(accounts.c.name).where(accounts.c.id == account_id))
            name = named.scalar_one_or_none() or ""  # a replica may not have an account that was made this moment
            kept = await since_day(connection)
            opening = await _moved_before(connection, who, start) - await _used_before(
                connection, account_id, start, kept
            )
            query = _moves(who, transfers.c.created_at >= start, transfers.c.created_at < end)
            moved = [_Booking(*row[1:]) for row in await connection.execute(query)]
            used = await _usage(connection, account_id, (start, end), kept)
            bought = await self._purchases(
                connection, account_id, [row.reference for row in moved if row.kind == "purchase"]
            )
            returned = await self._returned(connection, account_id, (start, end))
        entries = _with_money(
            [
                StatementEntry(row.at, row.kind, row.reference, row.reason, row.effect)
                for row in moved
                if row.kind not in ("purchase", "purchase_bonus")
            ],
            returned,
        )
        closing = opening + sum(row.effect for row in moved) - sum(row.millicredits for row in used)
        return Statement(account_id, name, month, opening, closing, bought, entries, used)

    @staticmethod
    async def _returned(connection: AsyncConnection, account_id: str, bounds: tuple[int, int]) -> dict[str, Returned]:
        """By the reference of the booking: what went back of the account's payments, and more than was paid where that
        happened.
        """
        owned = claims.join(purchases, purchases.c.id == claims.c.purchase_id)
        known = await connection.execute(
            select(claims.c.id, claims.c.version).select_from(owned).where(purchases.c.account_id == account_id)
        )
        references = [f"{claim}:{number}" for claim, version in known for number in range(1, version + 1)]
        query = select(
            transfers.c.created_at,
            transfers.c.kind,
            transfers.c.reference_type,
            transfers.c.reference_id,
            transfers.c.credit_account,
            transfers.c.amount_millicredits,
        ).where(
            transfers.c.kind.in_(RETURNING),
            transfers.c.reference_id.in_(references),
            transfers.c.created_at >= bounds[0],
            transfers.c.created_at < bounds[1],
        )
        found: dict[str, Returned] = {}
        for at, kind, of, reference, credited, booked in await connection.execute(query.order_by(transfers.c.id)):
            amount = int(booked) if credited in (CASH, DISPUTES) else -int(booked)
            before = found.get(reference, Returned(at, of, 0, 0))
            tax = amount if kind.endswith("_tax") else 0
            found[reference] = before._replace(money=before.money + amount, tax=before.tax + tax)
        return found

    @staticmethod
    async def _purchases(connection: AsyncConnection, account_id: str, wanted: list[str]) -> list[StatementPurchase]:
        bought = purchases.c
        query = select(
            bought.credited_at,
            bought.id,
            bought.package_code,
            bought.total_cents,
            bought.tax_cents,
            bought.paid_millicredits + bought.bonus_millicredits,
            bought.receipt_url,
        ).where(bought.account_id == account_id, bought.id.in_(wanted))
        rows = await connection.execute(query.order_by(bought.credited_at, bought.id))
        return [StatementPurchase(*row) for row in rows]


def _moves(who: str, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Rows of a customer that are no usage: id, then the fields of `_Booking`, in order of their booking.

    Each side by its own index, and no row of a charge is read.
    """
    named, shown = NAMED_KIND.label("kind"), SHOWN_REASON.label("reason")
    fields = (transfers.c.id, transfers.c.created_at, named, transfers.c.reference_id, shown)
    amount = transfers.c.amount_millicredits
    sides = [
        select(*fields, (sign * amount).label("effect")).where(side == who, MOVES, *conditions)
        for side, sign in ((transfers.c.credit_account, 1), (transfers.c.debit_account, -1))
    ]
    both = union_all(*sides).subquery()
    return select(both).order_by(both.c.id)


async def _moved_before(connection: AsyncConnection, who: str, start: int) -> int:
    """Sum what moved a customer's balance before a time, usage apart."""
    moves = _moves(who, transfers.c.created_at < start).subquery()
    return int((await connection.execute(select(func.coalesce(func.sum(moves.c.effect), 0)))).scalar_one())


async def _used_before(connection: AsyncConnection, account_id: str, start: int, kept: int) -> int:
    """Sum what usage took before a time: of days whose sums are kept from these, else from the ledger."""
    table, day = usage_days.c, start // DAY_MS
    mine = (table.account_id == account_id, table.charged, table.booked_day >= kept, table.booked_day < day)
    query = select(func.coalesce(func.sum(table.charged_millicredits), 0)).where(*mine)
    used = int((await connection.execute(query)).scalar_one())
    if kept > 0:
        early = transfers.c.created_at < min(start, kept * DAY_MS)
        old = select(func.coalesce(func.sum(transfers.c.amount_millicredits), 0)).where(
            transfers.c.debit_account == customer(account_id), transfers.c.kind == "usage", early
        )
        used += int((await connection.execute(old)).scalar_one())
    return used


async def _usage(
    connection: AsyncConnection, account_id: str, bounds: tuple[int, int], kept: int
) -> list[StatementUsage]:
    """By day of booking and model: from the sums of days where they are kept, else from single rows."""
    first, end = bounds[0] // DAY_MS, bounds[1] // DAY_MS
    queries = [_summed(usage_days, account_id, (max(first, kept), end))] if end > kept else []
    if first < kept:
        until = min(end, kept)
        # one statement is one snapshot: a charge is in its row or in a sum, never in both
        queries += [_single(account_id, (bounds[0], until * DAY_MS)), _summed(usage_daily, account_id, (first, until))]
    return _by_day_and_model(_UsageSum(*row) for row in await connection.execute(union_all(*queries)))


def _single(account_id: str, bounds: tuple[int, int]) -> Select[Any]:
    """Charges of a time by their transfers; of one whose row was dropped there is no model."""
    day = (transfers.c.created_at - transfers.c.created_at % DAY_MS) // DAY_MS
    within = (transfers.c.created_at >= bounds[0], transfers.c.created_at < bounds[1])
    sums = (
        func.count(),
        func.sum(usage.c.input_tokens),
        func.sum(usage.c.output_tokens),
        func.sum(transfers.c.amount_millicredits),
    )
    return (
        select(day, usage.c.model, *sums, literal(0))
        .select_from(transfers.outerjoin(usage, usage.c.charge_id == transfers.c.reference_id))
        .where(transfers.c.debit_account == customer(account_id), transfers.c.kind == "usage", *within)
        .group_by(day, usage.c.model)
    )


def _summed(table: Table, account_id: str, days: tuple[int, int]) -> Select[Any]:
    """Charges of booked days by a table of sums. Those of `usage_daily` are among the transfers without a row."""
    of, names = table.c, ("requests", "input_tokens", "output_tokens", "charged_millicredits")
    return (
        select(of.booked_day, of.model, *(func.sum(of[name]) for name in names), literal(int(table is usage_daily)))
        .where(of.account_id == account_id, of.charged, of.booked_day >= days[0], of.booked_day < days[1])
        .group_by(of.booked_day, of.model)
    )


def month_bounds(month: str) -> tuple[int, int]:
    """(start, end) of a UTC month in Unix milliseconds. Raises ValueError."""
    found = MONTH.fullmatch(month)
    if found is None:
        raise ValueError("a month is written YYYY-MM")
    year, number = int(found[1]), int(found[2])
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(datetime(year, number, 1, tzinfo=UTC).timestamp()) * 1_000, int(following.timestamp()) * 1_000


def _by_day_and_model(sums: Iterable[_UsageSum]) -> list[StatementUsage]:
    """Return the statement's lines, in order.

    Charges without a usage row are those that were summed up, and what is left of them then is nobody's.
    """
    lines: defaultdict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for day, model, *numbers, summed in sums:
        for place, number in enumerate(numbers):
            lines[int(day), model or UNKNOWN][place] += int(number or 0)
            if summed:  # its transfer was counted among those without a row
                lines[int(day), UNKNOWN][place] -= int(number or 0) if place in (0, 3) else 0
    return [
        StatementUsage(_day(day), model, *lines[day, model]) for day, model in sorted(lines) if any(lines[day, model])
    ]


def _with_money(entries: list[StatementEntry], returned: dict[str, Returned]) -> list[StatementEntry]:
    """Each booking's money on its first entry.

    Money that took no credits along (paid back beyond the price) is an entry of its own.
    """
    left, found = dict(returned), []
    for entry in entries:
        money = left.pop(entry.reference, None)
        found.append(entry._replace(returned=money.money, returned_tax=money.tax) if money else entry)
    found += [
        StatementEntry(money.at, money.kind, reference, "", 0, money.money, money.tax)
        for reference, money in left.items()
    ]
    return sorted(found, key=lambda entry: entry.at)


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS // 1_000, UTC).date().isoformat()
