"""From one object at Stripe to its purchase: fetch it as it is now, apply it, once and in any order.

Webhooks, the sweeper, `stripe replay` and the landing page all end here. Nothing is taken from an event but an id, so
late, repeated, stale and shuffled events make no difference; every call is safe at any time.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

from billing.ledger.audit_log import Who
from billing.money.errors import NotYet
from billing.payments.claim_store import Applied, ClaimNews, ClaimStore, DisputeMovement
from billing.payments.claims import dispute_status, refund_status
from billing.payments.crediting import Crediting, Receipt
from billing.payments.purchase import NotAcceptable, Payment
from billing.payments.purchase_store import NOT_CREDITED, Purchase, PurchaseStore, Stale
from billing.payments.stripe.event_types import Oddity
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.objects import (
    OWN_ID,
    BalanceTransaction,
    CheckoutSession,
    Dispute,
    Intent,
    Refund,
    StripeCharge,
    failure_of,
    id_of,
    payment_of_intent,
    payment_of_session,
)
from billing.payments.stripe.ownership import Ownership
from billing.payments.stripe_customers import SavedMethod, StripeCustomers

log = logging.getLogger("tollkeeper.stripe")

TRIES = 8
NOT_OURS = "not ours"

Result = TypeVar("Result")


class Outcome(NamedTuple):
    """A sync's effect in words; `foreign`: it belongs to something else on the same Stripe account.

    `happened`: when Stripe had it so (Unix seconds; 0: it does not say).
    """

    text: str
    foreign: bool = False
    changed: bool = False
    happened: int = 0


class Observer(Protocol):
    """Receiver of what money did (metrics)."""

    def moved(self, kind: str, millicredits: int) -> None:
        """Count millicredits moved; `kind` is purchase, refund, dispute or loss."""
        ...

    def odd(self, kind: Oddity) -> None:
        """Count what a person should look at; told once of each."""
        ...


class Sync:
    """The way of Stripe's objects into our stores. Raises StoreUnavailable, StripeRefused, NotYet."""

    def __init__(
        self,
        gateway: StripeGateway,
        purchases: PurchaseStore,
        crediting: Crediting,
        claims: ClaimStore,
        customers: StripeCustomers,
        ownership: Ownership,
        observer: Observer | None = None,
    ) -> None:
        """`ownership` says what is ours; `observer` is told after each commit."""
        self._ownership = ownership
        self._gateway, self._purchases, self._customers, self._observer = gateway, purchases, customers, observer
        self._crediting, self._claims = crediting, claims

    async def session(self, session_id: str) -> Outcome:
        """Bring the purchase of a Checkout Session to where its payment is."""

        async def once() -> Outcome:
            purchase = await self._purchases.of_session(session_id)
            session = await self._gateway.session(session_id)
            if session is None:
                return Outcome("Stripe has no such session", foreign=purchase is None)
            if purchase is None:
                purchase = await self._adopt(session)
                if purchase is None:
                    return Outcome(NOT_OURS, foreign=True)
            receipt = _receipt(session.payment_intent)._replace(invoice_id=session.invoice or "")
            settled = await self._settle(purchase, payment_of_session(session), receipt, session.payment_intent)
            ended = session.expires_at or 0 if session.status == "expired" else 0
            return settled._replace(happened=max(settled.happened, ended))

        return await _until_fresh(once)

    async def intent(self, intent_id: str) -> Outcome:
        """Bring the purchase of a PaymentIntent to where it is; one of a Checkout Session is settled by its session."""

        async def once() -> Outcome:
            purchase = await self._purchases.of_intent(intent_id)
            if purchase is not None and purchase.session_id is not None:
                return await self.session(purchase.session_id)
            intent = await self._gateway.intent(intent_id)
            if intent is None:
                return Outcome("Stripe has no such payment", foreign=purchase is None)
            if purchase is None:
                purchase = await self._purchases.get(intent.metadata.get(OWN_ID, ""))
                if purchase is None:
                    return Outcome(NOT_OURS, foreign=True)
                if purchase.origin != "auto":
                    # its session tells of it, unless that event never comes: then this one does
                    return await self._session_of(intent_id) or Outcome(NOT_OURS, foreign=True)
                if purchase.payment_intent_id not in (None, intent_id) or purchase.customer_id != (
                    intent.customer or ""
                ):
                    log.warning("payment %s names purchase %s and is not its payment", intent_id, purchase.id)
                    return Outcome(NOT_OURS, foreign=True)
            return await self._settle(purchase, _payment(purchase, intent), _receipt(intent), intent)

        return await _until_fresh(once)

    async def accept(self, purchase_id: str, who: Who, reason: str) -> Applied:
        """Credit a payment in review because a person says so, by what Stripe has of it now; once.

        Raises NotAcceptable.
        """

        async def once() -> Applied:
            purchase = await self._purchases.get(purchase_id)
            if purchase is None:
                raise NotAcceptable(
                    f"there is no purchase {purchase_id!r}: `tollkeeper purchases review` lists those in review"
                )
            payment, intent = await self._paid_for(purchase)
            return await self._crediting.accept(purchase_id, payment, _receipt(intent), purchase.revision, who, reason)

        applied = await _until_fresh(once)
        if not applied.changed:
            return applied
        log.warning("purchase %s was accepted by %s: %s", purchase_id, who.actor, reason)
        self._tell("purchase", applied.credited - sum(applied.taken.values()))
        self._tell_taken(applied)
        return applied

    async def _paid_for(self, purchase: Purchase) -> "tuple[Payment, Intent | str | None]":
        if purchase.session_id is not None:
            session = await self._gateway.session(purchase.session_id)
            if session is not None:
                return payment_of_session(session), session.payment_intent
        intent = await self._gateway.intent(purchase.payment_intent_id) if purchase.payment_intent_id else None
        if intent is None:
            raise NotAcceptable(f"Stripe knows no payment of purchase {purchase.id}")
        return _payment(purchase, intent), intent

    async def payment(self, stripe_charge_id: str) -> Outcome:
        """Apply what became known of a charge later (its fee) to its payment."""
        intent_id = await self._intent_of_charge(stripe_charge_id)
        return await self.intent(intent_id) if intent_id else Outcome(NOT_OURS, foreign=True)

    async def refund(self, refund_id: str) -> Outcome:
        """Apply a refund to its purchase."""
        found = await self._gateway.refund(refund_id)
        if found is None:
            return Outcome("Stripe has no such refund", foreign=True)
        intent_id = found.payment_intent or await self._intent_of_charge(found.charge)
        if await self._ownership.is_foreign(found.metadata, refund_id, found.charge):
            return Outcome(NOT_OURS, foreign=True)
        purchase_id = await self._purchase_of(intent_id)
        if purchase_id is None:
            return Outcome(NOT_OURS, foreign=True)

        async def news() -> ClaimNews | None:
            refund = await self._gateway.refund(refund_id)
            return _refund_news(refund) if refund is not None else None

        return (await self._claim(purchase_id, news, found.currency))._replace(happened=found.created)

    async def returned(self, purchase_id: str, news: ClaimNews) -> None:
        """Apply money of a bank transfer that a person sent back."""

        async def once() -> Applied:
            purchase = await self._purchases.get(purchase_id)
            if purchase is None:
                raise NotYet(f"there is no purchase {purchase_id}")
            return await self._claims.apply(purchase_id, news, purchase.revision)

        self._tell_taken(await _until_fresh(once))

    async def refunds_of(self, stripe_charge_id: str) -> Outcome:
        """Apply every refund of a charge."""
        outcomes = [await self.refund(refund.id) async for refund in self._gateway.refunds(charge=stripe_charge_id)]
        if not outcomes:
            return Outcome("a charge without refunds", foreign=True)
        return Outcome(
            "; ".join(outcome.text for outcome in outcomes),
            foreign=all(outcome.foreign for outcome in outcomes),
            changed=any(outcome.changed for outcome in outcomes),
        )

    async def dispute(self, dispute_id: str) -> Outcome:
        """Apply a dispute to its purchase."""
        found = await self._gateway.dispute(dispute_id)
        if found is None:
            return Outcome("Stripe has no such dispute", foreign=True)
        if await self._ownership.is_foreign({}, dispute_id, found.charge):
            return Outcome(NOT_OURS, foreign=True)
        purchase_id = await self._purchase_of(found.payment_intent or await self._intent_of_charge(found.charge))
        if purchase_id is None:
            return Outcome(NOT_OURS, foreign=True)

        async def news() -> ClaimNews | None:
            dispute = await self._gateway.dispute(dispute_id)
            return _dispute_news(dispute) if dispute is not None else None

        return (await self._claim(purchase_id, news, found.currency))._replace(happened=found.created)

    async def risk(self, intent_id: str | None, stripe_charge_id: str | None) -> Outcome:
        """Stop charging the account of a payment that is reported as possible fraud, and have a person look.

        Whether to give it back is theirs to decide: the purchase stays as it is.
        """
        purchase_id = await self._purchase_of(intent_id or await self._intent_of_charge(stripe_charge_id))
        if purchase_id is None:
            return Outcome(NOT_OURS, foreign=True)
        account_id = await self._claims.suspect(purchase_id)
        log.error("the payment of %s is reported as possible fraud: %s is not recharged", purchase_id, account_id)
        self._tell_odd("fraud_warning")
        return Outcome(f"{purchase_id} is reported as possible fraud; automatic recharge is off", changed=True)

    # -- how ------------------------------------------------------------------------------------------------

    async def _settle(
        self, purchase: Purchase, payment: Payment, receipt: Receipt, intent: "Intent | str | None"
    ) -> Outcome:
        applied = await self._crediting.settle(purchase.id, payment, receipt, purchase.revision)
        newly = applied.changed and applied.state == "credited" and purchase.state != "credited"
        if newly:
            self._tell("purchase", purchase.paid_millicredits + purchase.bonus_millicredits)
            self._tell_taken(applied)
            if purchase.state in ("expired", "failed"):
                log.warning("purchase %s was paid after it had %s", purchase.id, purchase.state)
                self._tell_odd("paid_late")
        elif applied.state == "review" and purchase.state != "review":
            log.error("purchase %s is paid and not credited: %s", purchase.id, applied.problem)
        if (
            applied.state == "credited"
            and isinstance(intent, Intent)
            and purchase.save_method
            and intent.payment_method
        ):
            charge = intent.latest_charge
            details = charge.payment_method_details if isinstance(charge, StripeCharge) else None
            method = SavedMethod(intent.payment_method, *(details.label if details is not None else ("", "")))
            await self._customers.save_method(purchase.account_id, purchase.customer_id, method, purchase.created_at)
        return Outcome(f"{purchase.id} {applied.state}", changed=applied.changed, happened=_paid_at(intent))

    async def _adopt(self, session: CheckoutSession) -> Purchase | None:
        """Find the purchase whose session this is, though its row does not say so yet (we died between Stripe and SQL).

        What the session says of itself is only a hint: the row must be ours, without a session, and of the same
        customer.
        """
        purchase = await self._purchases.get(session.client_reference_id or "")
        if purchase is None or purchase.origin != "checkout":
            return None
        if purchase.session_id not in (None, session.id) or purchase.customer_id != (session.customer or ""):
            log.warning("session %s names purchase %s and is not its session", session.id, purchase.id)
            return None
        return await self._purchases.record_session(purchase.id, session.id, session.url or "")

    async def _session_of(self, intent_id: str) -> Outcome | None:
        async for session in self._gateway.sessions(payment_intent=intent_id):
            return await self.session(session.id)
        return None

    async def _intent_of_charge(self, stripe_charge_id: str | None) -> str | None:
        charge = await self._gateway.charge(stripe_charge_id) if stripe_charge_id else None
        return charge.payment_intent if charge is not None else None

    async def _purchase_of(self, intent_id: str | None) -> str | None:
        """Return the id of the purchase paid by a PaymentIntent; None when it is not ours. Raises NotYet."""
        if intent_id is None:
            return None
        purchase = await self._purchases.of_intent(intent_id)
        if purchase is None and await self._ownership.is_foreign({}, intent_id):
            return None
        if purchase is None:
            # before its payment was told of: the payment first, then what goes back
            outcome = await self._session_of(intent_id) or await self.intent(intent_id)
            purchase = await self._purchases.of_intent(intent_id)
            if purchase is None and not outcome.foreign:
                raise NotYet(f"payment {intent_id} belongs to a purchase we do not know yet")
        if purchase is None:
            intent = await self._gateway.intent(intent_id)
            if intent is None or await self._ownership.is_foreign(intent.metadata, intent_id):
                return None
            if intent.metadata.get(OWN_ID):
                raise NotYet(
                    f"payment {intent_id} names {intent.metadata[OWN_ID]}, which we do not know; if it is another "
                    f"installation's: `tollkeeper findings dismiss {intent.metadata[OWN_ID]} --reason ...`"
                )
        return purchase.id if purchase is not None else None

    async def _claim(
        self, purchase_id: str, fetch: Callable[[], Awaitable[ClaimNews | None]], currency: str
    ) -> Outcome:
        async def once() -> Outcome:
            purchase = await self._purchases.get(purchase_id)
            if purchase is None or (purchase.currency != currency and purchase.state not in NOT_CREDITED):
                raise NotYet(f"{purchase_id} cannot take back {currency!r}")
            news = await fetch()
            if news is None:
                return Outcome("Stripe has no such object", foreign=True)
            applied = await self._claims.apply(purchase_id, news, purchase.revision)
            self._report(purchase, news, applied)
            return Outcome(f"{news.claim_id} {news.status} on {purchase_id}", changed=applied.changed)

        return await _until_fresh(once)

    def _report(self, purchase: Purchase, news: ClaimNews, applied: Applied) -> None:
        if news.counts is None:
            log.error(
                "%s %s has the status %r, which we do not know: what stood stands",
                news.kind,
                news.claim_id,
                news.status,
            )
            if applied.changed:
                self._tell_odd("unknown_status")
        self._tell_taken(applied)
        if applied.blocked:
            log.error("account %s is blocked after a lost dispute (%s)", purchase.account_id, news.claim_id)

    def _tell_taken(self, applied: Applied) -> None:
        for kind, millicredits in applied.taken.items():
            if millicredits:
                self._tell(kind, -millicredits)
        if applied.lost:
            self._tell("loss", applied.lost)

    def _tell(self, kind: str, millicredits: int) -> None:
        if self._observer is not None:
            self._observer.moved(kind, millicredits)

    def _tell_odd(self, kind: Oddity) -> None:
        if self._observer is not None:
            self._observer.odd(kind)


