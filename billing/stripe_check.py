"""Stripe's record, our purchases and the ledger: three pictures of the same money. Findings only, nothing is repaired.

purchases ↔ ledger    from SQL alone, in every `tollkeeper reconcile`
Stripe ↔ purchases    what Stripe took, refunded and disputed against what we credited and took back; daily, and in
`tollkeeper reconcile` where Stripe is configured
"""

from collections import defaultdict
from typing import Any

from sqlalchemy import select, text

from billing.claims import Claim, Parts, Whole, allocate
from billing.database import Database, now_ms
from billing.findings import Finding
from billing.money_tables import claims, purchases
from billing.posting import CUSTOMER
from billing.purchases import MILLICREDITS_PER_CENT
from billing.stripe_gateway import StripeGateway
from billing.stripe_objects import OWN_ID, Dispute, Refund

CENTS = MILLICREDITS_PER_CENT
SETTLING_SECONDS = 300
"""Younger differences are on their way (webhook, worker)."""

CREDITED_VS_TRANSFERS = """
SELECT p.id, p.paid_millicredits + p.bonus_millicredits,
       (SELECT coalesce(sum(t.amount_millicredits), 0) FROM transfers t
         WHERE t.kind IN ('purchase', 'purchase_bonus') AND t.reference_id = p.id
           AND t.credit_account = 'customer:' || p.account_id)
FROM purchases p WHERE p.state = 'credited'
"""
TRANSFERS_WITHOUT_PURCHASE = """
SELECT t.reference_id, t.amount_millicredits FROM transfers t
LEFT JOIN purchases p ON p.id = t.reference_id AND p.state = 'credited'
WHERE t.kind = 'purchase' AND p.id IS NULL
"""
IN_REVIEW = """
SELECT p.id, p.paid_millicredits + p.bonus_millicredits FROM purchases p
WHERE p.state = 'review' AND (p.total_cents = 0 OR p.total_cents >
      (SELECT coalesce(sum(c.amount_cents), 0) FROM claims c WHERE c.purchase_id = p.id AND c.counts))
"""
CLAIM_TRANSFERS = """
SELECT reference_id, debit_account, amount_millicredits FROM transfers
WHERE kind IN ('refund', 'refund_bonus', 'dispute', 'dispute_bonus')
"""


async def check_purchases(database: Database) -> list[Finding]:
    """Purchases and claims against the ledger. Raises StoreUnavailable."""
    async with database.read() as connection:
        credited = (await connection.execute(text(CREDITED_VS_TRANSFERS))).all()
        orphans = (await connection.execute(text(TRANSFERS_WITHOUT_PURCHASE))).all()
        review = (await connection.execute(text(IN_REVIEW))).all()
        booked = (await connection.execute(text(CLAIM_TRANSFERS))).all()
        joined = select(claims, purchases).join(purchases, purchases.c.id == claims.c.purchase_id)
        rows = (await connection.execute(joined.order_by(claims.c.purchase_id, claims.c.ordinal))).mappings().all()
    findings = [Finding("purchase vs its transfers", row[0], int(row[1]), int(row[2])) for row in credited if row[1] != row[2]]
    findings += [Finding("purchase transfer without a credited purchase", row[0], 0, int(row[1])) for row in orphans]
    findings += [Finding("paid and not credited, a person must decide", row[0], int(row[1]), 0) for row in review]
    return findings + _check_claims([dict(row) for row in rows], [tuple(row) for row in booked])


def _check_claims(rows: list[dict[str, Any]], transfers: list[tuple[Any, ...]]) -> list[Finding]:
    """Each claim: what it should take, what it says is booked, what the ledger has."""
    ledger: defaultdict[str, int] = defaultdict(int)
    for reference, debit, amount in transfers:
        ledger[reference.rpartition(":")[0]] += amount if debit.startswith(CUSTOMER) else -amount
    by_purchase: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_purchase[row["purchase_id"]].append(row)
    findings = []
    for group in by_purchase.values():
        should = _shares(group)
        for row, parts in zip(group, should, strict=True):
            wanted, booked = parts.paid + parts.bonus, row["booked_paid"] + row["booked_bonus"]
            if wanted != booked:
                findings.append(Finding("claim vs what it should take", row["id"], wanted, booked))
            if booked != ledger[row["id"]]:
                findings.append(Finding("claim vs its transfers", row["id"], booked, ledger[row["id"]]))
    return findings


