"""One account's month: balances at both ends, purchases, what went back, usage by model and day. Days and months are UTC.

Everything counts on the day on which the ledger booked it, so that opening + movements = closing to the millicredit.
"""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, RowMapping, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.books import DAY_MS
from billing.database import Database
from billing.money_tables import purchases
from billing.posting import customer
from billing.tables import accounts, transfers, usage

MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")


class StatementPurchase(NamedTuple):
    """A credited purchase; `at` in Unix milliseconds, money in cents, credits in millicredits."""

    at: int
    purchase_id: str
    package_code: str
    currency: str
    price_cents: int
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
    """Anything else that changed the balance: refunds, disputes, adjustments."""

    at: int
    kind: str
    reference: str
    reason: str
    millicredits: int


class Statement(NamedTuple):
    """A month of an account. Balances in millicredits; opening + everything in it = closing."""

    account_id: str
    name: str
    month: str
    opening: int
    closing: int
    purchases: list[StatementPurchase]
    entries: list[StatementEntry]
    usage: list[StatementUsage]
    usage_total: int


class Statements:
    """Reads statements. Raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def read(self, account_id: str, month: str) -> Statement:
        """The statement of a month written YYYY-MM. Raises ValueError when it is not written so."""
        start, end = month_bounds(month)
        who = customer(account_id)
        effect = case((transfers.c.credit_account == who, 1), else_=-1) * transfers.c.amount_millicredits
        mine = or_(transfers.c.debit_account == who, transfers.c.credit_account == who)
        within = and_(mine, transfers.c.created_at >= start, transfers.c.created_at < end)
        async with self._db.read() as connection:
            name = (await connection.execute(select(accounts.c.name).where(accounts.c.id == account_id))).scalar_one()
            before = select(func.coalesce(func.sum(effect), 0)).where(mine, transfers.c.created_at < start)
            opening = int((await connection.execute(before)).scalar_one())
            rows = (
                await connection.execute(select(transfers).where(within, transfers.c.kind != "usage").order_by(transfers.c.id))
            ).mappings()
            moved = [
                (row["kind"], row["created_at"], row["reference_id"], row["reason"], _effect(row["credit_account"] == who, row))
                for row in rows
            ]
            used = await self._usage(connection, within)
            bought = await self._purchases(connection, account_id, [row[2] for row in moved if row[0] == "purchase"])
        entries = [
            StatementEntry(at, kind, reference, reason, amount)
            for kind, at, reference, reason, amount in moved
            if kind not in ("purchase", "purchase_bonus")
        ]
        total = sum(row.millicredits for row in used)
        closing = opening + sum(row[4] for row in moved) - total
        return Statement(account_id, name, month, opening, closing, bought, entries, used, total)

    @staticmethod
    async def _usage(connection: AsyncConnection, within: ColumnElement[bool]) -> list[StatementUsage]:
        day = (transfers.c.created_at - transfers.c.created_at % DAY_MS) // DAY_MS
        query = (
            select(
                day,
                usage.c.model,
                func.count(),
                func.sum(usage.c.input_tokens),
                func.sum(usage.c.output_tokens),
                func.sum(transfers.c.amount_millicredits),
            )
            .select_from(transfers.outerjoin(usage, usage.c.charge_id == transfers.c.reference_id))
            .where(within, transfers.c.kind == "usage")
            .group_by(day, usage.c.model)
            .order_by(day, usage.c.model)
        )
        rows = await connection.execute(query)
        return [
            StatementUsage(_day(int(row[0])), row[1] or "unknown", int(row[2]), int(row[3] or 0), int(row[4] or 0), int(row[5]))
            for row in rows
        ]

    @staticmethod
    async def _purchases(connection: AsyncConnection, account_id: str, wanted: list[str]) -> list[StatementPurchase]:
        query = (
            select(purchases)
            .where(purchases.c.account_id == account_id, purchases.c.id.in_(wanted))
            .order_by(purchases.c.credited_at, purchases.c.id)
        )
        return [
            StatementPurchase(
                row["credited_at"],
                row["id"],
                row["package_code"],
                row["currency"],
                row["price_cents"],
                row["tax_cents"],
                row["paid_millicredits"] + row["bonus_millicredits"],
                row["receipt_url"],
            )
            for row in (await connection.execute(query)).mappings()
        ]


def month_bounds(month: str) -> tuple[int, int]:
    """(start, end) of a UTC month in Unix milliseconds. Raises ValueError."""
    found = MONTH.fullmatch(month)
    if found is None:
        raise ValueError("a month is written YYYY-MM")
    year, number = int(found[1]), int(found[2])
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(datetime(year, number, 1, tzinfo=UTC).timestamp()) * 1_000, int(following.timestamp()) * 1_000


def _effect(credited: bool, row: RowMapping) -> int:
    amount = int(row["amount_millicredits"])
    return amount if credited else -amount


def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_MS // 1_000, UTC).date().isoformat()
