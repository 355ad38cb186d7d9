"""Rows of `transfers`, booked inside a transaction that somebody else holds: balances and the outbox move with them.

I5: every row debits one account and credits another, and none is changed afterwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.errors import AccountNotFound, ReferenceTaken
from billing.money.postings import CUSTOMER, Posting, effect_on
from billing.storage.rows import insert_if_new
from billing.storage.tables.core import balances, outbox, transfers

REFERENCE = ("kind", "reference_id")
"""Columns by which a transfer is booked once."""


class TransferRow(NamedTuple):
    """A ledger row as one customer sees it. Amounts in millicredits, `created_at` in Unix milliseconds.

    `effect` is signed: what it did to the customer's balance. `purchase_id`: the purchase it belongs to, if any.
    `reason_shown`: the customer may read the reason; `expires_at`: of the credits that it gave.
    """

    id: int
    debit_account: str
    credit_account: str
    amount_millicredits: int
    kind: str
    reference_type: str
    reference_id: str
    created_at: int
    actor: str
    reason: str
    expires_at: int | None
    reason_shown: bool
    effect: int
    purchase_id: str | None


async def move(connection: AsyncConnection, postings: Sequence[Posting]) -> None:
    """Book postings that must be new; customers' credits go live through the outbox. Raises AccountNotFound."""
    if not postings:
        return
    await connection.execute(insert(transfers), [transfer_values(posting) for posting in postings])
    effects: dict[str, int] = {}
    for posting in postings:
        for side in (posting.debit, posting.credit):
            if side.startswith(CUSTOMER):
                account_id = side.removeprefix(CUSTOMER)
                effects[account_id] = effects.get(account_id, 0) + effect_on(side, posting)
    # in sorted order, as the flushers lock them
    for account_id in sorted(effects):
        if effects[account_id]:
            await change_balance(connection, account_id, effects[account_id], postings[0].created_at)


async def insert_missing(connection: AsyncConnection, postings: Sequence[Posting]) -> None:
    """Book postings that touch no customer and may have been booked before (keyed by Stripe's own ids): I4."""
    for posting in postings:
        await insert_if_new(connection, transfers, transfer_values(posting), REFERENCE)


async def insert_once(connection: AsyncConnection, posting: Posting) -> bool:
    """Insert one posting's row; False when the same was booked under its reference before (I4).

    Raises ReferenceTaken when something else was.
    """
    if await insert_if_new(connection, transfers, transfer_values(posting), REFERENCE):
        return True
    columns = (transfers.c.debit_account, transfers.c.credit_account, transfers.c.amount_millicredits)
    query = select(*columns).where(transfers.c.kind == posting.kind, transfers.c.reference_id == posting.reference_id)
    debit, credit, amount = (await connection.execute(query)).one()
    if (debit, credit, amount) != (posting.debit, posting.credit, posting.amount):
        raise ReferenceTaken(posting.reference_id)
    return False


async def change_balance(connection: AsyncConnection, account_id: str, amount: int, created_at: int) -> None:
    """Move a customer's posted balance and queue the same for the balance store. Raises AccountNotFound."""
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


def transfer_values(posting: Posting) -> dict[str, str | int | None]:
    """Return a posting as the values of a row."""
    return {**charge_values(posting), "expires_at": posting.expires_at, "reason_shown": posting.reason_shown}


def charge_values(posting: Posting) -> dict[str, str | int | None]:
    """Return a posting of a charge as the values of a row: it gives no credits, and has no reason."""
    return {
        "debit_account": posting.debit,
        "credit_account": posting.credit,
        "amount_millicredits": posting.amount,
        "kind": posting.kind,
        "reference_type": posting.reference_type,
        "reference_id": posting.reference_id,
        "created_at": posting.created_at,
        "actor": posting.actor,
        "reason": posting.reason,
    }