def _shares(group: list[dict[str, Any]]) -> list[Parts]:
    first = group[0]
    if first["state"] != "credited":
        return [Parts()] * len(group)
    tax = first["tax_cents"] * MILLICREDITS_PER_CENT
    whole = Whole(first["total_cents"], first["paid_millicredits"], first["bonus_millicredits"], tax)
    return allocate(whole, [Claim(row["id"], row["kind"], row["amount_cents"], row["counts"], row["lost"]) for row in group])


async def check_stripe(gateway: StripeGateway, database: Database, days: int) -> list[Finding]:
    """Stripe's record of so many days against ours, in cents. Raises StoreUnavailable, StripeRefused."""
    now = now_ms() // 1_000
    since, settled = now - days * 86_400, now - SETTLING_SECONDS
    paid = await _paid_at_stripe(gateway, since, settled)
    async with database.read() as connection:
        query = select(purchases).where(purchases.c.created_at >= since * 1_000)
        ours = {row["id"]: row for row in (await connection.execute(query)).mappings()}
        claimed = {row["id"]: row for row in (await connection.execute(select(claims))).mappings()}
    findings = []
    for purchase_id, cents in sorted(paid.items()):
        row = ours.get(purchase_id)
        credited = row["total_cents"] if row is not None and row["state"] == "credited" else 0
        if credited != cents:
            findings.append(Finding("paid at Stripe vs credited purchase (cents)", purchase_id, cents, credited, CENTS))
    for purchase_id, row in sorted(ours.items()):
        if row["state"] == "credited" and purchase_id not in paid and row["credited_at"] < settled * 1_000:
            findings.append(Finding("credited purchase vs paid at Stripe (cents)", purchase_id, 0, row["total_cents"], CENTS))
    known = {row["payment_intent_id"] for row in ours.values()}
    return findings + await _check_claims_at_stripe(gateway, since, settled, known, claimed)


async def _paid_at_stripe(gateway: StripeGateway, since: int, settled: int) -> dict[str, int]:
    """Purchase id → total cents that Stripe has taken for it."""
    paid: dict[str, int] = {}
    created = {"gte": since, "lte": settled}
    async for session in gateway.sessions(created=created):
        if session.payment_status == "paid" and (session.client_reference_id or "").startswith("pur_"):
            paid[session.client_reference_id or ""] = session.amount_total or 0
    async for intent in gateway.intents(created=created):
        purchase_id = intent.metadata.get(OWN_ID, "")
        if intent.status == "succeeded" and purchase_id and purchase_id not in paid:
            paid[purchase_id] = intent.amount_received
    return paid


async def _check_claims_at_stripe(
    gateway: StripeGateway, since: int, settled: int, known: set[str | None], claimed: dict[str, Any]
) -> list[Finding]:
    findings = []
    created = {"gte": since, "lte": settled}
    async for refund in gateway.refunds(created=created):
        row = claimed.get(refund.id)
        if refund.payment_intent in known and (row is None or (row["status"], row["amount_cents"]) != (refund.status, refund.amount)):
            findings.append(_missing("refund", refund, row))
    async for dispute in gateway.disputes(created=created):
        row = claimed.get(dispute.id)
        if dispute.payment_intent in known and (row is None or row["status"] != dispute.status):
            findings.append(_missing("dispute", dispute, row))
    return findings


def _missing(kind: str, thing: Refund | Dispute, row: Any) -> Finding:
    return Finding(
        f"{kind} {thing.status} at Stripe (cents)", thing.id, thing.amount, row["amount_cents"] if row else 0, MILLICREDITS_PER_CENT
    )
