"""Buying credits: payment pages, purchases and their receipts.

The client names a package, or an amount within our bounds: credits, prices and the pages to come back to are ours.
"""

import logging
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from billing.ledger.accounts import Accounts
from billing.money.errors import NotYet, StoreUnavailable, StripeRefused, TooManyCheckouts
from billing.payments.purchase import Offer
from billing.payments.purchase_store import Purchase
from proxy.customer_api.callers import authenticate
from proxy.customer_api.credits.amounts import offer_for_usd
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.payment_pages import (
    PURCHASES_OFF,
    invoice_url,
    no_page,
    open_payment_page,
    open_saved_cards,
    receipt_url,
)
from proxy.customer_api.rows import purchase_row
from proxy.gateway.authenticate import Authenticator
from proxy.web.http import json_body, json_handler, json_response
from proxy.web.query import page_limit, read_cursor, write_cursor
from proxy.web.rejections import forbidden, invalid, not_found, too_many, unavailable

log = logging.getLogger("tollkeeper.stripe")


class CheckoutRequest(msgspec.Struct, rename="camel", frozen=True):
    """Body of a purchase: a package, or else an amount of dollars. What it brings is ours to say, and ignored here."""

    package_code: str | None = None
    usd: str | None = None
    save_payment_method: bool = False


@dataclass(frozen=True, slots=True)
class CheckoutApi:
    """The handlers and what they need."""

    money: MoneyIn
    authenticator: Authenticator
    accounts: Accounts

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [
            Route("/api/billing/checkout", json_handler(self._checkout), methods=["POST"]),
            Route("/api/billing/purchases", json_handler(self._purchases)),
            Route("/api/billing/purchases/{purchase_id}", json_handler(self._purchase)),
            Route("/api/billing/purchases/{purchase_id}/receipt", json_handler(self._receipt)),
            Route("/api/billing/purchases/{purchase_id}/invoice", json_handler(self._invoice)),
            Route("/api/billing/portal", json_handler(self._portal), methods=["POST"]),
        ]

    async def _checkout(self, request: Request) -> Response:
        key = await authenticate(self.authenticator, request, tokens="buyers")
        asked = await json_body(request, CheckoutRequest)
        if not self.money.settings.billing.purchase_enabled:
            raise unavailable(PURCHASES_OFF, "purchases_disabled", 60_000)
        offer = self._offer(asked)
        self._require_stripe()
        try:
            purchase = await open_payment_page(
                self.money, self.accounts, key.account_id, offer, save_method=asked.save_payment_method
            )
        except TooManyCheckouts:
            raise too_many(
                "Too many payment pages were opened for this account. Try again in an hour.",
                "too_many_checkouts",
                3_600_000,
            ) from None
        except NotYet:
            raise unavailable(
                "The last payment page is still being settled. Try again in a moment.", "checkout_settling", 5_000
            ) from None
        except (StripeRefused, StoreUnavailable) as failed:
            raise unavailable(no_page(failed), "checkout_failed") from None
        return json_response({**purchase_row(purchase), "url": purchase.url}, 201)

    def _offer(self, asked: CheckoutRequest) -> Offer:
        """Return what is to be bought, as it is sold now. Raises Rejection."""
        if asked.package_code is None:
            if asked.usd is None:
                raise invalid("Name a `packageCode` or an amount in `usd`.", "packageCode")
            return offer_for_usd(self.money.settings.purchases, asked.usd)
        offer = self.money.offer(asked.package_code)
        if offer is None:
            raise invalid(
                "There is no package of that code; `packages` of GET /api/billing/me lists them.", "packageCode"
            )
        return offer

    async def _purchases(self, request: Request) -> Response:
        key = await authenticate(self.authenticator, request)
        limit = page_limit(request)
        rows = await self.money.purchases.of_account(
            key.account_id, limit + 1, read_cursor(request.query_params.get("cursor"))
        )
        following = write_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [purchase_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _purchase(self, request: Request) -> Response:
        """One purchase, by its own id or its session's.

        Where buyers land, so it looks at Stripe when nothing came yet.
        """
        purchase = await self._own(request)
        if purchase.state in ("open", "processing") and purchase.session_id is not None and self.money.keys is not None:
            try:
                await (await self.money.parts()).sync.session(purchase.session_id)
            except (NotYet, StoreUnavailable, StripeRefused) as error:
                log.warning("purchase %s is shown as we knew it: %s", purchase.id, error)
            purchase = await self._own(request)
        return json_response(purchase_row(purchase))

    async def _receipt(self, request: Request) -> Response:
        url = await receipt_url(self.money, await self._own(request))
        return RedirectResponse(url, 303, {"cache-control": "no-store"})

    async def _invoice(self, request: Request) -> Response:
        url = await invoice_url(self.money, await self._own(request))
        return RedirectResponse(url, 303, {"cache-control": "no-store"})

    async def _portal(self, request: Request) -> Response:
        """Open saved cards: the caller's own, and back to our own page; neither comes from the request."""
        key = await authenticate(self.authenticator, request)
        if not key.acted_for:
            raise forbidden(
                "An API key cannot reach the saved cards: manage them on the Credits page (/credits).",
                "credits_page_only",
            )
        self._require_stripe()
        buyer = await self.money.customers.find(key.account_id)
        if buyer is None:
            raise not_found("This account has not bought anything yet.", "no_customer")
        try:
            url = await open_saved_cards(
                self.money, key.account_id, buyer.customer_id, self.money.settings.stripe.cancel_url
            )
        except (StripeRefused, StoreUnavailable) as failed:
            raise unavailable(no_page(failed), "portal_failed") from None
        return json_response({"url": url}, 201)

    async def _own(self, request: Request) -> Purchase:
        """Purchase of the path, if it is the caller's; of anybody else's it is not said that it exists."""
        key = await authenticate(self.authenticator, request)
        wanted = request.path_params["purchase_id"]
        store = self.money.purchases
        purchase = await (store.of_session(wanted) if wanted.startswith("cs_") else store.get(wanted))
        if purchase is None or purchase.account_id != key.account_id:
            raise not_found("There is no such purchase of yours.", "purchase_not_found")
        return purchase

    def _require_stripe(self) -> None:
        """Raise Rejection (503) where Stripe is not configured."""
        if self.money.keys is None:
            raise unavailable(
                "Credits cannot be bought here: no payment provider is configured.", "purchases_unavailable", 60_000
            )
