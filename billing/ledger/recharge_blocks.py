"""Blocks of automatic recharge after credits were taken back: a card is charged for what was used, never for what was
given back.

Called in the transaction that takes the credits, so that the watcher never sees the lower balance without it.
"""

from sqlalchemy import case, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.storage.database import now_ms
from billing.storage.tables.core import balances
from billing.storage.tables.payments import auto_recharges

DISPUTED = "A payment was disputed, so automatic recharge is off."
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


async def stop_for_dispute(connection: AsyncConnection, account_id: str) -> None:
    """Charge a cardholder who disputes no more, whatever has become of the purchase.

    What is in flight is concluded, and its row keeps the words until then; the recharge worker tells the operator's
    app.
    """
    table = auto_recharges.c
    state = case((table.state == "paying", "paying"), else_="disputed")
    armed = (table.account_id == account_id) & table.enabled
    stopped = {"enabled": False, "state": state, "message": DISPUTED, "updated_at": now_ms()}
    await connection.execute(update(auto_recharges).where(armed).values(**stopped))