async def _until_fresh(once: Callable[[], Awaitable[Result]]) -> Result:
    """Fetch and apply, again while somebody else was faster. Raises NotYet when that does not end."""
    for _ in range(TRIES):
        try:
            return await once()
        except Stale:
            continue
    raise NotYet("others keep changing this purchase")


def _payment(purchase: Purchase, intent: Intent) -> Payment:
    return payment_of_intent(intent, purchase.tax_calculation, purchase.due_tax_cents)


def _paid_at(intent: "Intent | str | None") -> int:
    """Return when a payment came in (Unix seconds): a bank debit days after it was begun."""
    charge = intent.latest_charge if isinstance(intent, Intent) else None
    if not isinstance(charge, StripeCharge):
        return 0
    moved = charge.balance_transaction
    return max(charge.created, moved.created if isinstance(moved, BalanceTransaction) else 0)


def _receipt(intent: "Intent | str | None") -> Receipt:
    if not isinstance(intent, Intent):
        return Receipt(id_of(intent))
    charge, failure = intent.latest_charge, failure_of(intent)
    if not isinstance(charge, StripeCharge):
        return Receipt(intent.id, id_of(charge), failure=failure)
    fee = charge.balance_transaction
    known = isinstance(fee, BalanceTransaction) and fee.currency == intent.currency
    fee_id, cents = (fee.id, fee.fee) if known and isinstance(fee, BalanceTransaction) else ("", 0)
    return Receipt(intent.id, charge.id, charge.receipt_url or "", fee_id, cents, failure)


def _refund_news(refund: Refund) -> ClaimNews:
    standing = refund_status(refund.status or "pending")
    counts = standing.counts if standing.known else None
    return ClaimNews(
        refund.id, "refund", refund.amount, refund.status or "pending", counts, lost=False, reason=refund.reason or ""
    )


def _dispute_news(dispute: Dispute) -> ClaimNews:
    standing = dispute_status(dispute.status)
    movements = tuple(
        DisputeMovement(row.id, -row.amount, row.fee)
        for row in dispute.balance_transactions
        if row.currency == dispute.currency
    )
    counts = standing.counts if standing.known else None
    return ClaimNews(
        dispute.id, "dispute", dispute.amount, dispute.status, counts, standing.lost, dispute.reason, movements
    )
