"""Giving a payment back, in whole or in part: written down, asked of Stripe, and booked by what Stripe then says of it.

The audit row comes first, so that no money goes back that nobody is named for. The idempotency key counts what took the
purchase back before: asked again after an answer that was lost it is the same refund, and asked again on purpose it is
another.
"""

import logging

from billing.ledger.audit_log import AuditLog, Change, Who
from billing.money.amounts import written_usd
from billing.money.errors import NotYet
from billing.payments.claim_store import ClaimStore
from billing.payments.purchase import MILLICREDITS_PER_CENT, NotRefundable, Refunded
from billing.payments.purchase_store import Purchase, PurchaseStore
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.sync import Sync
from billing.storage.database import Database

log = logging.getLogger("tollkeeper.stripe")


class Refunds:
    """Refunds that are asked for here. Those that are made at Stripe are booked by the same sync."""

    def __init__(
        self, database: Database, gateway: StripeGateway, purchases: PurchaseStore, claims: ClaimStore, sync: Sync
    ) -> None:
        """`sync` books what is made here."""
        self._audit, self._gateway, self._purchases, self._sync = AuditLog(database), gateway, purchases, sync
        self._claims = claims

    async def refund(self, purchase_id: str, cents: int | None, who: Who, reason: str) -> Refunded:
        """Give `cents` back to the buyer (None: all that is left).

        Raises NotRefundable, StripeRefused, StoreUnavailable.
        """
        purchase = await self._purchases.get(purchase_id)
        if purchase is None:
            raise NotRefundable(f"there is no purchase {purchase_id!r}")
        claims = await self._claims.of_purchase(purchase_id)
        left = purchase.total_cents - sum(claim.amount_cents for claim in claims if claim.counts)
        amount = _amount(purchase, left, cents)
        change = Change(
            "purchase.refund", purchase_id, None, {"cents": amount, "accountId": purchase.account_id}, reason
        )
        await self._audit.write(who, change)
        key = f"{purchase_id}:refund:{len(claims) + 1}:{amount}"
        made = await self._gateway.refund_payment(purchase.payment_intent_id or "", amount, purchase_id, key)
        try:
            await self._sync.refund(made.id)
        except NotYet as error:  # it is made all the same, and whoever asked must not be told otherwise
            log.warning("refund %s of %s is booked by its events: %s", made.id, purchase_id, error)
        return Refunded(made.id, made.amount, made.status or "pending")


def _amount(purchase: Purchase, left: int, cents: int | None) -> int:
    """Return the cents to ask for. Raises NotRefundable."""
    if purchase.payment_intent_id is None or purchase.state not in ("credited", "review", "dismissed"):
        raise NotRefundable(f"purchase {purchase.id} is {purchase.state}: nothing was paid")
    if left < 1:
        raise NotRefundable(f"all of purchase {purchase.id} was refunded or disputed already")
    amount = left if cents is None else cents
    if not 1 <= amount <= left:
        most, asked = (written_usd(value * MILLICREDITS_PER_CENT) for value in (left, amount))
        raise NotRefundable(f"of purchase {purchase.id} ${most} can be given back, not ${asked}")
    return amount
