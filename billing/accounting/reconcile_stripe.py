"""Stripe's record, our purchases and the ledger: three pictures of the same money. Findings only, nothing is repaired.

purchases ↔ ledger    from SQL alone, in every `tollkeeper reconcile`
Stripe ↔ purchases    what Stripe took, refunded and disputed against what we credited and took back; daily, and in
`tollkeeper reconcile` where Stripe is configured
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, select, text

from billing.money.findings import Finding
from billing.money.postings import CASH, CUSTOMER
from billing.payments.claims import Claim, Kind, Parts, Whole, allocate
from billing.payments.purchase import MILLICREDITS_PER_CENT
from billing.payments.purchase_store import NOT_CREDITED
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.objects import OWN_ID, BalanceTransaction, Dispute, Intent, Refund, StripeCharge, id_of
from billing.payments.stripe.ownership import Ownership
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.core import transfers
from billing.storage.tables.payments import claims, purchases

CENTS = MILLICREDITS_PER_CENT
ID_BATCH = 500
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


class _BookedClaim(NamedTuple):
    """A refund or dispute with what is booked of it, and the purchase that it is of."""

    id: str
    purchase_id: str
    kind: Kind
    amount_cents: int
    counts: bool
    lost: bool
    booked_paid: int
    booked_bonus: int
    booked_tax: int
    state: str
    total_cents: int
    tax_cents: int
    paid_millicredits: int
    bonus_millicredits: int
    bonus_expired: int


CLAIM_FIELDS, PURCHASE_FIELDS = _BookedClaim._fields[:9], _BookedClaim._fields[9:]


class _ClaimTransfer(NamedTuple):
    """A booking of a claim: its reference, the account that it debits, millicredits."""

    reference_id: str
    debit_account: str
    amount: int


class _Bought(NamedTuple):
    """A purchase as far as Stripe's record is held against it."""

    id: str
    state: str
    session_id: str | None
    payment_intent_id: str | None
    total_cents: int
    fee_booked: bool


async def check_purchases(database: Database) -> list[Finding]:
    """Purchases and claims against the ledger. Raises StoreUnavailable."""
    async with database.read() as connection:
        credited = (await connection.execute(text(CREDITED_VS_TRANSFERS))).all()
        orphans = (await connection.execute(text(TRANSFERS_WITHOUT_PURCHASE))).all()
        review = (await connection.execute(text(IN_REVIEW))).all()
        booked = (await connection.execute(text(CLAIM_TRANSFERS))).all()
        columns = (*columns_of(claims, CLAIM_FIELDS), *columns_of(purchases, PURCHASE_FIELDS))
        joined = select(*columns).join(purchases, purchases.c.id == claims.c.purchase_id)
        in_order = await connection.execute(joined.order_by(claims.c.purchase_id, claims.c.ordinal))
        claimed = [_BookedClaim(*row) for row in in_order]
    findings = [
        Finding("purchase vs its transfers", row[0], int(row[1]), int(row[2])) for row in credited if row[1] != row[2]
    ]
    findings += [Finding("purchase transfer without a credited purchase", row[0], 0, int(row[1])) for row in orphans]
    findings += [Finding("paid and not credited, a person must decide", row[0], int(row[1]), 0) for row in review]
    return findings + _check_claims(claimed, [_ClaimTransfer(*row) for row in booked])


def _check_claims(rows: Sequence[_BookedClaim], transfers: Iterable[_ClaimTransfer]) -> list[Finding]:
    """Compare of each claim what it should take, what it says is booked, and what the ledger has."""
    ledger: defaultdict[str, int] = defaultdict(int)
    for reference, debit, amount in transfers:
        ledger[reference.rpartition(":")[0]] += amount if debit.startswith(CUSTOMER) else -amount
    by_purchase: defaultdict[str, list[_BookedClaim]] = defaultdict(list)
    for row in rows:
        by_purchase[row.purchase_id].append(row)
    findings = []
    for group in by_purchase.values():
        should = _shares(group)
        # what an older version booked with fractions of a cent of tax is booked anew by the next sweep: nobody's fault
        waits = any(row.booked_tax % CENTS for row in group)
        for row, parts in zip(group, should, strict=True):
            wanted, booked = parts.paid + parts.bonus, row.booked_paid + row.booked_bonus
            if wanted != booked and not waits:
                findings.append(Finding("claim vs what it should take", row.id, wanted, booked))
            if booked != ledger[row.id]:
                findings.append(Finding("claim vs its transfers", row.id, booked, ledger[row.id]))
    return findings


