"""Lots of credits that expire: rows made with the transfers that give them, and brought up to date when looked at.

What was charged is not booked lot by lot: the account's balance counts it in one column, and each lot says up to where
it has been counted. All open lots of an account are counted up to the same. Everything that changes lots does so with
the account's balance row locked, so that no charge is booked meanwhile.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.credits.expiring import ExpiringLot, spend, total_of, within
from billing.money.errors import AccountNotFound
from billing.money.postings import Posting
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import balances
from billing.storage.tables.credits import expiring_lots


class LotRow(NamedTuple):
    """An expiring lot as it is kept. Amounts in millicredits, times in Unix milliseconds."""

    kind: str
    reference_id: str
    account_id: str
    granted_millicredits: int
    remaining_millicredits: int
    expired_millicredits: int
    charged_until: int
    expirations: int
    expires_at: int
    created_at: int
    announced_at: int | None

    @property
    def lot_id(self) -> str:
        """Its transfer's kind and reference, which name it."""
        return f"{self.kind}:{self.reference_id}"

    @property
    def lot(self) -> ExpiringLot:
        """The lot as the rules see it."""
        return ExpiringLot(self.lot_id, self.remaining_millicredits, self.expires_at)


class BookedBalance(NamedTuple):
    """An account's balance row: what is booked, what was charged, and the last row of the outbox."""

    posted: int
    charged: int
    sequence: int


COLUMNS = columns_of(expiring_lots, LotRow._fields)
BALANCE = columns_of(balances, ("posted_millicredits", "charged_millicredits", "outbox_sequence"))


async def expiring_of(database: Database, account_id: str) -> list[LotRow]:
    """Return what of an account's credits expires, the next first, as of now. Raises StoreUnavailable."""
    query = (
        select(*COLUMNS, *BALANCE)
        .join(balances, balances.c.account_id == expiring_lots.c.account_id)
        .where(expiring_lots.c.account_id == account_id, expiring_lots.c.closed_at.is_(None))
    )
    async with database.read() as connection:  # in one statement: lots and balance of one moment
        found = [tuple(row) for row in await connection.execute(query.order_by(*_ORDER))]
    if not found:
        return []
    rows = [LotRow(*row[: len(COLUMNS)]) for row in found]
    return [row for row in _counted(rows, BookedBalance(*found[0][len(COLUMNS) :])) if row.remaining_millicredits]


async def lock_balance(connection: AsyncConnection, account_id: str) -> BookedBalance:
    """Lock an account's balance row until the transaction ends. Raises AccountNotFound."""
    query = select(*BALANCE).where(balances.c.account_id == account_id)
    row = (await connection.execute(query.with_for_update())).first()
    if row is None:
        raise AccountNotFound(account_id)
    return BookedBalance(*row)


async def bring_up_to_date(connection: AsyncConnection, account_id: str) -> tuple[list[LotRow], BookedBalance]:
    """Take what was charged since from an account's lots, with its balance locked; (lots that are left, the balance).

    Raises AccountNotFound.
    """
    standing = await lock_balance(connection, account_id)
    return await _write(connection, _counted(await _open(connection, account_id), standing)), standing


async def add_lot(connection: AsyncConnection, account_id: str, posting: Posting) -> None:
    """Keep the lot of a transfer that was just booked, where its credits expire.

    What an overdrawn balance swallows of it was spent already. Raises AccountNotFound.
    """
    if posting.expires_at is None:
        return
    lots, standing = await bring_up_to_date(connection, account_id)
    row = LotRow(
        posting.kind,
        posting.reference_id,
        account_id,
        posting.amount,
        posting.amount,
        0,
        standing.charged,
        0,
        posting.expires_at,
        now_ms(),
        None,
    )
    await connection.execute(insert(expiring_lots).values(row._asdict()))
    await _write(connection, _counted([*lots, row], standing))


async def spend_first(connection: AsyncConnection, account_id: str, amount: int) -> None:
    """Take credits away by hand, of expiring lots first, as usage does. Before the balance is changed."""
    lots, _ = await bring_up_to_date(connection, account_id)
    after, _ = spend([row.lot for row in lots], amount)
    await _write(connection, _with(lots, after))


async def change_lot(connection: AsyncConnection, kind: str, reference_id: str, amount: int) -> None:
    """Take so much of one lot (negative: give it back) because what gave it is taken back.

    Before the balance is changed. Nothing where its credits never expire. What is not there any more was spent.
    """
    same = (expiring_lots.c.kind == kind, expiring_lots.c.reference_id == reference_id)
    found = (await connection.execute(select(*COLUMNS).where(*same))).first()
    if found is None:
        return
    given = LotRow(*found)
    lots, standing = await bring_up_to_date(connection, given.account_id)
    row = next((one for one in lots if one.lot_id == given.lot_id), given._replace(charged_until=standing.charged))
    most = row.granted_millicredits - row.expired_millicredits
    left = min(max(0, row.remaining_millicredits - amount), most)
    await _write(connection, [row._replace(remaining_millicredits=left)])


async def take_expired(connection: AsyncConnection, row: LotRow, amount: int) -> None:
    """Keep that so much of a lot expired."""
    left = row.remaining_millicredits - amount
    counts = {"expired_millicredits": row.expired_millicredits + amount, "expirations": row.expirations + 1}
    values = {**counts, "remaining_millicredits": left, "closed_at": None if left else now_ms()}
    await connection.execute(update(expiring_lots).where(*_same(row)).values(**values))


_ORDER = (expiring_lots.c.expires_at, expiring_lots.c.created_at, expiring_lots.c.reference_id)


async def _open(connection: AsyncConnection, account_id: str) -> list[LotRow]:
    query = select(*COLUMNS).where(expiring_lots.c.account_id == account_id, expiring_lots.c.closed_at.is_(None))
    return [LotRow(*row) for row in await connection.execute(query.order_by(*_ORDER))]


def _counted(rows: Sequence[LotRow], standing: BookedBalance) -> list[LotRow]:
    """Return the lots after what was charged, each counted up to now, as far as the balance covers them."""
    if not rows:
        return []
    charged = standing.charged - rows[0].charged_until
    after, _ = spend([row.lot for row in rows], charged)
    counted = [row._replace(charged_until=standing.charged) for row in rows]
    return _with(counted, within(after, standing.posted))


def _with(rows: Sequence[LotRow], lots: Sequence[ExpiringLot]) -> list[LotRow]:
    return [row._replace(remaining_millicredits=lot.remaining) for row, lot in zip(rows, lots, strict=True)]


def _same(row: LotRow) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return expiring_lots.c.kind == row.kind, expiring_lots.c.reference_id == row.reference_id


async def _write(connection: AsyncConnection, rows: Sequence[LotRow]) -> list[LotRow]:
    """Keep lots as they are now; return those of which something is left."""
    for row in rows:
        left = row.remaining_millicredits
        values = {
            "remaining_millicredits": left,
            "charged_until": row.charged_until,
            "closed_at": None if left else now_ms(),
        }
        await connection.execute(update(expiring_lots).where(*_same(row)).values(**values))
    return [row for row in rows if row.remaining_millicredits]


def sum_of(rows: Sequence[LotRow]) -> int:
    """Return the millicredits that are left of lots."""
    return total_of([row.lot for row in rows])
