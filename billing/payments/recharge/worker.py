"""Automatic recharges: record crossings, begin payments, ask Stripe, conclude. Each step may be repeated."""

import logging
from collections.abc import Callable

from billing.ledger.accounts import Accounts
from billing.money.errors import BillingError, NotYet, StoreUnavailable, StripeRefused
from billing.payments.checkout import Checkout, order_of
from billing.payments.purchase import Offer
from billing.payments.purchase_store import NEVER_HEARD, Purchase, PurchaseStore
from billing.payments.recharge.rows import Recharge
from billing.payments.recharge.rules import NOT_ASKED, OVER_CEILING, REFUSED, Recharges
from billing.payments.recharge.terms import UNBOUNDED, RechargeBounds
from billing.payments.stripe.gateway import SAME_KEY, Declined, DueTax, StripeGateway
from billing.payments.stripe.objects import NEEDS_BUYER
from billing.payments.stripe.sync import Sync
from billing.storage.database import now_ms

log = logging.getLogger("tollkeeper.recharge")

KEY_KEPT_MS = 23 * 3_600_000
"""Stripe may forget an idempotency key after a day; from then on the sweeper looks instead of asking again."""


class RechargeWorker:
    """One step does all that is due. Raises StoreUnavailable."""

    def __init__(
        self,
        recharges: Recharges,
        purchases: PurchaseStore,
        accounts: Accounts,
        gateway: StripeGateway,
        sync: Sync,
        checkout: Checkout,
        tax_code: str | None = None,
    ) -> None:
        """`checkout` opens the page on which a buyer pays what the saved card could not.

        `tax_code` of what is sold ("": the account's own); None: no tax comes on top.
        """
        self._recharges, self._purchases, self._accounts = recharges, purchases, accounts
        self._gateway, self._sync, self._checkout, self._tax_code = gateway, sync, checkout, tax_code

    async def step(
        self,
        offer_of: Callable[[str], Offer | None],
        *,
        enabled: bool,
        livemode: bool,
        bounds: RechargeBounds = UNBOUNDED,
    ) -> int:
        """Do what is due. `enabled` False: nothing new is asked, no page opened; what is in flight is concluded."""
        done = await self._recharges.watch()
        if enabled:
            for account_id in await self._recharges.due():
                row = await self._recharges.get(account_id)
                if row is not None:
                    offer = offer_of(row.package_code)
                    done += await self._recharges.begin(account_id, offer, livemode=livemode, bounds=bounds) is not None
        away = await self._ask_stripe(bounds) if enabled else None
        for row, purchase in await self._recharges.concluded():
            await self._conclude(row, purchase, may_open_page=enabled)
            done += 1
        if away is not None:
            raise away
        return done

    async def _ask_stripe(self, bounds: RechargeBounds) -> StoreUnavailable | None:
        """Pay what was begun; return why Stripe could not be asked for some of it."""
        now, away = now_ms(), None
        for purchase in await self._purchases.waiting(("created",), before_ms=now, after_ms=now - KEY_KEPT_MS):
            if purchase.origin == "auto":
                away = await self._try(purchase, bounds) or away
        return away

    async def _try(self, purchase: Purchase, bounds: RechargeBounds) -> StoreUnavailable | None:
        """Pay; one payment that Stripe does not answer must not hold up the others.

        The sweeper ends it after 15 minutes.
        """
        try:
            await self._pay(purchase, bounds)
        except StoreUnavailable as error:
            if error.store == "sql":
                raise
            return error
        return None

    async def _pay(self, purchase: Purchase, bounds: RechargeBounds) -> None:
        try:
            tax = await self._tax(purchase)
            if tax is not None and not await self._recharges.fits_ceiling(purchase.account_id, bounds):
                await self._purchases.give_up(purchase.id, "failed", OVER_CEILING)
                return
            answer = await self._gateway.charge_saved_method(
                order_of(purchase, purchase.customer_id), purchase.payment_method_id, tax
            )
        except StoreUnavailable:
            raise
        except StripeRefused as refused:
            if refused.code == SAME_KEY:
                # an earlier version asked for this payment in other words: what became of it is for the sweeper to find
                raise StoreUnavailable("stripe", str(refused), in_doubt=True) from None
            # an answer of Stripe's, no fault of ours; its words are not for customers
            # the refusal is Stripe's answer, not a fault with a traceback
            log.error("automatic recharge of %s: Stripe refuses: %s", purchase.account_id, refused)  # noqa: TRY400
            await self._purchases.give_up(purchase.id, "failed", REFUSED + refused.code)
            return
        intent_id = answer.intent_id if isinstance(answer, Declined) else answer.id
        if intent_id:
            await self._purchases.record_intent(purchase.id, intent_id)
        if isinstance(answer, Declined):
            await self._purchases.give_up(purchase.id, "failed", answer.code)
            return
        if answer.status == "requires_action":
            await self._purchases.give_up(purchase.id, "failed", NEEDS_BUYER)
            return
        try:
            await self._sync.intent(answer.id)
        except NotYet as error:
            log.warning("automatic recharge of %s is settled by its events: %s", purchase.account_id, error)

    async def _tax(self, purchase: Purchase) -> DueTax | None:
        """Return the tax on top of a payment, as it is asked for with each time; None: there is none.

        Stripe is asked with a key of the purchase, and the answer is kept before the payment: dying in between asks for
        the same again. The customer's address and tax id are those that the payment page took. Raises StripeRefused
        where Stripe does not know where the customer is: then they pay on a page, which asks.
        """
        if self._tax_code is None and not purchase.tax_calculation:
            return None
        if not purchase.tax_calculation:
            order = order_of(purchase, purchase.customer_id)
            made = await self._gateway.calculate_tax(order, self._tax_code or "")
            purchase = await self._purchases.record_tax(purchase.id, made.calculation_id, made.cents)
        return DueTax(purchase.tax_calculation, purchase.due_tax_cents)

    async def _conclude(self, row: Recharge, purchase: Purchase, *, may_open_page: bool) -> None:
        if purchase.state == "credited":
            await self._recharges.credited(row, purchase)
            return
        if purchase.state in ("review", "dismissed"):
            log.error(
                "automatic recharge of %s: %s waits for a person: %s", row.account_id, purchase.id, purchase.problem
            )
            await self._recharges.reviewed(row)
            return
        code, link = purchase.problem or "failed", ""
        if code == NEVER_HEARD:
            code = NOT_ASKED
        if (code == NEEDS_BUYER or code.startswith(REFUSED)) and may_open_page:
            link = await self._link(purchase)
        log.warning("automatic recharge of %s: %s", row.account_id, code)
        await self._recharges.failed(row, code, link)

    async def _link(self, purchase: Purchase) -> str:
        """Return a page on which the buyer pays the same package themselves; "" when Stripe opens none now."""
        account = await self._accounts.get(purchase.account_id)
        offer = Offer(
            purchase.package_code,
            purchase.currency,
            purchase.price_cents,
            purchase.paid_millicredits,  # type: ignore[arg-type]
            purchase.bonus_millicredits,  # type: ignore[arg-type]
            purchase.bonus_days,
        )
        try:
            page = await self._checkout.open(purchase.account_id, account.name, offer, save_method=True)
        except StoreUnavailable:
            raise
        except BillingError as error:
            log.warning("no page for %s: %s", purchase.account_id, error)
            return ""
        return page.url
