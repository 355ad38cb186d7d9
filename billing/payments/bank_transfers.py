"""Money that came by bank, past Stripe: written down by a person as a purchase, and returned as one.

It is credited, deferred and recognised as any purchase is, on the ledger account `cash`; what Stripe is asked for,
swept and compared with leaves it out. What is sent back by bank is written down as a refund of it (refunds.py).
"""

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.accounts import lock_open
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.credits.grants import book_purchase
from billing.money.errors import ReferenceTaken
from billing.money.postings import purchase_postings
from billing.payments.purchase import Offer
from billing.payments.purchase_store import (
    Purchase,
    PurchaseChange,
    change_purchase,
    insert_purchase,
    lock_purchase,
    purchase_of,
)
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import purchases

CODE = "transfer"
"""What stands for a package on statements and pages."""


class BankTransfers:
    """Records of transfers. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def record(
        self, account_id: str, offer: Offer, reference: str, who: Who, reason: str, *, livemode: bool
    ) -> tuple[Purchase, bool]:
        """Credit a transfer that came in, once by its reference; return it, and whether it is new.

        Raises AccountNotFound, ReferenceTaken.
        """
        key = f"{CODE}:{reference}"
        try:
            async with self._db.write() as connection:
                await lock_open(connection, account_id)
                known = await _known(connection, key)
                if known is None:
                    return await _credit(connection, account_id, offer, key, who, reason, livemode=livemode), True
        except IntegrityError:  # another account's, in this very moment
            raise ReferenceTaken(reference) from None
        if (known.account_id, known.price_cents, known.bonus_millicredits) != (
            account_id,
            offer.price_cents,
            offer.bonus,
        ):
            raise ReferenceTaken(reference)
        return known, False


async def _known(connection: AsyncConnection, key: str) -> Purchase | None:
    query = select(purchases).where(purchases.c.idempotency_key == key)
    row = (await connection.execute(query)).mappings().first()
    return purchase_of(row) if row is not None else None


async def _credit(
    connection: AsyncConnection, account_id: str, offer: Offer, key: str, who: Who, reason: str, *, livemode: bool
) -> Purchase:
    now = now_ms()
    row = await insert_purchase(
        connection, account_id, offer, "transfer", livemode=livemode, save_method=False, key=key
    )
    await book_purchase(connection, account_id, purchase_postings(row.id, account_id, offer.paid, offer.bonus, 0, now))
    credited: PurchaseChange = {
        "state": "credited",
        "credited_at": now,
        "total_cents": offer.price_cents,
        "fee_booked": True,
    }
    await change_purchase(connection, row, credited)
    after = {"accountId": account_id, "cents": offer.price_cents, "millicredits": str(offer.paid + offer.bonus)}
    await record_change(connection, who, Change("purchase.record", row.id, None, after, reason))
    return await lock_purchase(connection, row.id)
