"""Forms of the Credits page: buying, automatic recharge, saved cards, keys. Staff cannot send them."""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import Accounts, KeyRules
from billing.money.amounts import MoneyError, decimal_of, millicredits, parse_credits
from billing.money.errors import KeyNotFound, StripeRefused, TooManyCheckouts
from billing.money.spend_periods import PERIODS
from billing.payments.recharge.rows import RechargeSettings
from proxy.credits_page.responses import PageResponses
from proxy.credits_page.sign_in import Page, Visitor
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.payment_pages import PURCHASES_OFF, open_payment_page, open_saved_cards
from proxy.customer_api.recharge import save_recharge
from proxy.web.rejections import invalid, not_found

GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")


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
            ("/credits/keys", self._create_key),
            ("/credits/keys/revoke", self._revoke_key),
        ]

    async def _buy(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        if not self.money.settings.billing.purchase_enabled:
            return self.responses.message("Purchases are off", PURCHASES_OFF, 503, back=True)
        offer = self.money.offer(str(form.get("package", "")))
        if offer is None or self.money.keys is None:
            raise invalid("There is no such package to buy here.")
        try:
            purchase = await open_payment_page(
                self.money, self.accounts, visitor.account_id, offer, save_method=form.get("save") == "yes"
            )
        except TooManyCheckouts:
            text = "Too many were opened for this account. Try again in an hour."
            return self.responses.message("Too many payment pages", text, 429, back=True)
        except StripeRefused:
            text = "The payment page cannot be opened now. Nothing was charged."
            return self.responses.message("Try again shortly", text, 503, back=True)
        return self.responses.redirect(purchase.url)

    async def _recharge(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        enabled, consent = form.get("enabled") == "yes", form.get("consent") == "yes"
        if enabled and not consent:
            raise invalid("Tick the box that allows us to charge your saved card.")
        threshold = _read_amount(str(form.get("threshold", "")), parse_credits, "threshold") if enabled else 0
        ceiling = _read_amount(str(form.get("ceiling", "")), _read_cents, "monthly limit") if enabled else 0
        wish = RechargeSettings(enabled, threshold, str(form.get("package", "")), ceiling)
        await save_recharge(self.money, visitor.account_id, wish, visitor.who(request), consent=consent)
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
        except StripeRefused:
            return self.responses.message(
                "Try again shortly", "The payment provider does not open its page now.", 503, back=True
            )
        return self.responses.redirect(url)

    async def _create_key(self, request: Request, visitor: Visitor) -> Response:
        form = await request.form()
        raw, period = str(form.get("limit", "")).strip(), str(form.get("period", "month"))
        limit = _read_amount(raw, parse_credits, "spend limit") if raw else None
        if limit is not None and (limit <= 0 or period not in PERIODS):
            raise invalid("The spend limit must be above 0.")
        rules = KeyRules(
            spend_limit=None if limit is None else millicredits(limit),
            spend_period=period if limit is not None else None,
        )
        _, secret = await self.accounts.create_key(visitor.account_id, rules, visitor.who(request))
        text = "This is your new key. It is shown this once: copy it now."
        content = {
            "title": "New API key",
            "text": text,
            "secret": secret,
            "back": True,
            "base_url": f"{self.public_url.rstrip('/')}/v1",
        }
        return self.responses.page("message.html", content, 201)

    async def _revoke_key(self, request: Request, visitor: Visitor) -> Response:
        key_id = str((await request.form()).get("key", ""))
        if key_id not in {row.id for row in await self.accounts.keys_of(visitor.account_id)}:
            raise not_found("There is no such key of yours.", "key_not_found")
        with contextlib.suppress(KeyNotFound):  # revoked already
            await self.accounts.revoke_key(key_id, visitor.who(request))
        return self.responses.redirect("/credits?done=revoked")


def _read_cents(text: str) -> int:
    cents = decimal_of(text, "dollars") * 100
    if cents.denominator != 1 or not 0 < cents < 10**9:
        raise MoneyError("not whole cents")
    return cents.numerator


def _read_amount(text: str, read: Callable[[str], int], name: str) -> int:
    """Read a number from a form; a comma only groups thousands: 1,000 is a thousand, 20,00 is refused.

    Raises Rejection.
    """
    plain = text.strip()
    try:
        return read(plain.replace(",", "") if GROUPED.fullmatch(plain) else plain)
    except MoneyError:
        raise invalid(f"The {name} is not a number we understand.") from None
