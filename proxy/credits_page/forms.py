"""Forms of the Credits page: buying, automatic recharge, the warning, the saved card. Staff cannot send them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import Accounts
from billing.money.amounts import MoneyError, decimal_of, parse_credits
from billing.money.errors import StoreUnavailable, StripeRefused, TooManyCheckouts
from billing.payments.purchase import Offer
from billing.payments.recharge.rows import RechargeSettings
from billing.payments.recharge.terms import Terms
from proxy.credits_page.read_amount import GROUPED, read_amount
from proxy.credits_page.responses import PageResponses
from proxy.credits_page.sign_in import Page, Visitor
from proxy.customer_api.credits.amounts import offer_for_usd
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.payment_pages import (
    PURCHASES_OFF,
    no_page,
    open_payment_page,
    open_saved_cards,
    remove_card,
)
from proxy.customer_api.recharge import save_recharge
from proxy.web.rejections import invalid, not_found

MOST_WARNING = 10**15
"""Millicredits: as much as the API takes."""
SHOWN = re.compile(r"(.+):([0-9]{1,12}):([0-9]{1,15})(:tax)?")


@dataclass(frozen=True, slots=True)
class CreditsForms:
    """The handlers and what they need."""

    money: MoneyIn
    accounts: Accounts
    public_url: str
    responses: PageResponses

    def handlers(self) -> list[tuple[str, Page]]:
        """Path of each form, and its handler."""
        return [
            ("/credits/buy", self._buy),
            ("/credits/recharge", self._recharge),
            ("/credits/cards", self._cards),
            ("/credits/cards/remove", self._remove_card),
            ("/credits/warning", self._warning),
        ]

    async def _buy(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        if not self.money.settings.billing.purchase_enabled:
            return self.responses.message("Purchases are off", PURCHASES_OFF, 503, back=True)
        offer = self._offer(form)
        if offer is None or self.money.keys is None:
            raise invalid("There is no such package to buy here.", "package")
        try:
            purchase = await open_payment_page(
                self.money, self.accounts, visitor.account_id, offer, save_method=form.get("save") == "yes"
            )
        except TooManyCheckouts:
            text = "Too many were opened for this account. Try again in an hour."
            return self.responses.message("Too many payment pages", text, 429, back=True)
        except (StripeRefused, StoreUnavailable) as failed:
            return self.responses.message("Try again shortly", no_page(failed), 503, back=True)
        return self.responses.redirect(purchase.url)

    def _offer(self, form: FormData) -> Offer | None:
        """Return the package, or the credits for the amount, that a form names. Raises Rejection."""
        package, amount = str(form.get("package", "")), str(form.get("usd", "")).strip()
        if package or not amount:
            return self.money.offer(package)
        plain = amount.replace(",", "") if GROUPED.fullmatch(amount) else amount
        return offer_for_usd(self.money.settings.purchases, plain)

    async def _recharge(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        enabled, consent = form.get("enabled") == "yes", form.get("consent") == "yes"
        if enabled and not consent:
            raise invalid("Tick the box that allows us to charge your saved card.", "consent")
        typed = [str(form.get(name, "")) for name in ("threshold", "ceiling")]
        threshold = read_amount(typed[0], parse_credits, "threshold", "threshold") if enabled else 0
        ceiling = read_amount(typed[1], _read_cents, "monthly limit", "ceiling") if enabled else 0
        code = str(form.get("package", ""))
        wish, shown = RechargeSettings(enabled, threshold, code, ceiling), _read_shown(code, form.getlist("shown"))
        await save_recharge(self.money, visitor.account_id, wish, visitor.who(request), consent=consent, shown=shown)
        return self.responses.redirect(f"/credits?done=recharge-{'on' if enabled else 'off'}")

    async def _cards(self, request: Request, visitor: Visitor) -> Response:
        """To Stripe's own page, where saved cards are looked at, replaced and removed."""
        del request
        buyer = await self.money.customers.find(visitor.account_id)
        if buyer is None or self.money.keys is None:
            raise not_found("No card is saved yet.", "no_customer")
        try:
            url = await open_saved_cards(
                self.money, visitor.account_id, buyer.customer_id, f"{self.public_url.rstrip('/')}/credits"
            )
        except (StripeRefused, StoreUnavailable) as failed:
            return self.responses.message("Try again shortly", no_page(failed), 503, back=True)
        return self.responses.redirect(url)

    async def _remove_card(self, request: Request, visitor: Visitor) -> Response:
        """Have Stripe forget the saved card; automatic recharge, which could charge nothing, goes off with it."""
        try:
            await remove_card(self.money, visitor.account_id, visitor.who(request))
        except (StripeRefused, StoreUnavailable) as failed:
            return self.responses.message("Try again shortly", no_page(failed), 503, back=True)
        return self.responses.redirect("/credits?done=card-removed#recharge")

    async def _warning(self, request: Request, visitor: Visitor) -> Response:
        """Set the balance below which the operator's app is told, or leave it to the operator."""
        typed = str((await request.form()).get("warning", "")).strip()
        threshold = read_amount(typed, parse_credits, "balance", "warning") if typed else None
        if threshold is not None and not 0 <= threshold <= MOST_WARNING:
            raise invalid("The balance must be 0 or above.", "warning")
        await self.money.low_balance.set_threshold(visitor.account_id, threshold, visitor.who(request))
        return self.responses.redirect("/credits?done=warning#warning")


def _read_shown(code: str, every: Sequence[object]) -> Terms | None:
    """Return the price and the credits at which the form showed a package; None when it did not say."""
    shown = [found for text in every if (found := SHOWN.fullmatch(str(text))) is not None and found[1] == code]
    return Terms(int(shown[0][2]), int(shown[0][3]), shown[0][4] is not None) if shown else None


def _read_cents(text: str) -> int:
    cents = decimal_of(text, "dollars") * 100
    if cents.denominator != 1 or not 0 < cents < 10**9:
        raise MoneyError("not whole cents")
    return cents.numerator