def _shares(group: Sequence[_BookedClaim]) -> list[Parts]:
    first = group[0]
    if first.state != "credited":
        return [Parts()] * len(group)
    tax = first.tax_cents * MILLICREDITS_PER_CENT
    whole = Whole(first.total_cents, first.paid_millicredits, first.bonus_millicredits, tax, first.bonus_expired)
    return allocate(whole, [Claim(row.id, row.kind, row.amount_cents, row.counts, row.lost) for row in group])


async def check_stripe(gateway: StripeGateway, database: Database, days: int) -> list[Finding]:
    """Stripe's record of so many days against ours, in cents. Raises StoreUnavailable, StripeRefused.

    What is met at Stripe is looked up here whatever its age: a page may be opened before these days and paid in them,
    and most disputes are of payments long before. What was paid in the last five minutes is on its way.
    """
    now = now_ms() // 1_000
    since, settled = now - days * 86_400, now - SETTLING_SECONDS
    created = {"gte": since, "lte": now}
    intents = [one async for one in gateway.intents(created=created, expand=["data.latest_charge.balance_transaction"])]
    ownership = Ownership(database)
    paid = await _paid_at_stripe(gateway, created, intents, ownership)
    refunds = [one async for one in gateway.refunds(created=created)]
    disputes = [one async for one in gateway.disputes(created=created)]
    ours = await _purchases(database, purchases.c.id, list(paid))
    recent = await _credited_since(database, since, settled)
    findings = [
        await _paid_finding(gateway, one, ours.get(one.purchase_id), settled) for _, one in sorted(paid.items())
    ]
    findings += [await _credited_finding(gateway, row) for row in recent if row.id not in paid]
    known = await _purchases(database, purchases.c.payment_intent_id, _intents_of([*refunds, *disputes]))
    by_intent = {row.payment_intent_id or "": row for row in known.values()}
    findings += await _claim_findings(database, [one for one in refunds if one.created <= settled], by_intent)
    findings += await _claim_findings(database, [one for one in disputes if one.created <= settled], by_intent)
    findings += await _money_findings(database, intents, disputes, by_intent, settled)
    return [finding for finding in findings if finding is not None]


class _Paid(NamedTuple):
    """Money that Stripe has taken for a purchase."""

    purchase_id: str
    cents: int
    intent_id: str


async def _paid_at_stripe(
    gateway: StripeGateway, created: dict[str, int], intents: Sequence[Intent], ownership: Ownership
) -> dict[str, _Paid]:
    """By purchase, without what is another installation's on the same Stripe account."""
    paid: dict[str, _Paid] = {}
    async for session in gateway.sessions(created=created):
        own, intent_id = session.client_reference_id or "", id_of(session.payment_intent)
        if session.payment_status != "paid" or not own.startswith("pur_"):
            continue
        if not await ownership.is_foreign(session.metadata, own, session.id, intent_id):
            paid[own] = _Paid(own, session.amount_total or 0, intent_id)
    for intent in intents:
        own = intent.metadata.get(OWN_ID, "")
        if intent.status != "succeeded" or not own or own in paid:
            continue
        if not await ownership.is_foreign(intent.metadata, intent.id):
            paid[own] = _Paid(own, intent.amount_received, intent.id)
    return paid


async def _purchases(database: Database, column: ColumnElement[Any], wanted: Sequence[str]) -> dict[str, _Bought]:
    """Purchase id → row, of those whose `column` is among these."""
    found: dict[str, _Bought] = {}
    async with database.read() as connection:
        for start in range(0, len(wanted), ID_BATCH):
            query = select(*columns_of(purchases, _Bought._fields))
            rows = await connection.execute(query.where(column.in_(wanted[start : start + ID_BATCH])))
            found |= {row.id: row for row in (_Bought(*row) for row in rows)}
    return found


async def _credited_since(database: Database, since: int, settled: int) -> list[_Bought]:
    within = (
        purchases.c.created_at >= since * 1_000,
        purchases.c.credited_at < settled * 1_000,
        purchases.c.state == "credited",
        purchases.c.origin != "transfer",
    )
    async with database.read() as connection:
        query = select(*columns_of(purchases, _Bought._fields)).where(*within)
        return [_Bought(*row) for row in await connection.execute(query.order_by(purchases.c.id))]


