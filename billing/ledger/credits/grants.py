"""Booking credits that are given, or taken back by hand, inside a transaction that somebody else holds."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.credits.lots import add_lot, spend_first
from billing.ledger.recharge_blocks import use_up_crossing
from billing.ledger.transfers import change_balance, insert_once, move
from billing.money.postings import Posting


async def book_grant(connection: AsyncConnection, posting: Posting, account_id: str, amount: int) -> bool:
    """Book a grant (negative: a correction) with its lot, its balance and the outbox; False when it was booked before.

    Raises AccountNotFound, ReferenceTaken.
    """
    if not await insert_once(connection, posting):
        return False
    if amount < 0:
        await spend_first(connection, account_id, -amount)
    await change_balance(connection, account_id, amount, posting.created_at)
    await add_lot(connection, account_id, posting)
    if amount < 0:
        await use_up_crossing(connection, account_id)
    return True


async def book_purchase(connection: AsyncConnection, account_id: str, postings: Sequence[Posting]) -> None:
    """Book what was paid for, and the lot of a bonus that expires. Raises AccountNotFound."""
    await move(connection, postings)
    for posting in postings:
        await add_lot(connection, account_id, posting)
