"""Booking transfers inside a transaction that somebody else holds: balances and the outbox move with them."""

from collections.abc import Sequence

from sqlalchemy import insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.ledger import transfers_row
from billing.money.errors import AccountNotFound
from billing.money.postings import CUSTOMER, Posting, effect_on
from billing.storage.tables.core import balances, outbox, transfers


async def move(connection: AsyncConnection, postings: Sequence[Posting]) -> None:
    """Book postings that must be new; customers' credits go live through the outbox. Raises AccountNotFound."""
    if not postings:
        return
    await connection.execute(insert(transfers), [transfers_row(posting) for posting in postings])
    effects: dict[str, int] = {}
    for posting in postings:
        for side in (posting.debit, posting.credit):
            if side.startswith(CUSTOMER):
                account_id = side.removeprefix(CUSTOMER)
                effects[account_id] = effects.get(account_id, 0) + effect_on(side, posting)
    # in sorted order, as the flushers lock them
    for account_id in sorted(effects):
        if effects[account_id]:
            await _credit(connection, account_id, effects[account_id], postings[0].created_at)


async def note(connection: AsyncConnection, postings: Sequence[Posting]) -> None:
    """Book postings that touch no customer and may have been booked before (keyed by Stripe's own ids)."""
    if postings:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        rows = [transfers_row(posting) for posting in postings]
        await connection.execute(dialect.insert(transfers).on_conflict_do_nothing(), rows)


async def _credit(connection: AsyncConnection, account_id: str, amount: int, created_at: int) -> None:
    moved = await connection.execute(
        update(balances)
        .where(balances.c.account_id == account_id)
        .values(
            posted_millicredits=balances.c.posted_millicredits + amount, outbox_sequence=balances.c.outbox_sequence + 1
        )
        .returning(balances.c.outbox_sequence)
    )
    sequence = moved.scalar_one_or_none()
    if sequence is None:
        raise AccountNotFound(account_id)
    await connection.execute(
        insert(outbox).values(
            account_id=account_id, sequence=sequence, delta_millicredits=amount, created_at=created_at
        )
    )
