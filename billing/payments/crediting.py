"""Crediting: a purchase is moved to where its payment is; its transfers, its state and the outbox in one transaction.

Money is keyed by the purchase: a transfer's reference is the purchase's id, unique in SQL, and the row is locked
(I4: however often and from wherever it is told, a payment is credited once).
"""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.credits.grants import book_purchase
from billing.ledger.transfers import insert_missing
from billing.money.postings import CASH, FEES, Posting, purchase_postings, signed
from billing.payments.claim_store import Applied, book_movements, claims_of, rebook_claims
from billing.payments.purchase import (
    MILLICREDITS_PER_CENT,
    NotAcceptable,
    Payment,
    accepted,
    judge,
    may_become,
)
from billing.payments.purchase_store import (
    NOT_CREDITED,
    Purchase,
    PurchaseChange,
    Stale,
    change_purchase,
    lock_purchase,
    purchase_of,
)
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import purchases

DAY_MS = 86_400_000


class Receipt(NamedTuple):
    """Stripe's further facts about a payment. `fee_id` is the balance transaction of its fee ("" = not known yet).

    `failure` is the code of why it did not work.
    """

    intent_id: str = ""
    stripe_charge_id: str = ""
    receipt_url: str = ""
    fee_id: str = ""
    fee_cents: int = 0
    failure: str = ""
    invoice_id: str = ""


class Crediting:
    """The transactions that settle purchases. Every method raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def settle(self, purchase_id: str, payment: Payment, receipt: Receipt, revision: int) -> Applied:
        """Move a purchase to where its payment is; what is paid and right is credited, once. Raises Stale."""
        now = now_ms()
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.revision != revision:
                raise Stale(purchase_id)
            if row.state == "credited":
                return await _complete(connection, row, receipt, now)
            change = _news(row, receipt)
            verdict = judge(row.sold, payment)
            if row.state in NOT_CREDITED or verdict.state in NOT_CREDITED:
                # what Stripe keeps of a payment is gone, whatever becomes of the purchase
                await insert_missing(connection, _fee(receipt, now))
            if not may_become(row.state, verdict.state):
                if change:
                    await change_purchase(connection, row, change)
                return Applied(bool(change), row.state, 0, row.problem)
            why = receipt.failure if verdict.state == "failed" and receipt.failure else verdict.problem
            change |= {"state": verdict.state, "problem": why}
            if verdict.state in ("credited", "review"):
                change |= {
                    "total_cents": max(payment.total_cents, payment.tax_cents, 0),
                    "tax_cents": max(payment.tax_cents, 0),
                }
            if verdict.state != "credited":
                await change_purchase(connection, row, change)
                return Applied(True, verdict.state, 0, verdict.problem)
            return await _credit(
                connection, row, change, (row.paid_millicredits, row.bonus_millicredits), payment, receipt, now
            )

    async def accept(
        self, purchase_id: str, payment: Payment, receipt: Receipt, revision: int, who: Who, reason: str
    ) -> Applied:
        """Credit a payment in review because a person says so; the audit row is of the same transaction.

        Refunds and disputes recorded meanwhile take their share at once; what is credited already stays as it is.
        Raises NotAcceptable, Stale.
        """
        now = now_ms()
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.state == "credited":
                return Applied(False, "credited")
            if row.state != "review":
                raise NotAcceptable(f"purchase {purchase_id} is {row.state}, not in review")
            if row.revision != revision:
                raise Stale(purchase_id)
            returned = sum(claim.amount_cents for claim in await claims_of(connection, row.id) if claim.counts)
            paid, bonus = accepted(row.sold, payment, returned, row.bonus_millicredits)
            change = _news(row, receipt) | {"state": "credited"}
            change |= {"paid_millicredits": paid, "bonus_millicredits": bonus}
            change |= {"total_cents": payment.total_cents, "tax_cents": payment.tax_cents}
            applied = await _credit(connection, row, change, (paid, bonus), payment, receipt, now)
            before = {"state": row.state, "problem": row.problem}
            after = {"state": "credited", "millicredits": str(paid + bonus), "accountId": row.account_id}
            await record_change(connection, who, Change("purchase.accept", purchase_id, before, after, reason))
            return applied

    async def dismiss(self, purchase_id: str, who: Who, reason: str) -> bool:
        """Close a payment in review that nothing is credited for, as a person says; False when that is so already.

        Raises NotAcceptable.
        """
        async with self._db.write() as connection:
            query = select(purchases).where(purchases.c.id == purchase_id).with_for_update()
            found = (await connection.execute(query)).mappings().first()
            row = purchase_of(found) if found is not None else None
            if row is not None and row.state == "dismissed":
                return False
            if row is None or row.state != "review":
                raise NotAcceptable(f"purchase {purchase_id} is {row.state if row else 'unknown'}, not in review")
            await change_purchase(connection, row, {"state": "dismissed"})
            before = {"state": row.state, "problem": row.problem, "accountId": row.account_id}
            await record_change(
                connection, who, Change("purchase.dismiss", purchase_id, before, {"state": "dismissed"}, reason)
            )
            return True


async def _complete(connection: AsyncConnection, row: Purchase, receipt: Receipt, now: int) -> Applied:
    """Add to a credited purchase what became known since, and book its fee."""
    change = _news(row, receipt)
    await insert_missing(connection, _fee(receipt, now))
    if receipt.fee_id and not row.fee_booked:
        change["fee_booked"] = True
    if change:
        await change_purchase(connection, row, change)
    return Applied(bool(change), "credited")


async def _credit(
    connection: AsyncConnection,
    row: Purchase,
    change: PurchaseChange,
    parts: tuple[int, int],
    payment: Payment,
    receipt: Receipt,
    now: int,
) -> Applied:
    """Book the paid and the bonus part (millicredits) and the tax; claims recorded before take their share at once."""
    paid, bonus = parts
    change |= {"credited_at": now, "fee_booked": bool(receipt.fee_id)}
    tax = payment.tax_cents * MILLICREDITS_PER_CENT
    ends = None if row.bonus_days is None else now + row.bonus_days * DAY_MS
    postings = purchase_postings(row.id, row.account_id, paid, bonus, tax, now, ends)
    await book_purchase(connection, row.account_id, postings)
    await insert_missing(connection, _fee(receipt, now))
    await book_movements(connection, row.id, now)
    await change_purchase(connection, row, change)
    taken, lost = await rebook_claims(connection, await lock_purchase(connection, row.id), now)
    return Applied(True, "credited", paid + bonus + sum(taken.values()), taken=taken, lost=lost)


def _news(row: Purchase, receipt: Receipt) -> PurchaseChange:
    """Return what the receipt adds to the row."""
    found: PurchaseChange = {}
    if receipt.intent_id and row.payment_intent_id is None:
        found["payment_intent_id"] = receipt.intent_id
    if receipt.stripe_charge_id and receipt.stripe_charge_id != row.stripe_charge_id:
        found |= {"charge_id": receipt.stripe_charge_id, "receipt_url": receipt.receipt_url}
    if receipt.invoice_id and receipt.invoice_id != row.invoice_id:
        found["invoice_id"] = receipt.invoice_id
    return found


def _fee(receipt: Receipt, now: int) -> list[Posting]:
    if not receipt.fee_id:
        return []
    return signed(
        FEES,
        CASH,
        receipt.fee_cents * MILLICREDITS_PER_CENT,
        "stripe_fee",
        ("balance_transaction", receipt.fee_id),
        now,
    )
