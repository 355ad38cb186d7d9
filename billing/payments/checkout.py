"""Opening a payment page: the purchase is in SQL before Stripe is asked, and asking twice opens one page."""

import logging
from typing import NamedTuple

from billing.money.amounts import written_credits
from billing.money.errors import NotYet, StoreUnavailable, StripeRefused
from billing.payments.purchase import Offer
from billing.payments.purchase_store import Purchase, PurchaseStore
from billing.payments.stripe.gateway import PLAIN_PAGE, Order, PageOptions, StripeGateway
from billing.payments.stripe.objects import CheckoutSession
from billing.payments.stripe.sync import Sync
from billing.payments.stripe_customers import StripeCustomers
from billing.storage.database import now_ms

log = logging.getLogger("tollkeeper.stripe")

ATTEMPTS = 3
LONGEST_WAIT_MS = 30_000


class CheckoutTerms(NamedTuple):
    """Terms that every payment page has in common. `reuse_ms`: for how long a second click gets the same page."""

    livemode: bool
    success_url: str
    cancel_url: str
    automatic_tax: bool
    reuse_ms: int
    hourly_limit: int
    options: PageOptions = PLAIN_PAGE


class Checkout:
    """The way to a payment page. Raises StoreUnavailable, StripeRefused, TooManyCheckouts, AccountNotFound, NotYet."""

    def __init__(
        self,
        purchases: PurchaseStore,
        customers: StripeCustomers,
        gateway: StripeGateway,
        sync: Sync,
        terms: CheckoutTerms,
    ) -> None:
        """`terms` of every page opened here."""
        self._purchases, self._customers, self._gateway, self._sync, self._terms = (
            purchases,
            customers,
            gateway,
            sync,
            terms,
        )

    async def open(self, account_id: str, name: str, offer: Offer, *, save_method: bool = False) -> Purchase:
        """Return a purchase with the URL of a page on which it can be paid now."""
        terms = self._terms
        for _ in range(ATTEMPTS):
            purchase = await self._purchases.begin(
                account_id,
                offer,
                livemode=terms.livemode,
                save_method=save_method,
                reuse_ms=terms.reuse_ms,
                hourly_limit=terms.hourly_limit,
            )
            if purchase.session_id is None:
                return await self._ask(purchase, name)
            session = await self._gateway.session(purchase.session_id)
            if session is None:
                await self._purchases.give_up(purchase.id, "failed", "Stripe has no such session")
            elif session.status == "open":
                return purchase
            else:
                # paid or expired a moment ago, and we had not heard: now we have, and the next round begins anew
                await self._sync.session(purchase.session_id)
        raise NotYet("the last payment page is still being settled")

    async def customer(self, purchase: Purchase, name: str) -> str:
        """Return the Stripe customer of a purchase's account, made at the first one.

        Stripe keeps what went wrong under a key for a day: then a key of the purchase is the way on, and the next
        purchase has another. At worst a customer is left over that nothing is charged to.
        """
        account_id = purchase.account_id
        buyer = await self._customers.find(account_id)
        if buyer is not None:
            return buyer.customer_id
        try:
            made = await self._gateway.create_customer(account_id, name, f"customer:{account_id}")
        except (StoreUnavailable, StripeRefused) as failed:
            if not failed.kept:
                raise
            log.warning("the customer of %s is asked for by another key: Stripe keeps %s", account_id, failed)
            made = await self._gateway.create_customer(
                account_id, name, f"customer:{account_id}:{purchase.idempotency_key}"
            )
        return await self._customers.insert(account_id, made)

    async def _ask(self, purchase: Purchase, name: str) -> Purchase:
        try:
            customer_id = purchase.customer_id or await self.customer(purchase, name)
            purchase = await self._purchases.assign_customer(purchase.id, customer_id)
            try:
                session = await self._create(purchase)
            except StripeRefused as refused:
                if refused.code != "resource_missing":
                    raise
                purchase = await self._with_new_customer(purchase, name)
                session = await self._create(purchase)
        except StoreUnavailable as away:
            # Stripe keeps the result of a key, its own failures too: another key is the way on, at once where it says
            # so, else after a while. Should a page exist for this one, nobody has its address; should it be paid all
            # the same, it is credited.
            waited = now_ms() - purchase.created_at > LONGEST_WAIT_MS
            if away.store == "stripe" and (away.kept or waited):
                await self._purchases.give_up(purchase.id, "failed", "Stripe did not answer")
            raise
        except StripeRefused as refused:
            # the next click begins anew instead of meeting the same refusal
            await self._purchases.give_up(purchase.id, "failed", str(refused))
            raise
        return await self._purchases.record_session(purchase.id, session.id, session.url or "")

    async def _with_new_customer(self, refused: Purchase, name: str) -> Purchase:
        """Give the account another customer (ours was deleted at Stripe, its saved card is gone); ask by another key.

        Stripe keeps the refusal under the old key, and refuses that key with other parameters. One click must not open
        two pages that both can be paid, so the row's key and customer move together, in one transaction, and only away
        from a pair that was refused: no page exists under it, and none ever will, because a deleted customer does not
        come back. Where a process can die:

        - before the new customer is made: the row still has the refused pair. Stripe refuses it again, and we are here
        again.
        - before the account or the row knows the new customer: the same, and the key made of the refused one gives the
        same customer.
        - before Stripe is asked for the page, or before its answer is kept: the row has the new pair. A retry asks with
        it and gets the
          one page of that key.

        Two clicks at once meet here with the same refused pair: the first moves the row, the second finds it moved and
        asks as it stands.
        """
        customer_id = await self._gateway.create_customer(
            refused.account_id, name, f"customer:{refused.idempotency_key}"
        )
        await self._customers.replace(refused.account_id, customer_id)
        return await self._purchases.reassign_customer(refused, customer_id)

    async def _create(self, purchase: Purchase) -> CheckoutSession:
        terms = self._terms
        return await self._gateway.create_session(
            order_of(purchase, purchase.customer_id),
            success_url=terms.success_url,
            cancel_url=terms.cancel_url,
            save_method=purchase.save_method,
            tax=terms.automatic_tax,
            options=terms.options,
        )


def order_of(purchase: Purchase, customer_id: str) -> Order:
    """Return what Stripe is asked for; the same purchase always asks for the same."""
    title = f"{written_credits(purchase.paid_millicredits + purchase.bonus_millicredits)} credits"
    return Order(purchase.id, purchase.idempotency_key, customer_id, purchase.currency, purchase.price_cents, title)
