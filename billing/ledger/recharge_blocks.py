"""Blocks of automatic recharge after credits were taken back: a card is charged for what was used, never for what was
given back.

Called in the transaction that takes the credits, so that the watcher never sees the lower balance without it.
"""

from sqlalchemy import case, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.postings import customer
from billing.storage.database import now_ms
from billing.storage.tables.core import balances, transfers
from billing.storage.tables.payments import auto_recharges

CLOSED = "The account is closed, so automatic recharge is off."
DISPUTED = "A payment was disputed, so automatic recharge is off."
WARNED = "A payment was reported as possible fraud, so automatic recharge is off."
STOPPED_FOR = (DISPUTED, WARNED)
"""What stops it at once, also while a payment is in flight."""
TAKEN_BACK = "Credits were taken back, so nothing is charged until your balance was above the threshold again."


async def use_up_crossing(connection: AsyncConnection, account_id: str) -> None:
    """After credits were taken: a balance that is below the threshold now has been there without a crossing to charge
    for.
    """
    table = auto_recharges.c
    posted = select(balances.c.posted_millicredits).where(balances.c.account_id == account_id).scalar_subquery()
    fallen = (table.account_id == account_id) & ~table.below & (posted < table.threshold_millicredits)
    used_up = {"below": True, "crossing": table.crossing + 1, "attempt": 0, "next_try_at": None}
    await connection.execute(
        update(auto_recharges).where(fallen).values(**used_up, message=TAKEN_BACK, updated_at=now_ms())
    )


async def taken_back_since(connection: AsyncConnection, account_id: str, since_ms: int) -> int:
    """Return the millicredits that refunds, disputes and adjustments took of an account since a time (Unix ms)."""
    query = select(func.coalesce(func.sum(transfers.c.amount_millicredits), 0)).where(
        transfers.c.debit_account == customer(account_id),
        transfers.c.kind != "usage",
        transfers.c.created_at >= since_ms,
    )
    return int((await connection.execute(query)).scalar_one())


async def stop_for_risk(connection: AsyncConnection, account_id: str, why: str = DISPUTED) -> None:
    """Charge a cardholder who disputes, or was warned of, no more, whatever has become of the purchase.

    What is in flight is concluded, and its row keeps the words until then; the recharge worker tells the operator's
    app.
    """
    await _stop(connection, account_id, "disputed", why)


async def stop_for_closing(connection: AsyncConnection, account_id: str) -> None:
    """Charge the card of an account that is closed no more; what is in flight is concluded."""
    await _stop(connection, account_id, "stopped", CLOSED)


async def _stop(connection: AsyncConnection, account_id: str, state: str, message: str) -> None:
    table = auto_recharges.c
    kept = case((table.state == "paying", "paying"), else_=state)
    armed = (table.account_id == account_id) & table.enabled
    stopped = {"enabled": False, "state": kept, "message": message, "updated_at": now_ms()}
    await connection.execute(update(auto_recharges).where(armed).values(**stopped))