async def _paid_finding(gateway: StripeGateway, paid: _Paid, row: _Bought | None, settled: int) -> Finding | None:
    """Payments in review are findings of `check_purchases`; a dismissed one was seen to by a person."""
    if row is not None and row.state in NOT_CREDITED:
        return None
    credited = row.total_cents if row is not None and row.state == "credited" else 0
    if credited == paid.cents:
        return None
    intent = await gateway.intent(paid.intent_id) if paid.intent_id else None
    charge = intent.latest_charge if intent is not None else None
    if isinstance(charge, StripeCharge) and charge.created > settled:
        return None
    return Finding("paid at Stripe vs credited purchase (cents)", paid.purchase_id, paid.cents, credited, CENTS)


async def _credited_finding(gateway: StripeGateway, row: _Bought) -> Finding | None:
    """Ask Stripe by its id for a credited purchase that it did not list, before it is called unpaid."""
    if row.session_id is not None:
        session = await gateway.session(row.session_id)
        cents = session.amount_total or 0 if session is not None and session.payment_status == "paid" else 0
    else:
        intent = await gateway.intent(row.payment_intent_id or "")
        cents = intent.amount_received if intent is not None and intent.status == "succeeded" else 0
    if cents == row.total_cents:
        return None
    return Finding("credited purchase vs paid at Stripe (cents)", row.id, cents, row.total_cents, CENTS)


def _intents_of(things: Sequence[Refund | Dispute]) -> list[str]:
    return [one.payment_intent for one in things if one.payment_intent]


async def _claim_findings(
    database: Database, things: Sequence[Refund | Dispute], by_intent: Mapping[str, _Bought]
) -> list[Finding]:
    """Refunds and disputes of our purchases that we do not have as Stripe has them."""
    ours = [one for one in things if one.payment_intent in by_intent]
    known: dict[str, tuple[str, int]] = {}
    async with database.read() as connection:
        for start in range(0, len(ours), ID_BATCH):
            ids = [one.id for one in ours[start : start + ID_BATCH]]
            query = select(claims.c.id, claims.c.status, claims.c.amount_cents).where(claims.c.id.in_(ids))
            known |= {row[0]: (row[1], row[2]) for row in await connection.execute(query)}
    findings = []
    for one in ours:
        row = known.get(one.id)
        if row != (one.status or "pending", one.amount):
            kind = "refund" if isinstance(one, Refund) else "dispute"
            findings.append(
                Finding(
                    f"{kind} {one.status} at Stripe (cents)",
                    one.id,
                    one.amount,
                    row[1] if row is not None else 0,
                    CENTS,
                )
            )
    return findings


async def _money_findings(
    database: Database,
    intents: Sequence[Intent],
    disputes: Sequence[Dispute],
    by_intent: Mapping[str, _Bought],
    settled: int,
) -> list[Finding]:
    """Fees, and what Stripe took or gave back for disputes, against `cash`, by the ids of Stripe's balance
    transactions.
    """
    paid = await _purchases(database, purchases.c.payment_intent_id, [one.id for one in intents])
    ours = {row.payment_intent_id for row in paid.values() if row.fee_booked}
    wanted: dict[tuple[str, str], int] = {}
    for intent in intents:
        charge = intent.latest_charge
        if (
            intent.id in ours
            and isinstance(charge, StripeCharge)
            and isinstance(charge.balance_transaction, BalanceTransaction)
        ):
            wanted["stripe_fee", charge.balance_transaction.id] = charge.balance_transaction.fee
    for dispute in disputes:
        row = by_intent.get(str(dispute.payment_intent))
        if row is None or dispute.created > settled:
            continue
        for moved in dispute.balance_transactions:
            wanted["stripe_fee", moved.id] = moved.fee
            if row.state == "credited":
                wanted["dispute_cash", moved.id] = -moved.amount
    booked = await _booked(database, sorted({reference for _, reference in wanted}))
    return [
        Finding(f"{kind} of a balance transaction (cents)", reference, cents, booked.get((kind, reference), 0), CENTS)
        for (kind, reference), cents in sorted(wanted.items())
        if cents != booked.get((kind, reference), 0)
    ]


async def _booked(database: Database, references: Sequence[str]) -> dict[tuple[str, str], int]:
    """(kind, balance transaction) → cents that left `cash` for it."""
    found: dict[tuple[str, str], int] = {}
    async with database.read() as connection:
        for start in range(0, len(references), ID_BATCH):
            query = select(
                transfers.c.kind, transfers.c.reference_id, transfers.c.credit_account, transfers.c.amount_millicredits
            ).where(
                transfers.c.kind.in_(("stripe_fee", "dispute_cash")),
                transfers.c.reference_id.in_(references[start : start + ID_BATCH]),
            )
            for kind, reference, credited, amount in await connection.execute(query):
                found[kind, reference] = (amount if credited == CASH else -amount) // MILLICREDITS_PER_CENT
    return found
