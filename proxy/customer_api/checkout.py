"""Buying credits: payment pages, purchases and their receipts, and Stripe's webhook.

The client names a package and nothing else: price, credits and the pages to come back to are ours.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from billing.ledger.accounts import Accounts
from billing.money.errors import NotYet, StoreUnavailable, StripeRefused, TooManyCheckouts
from billing.payments.purchase_store import Purchase
from billing.payments.stripe.event_types import API_VERSION, KINDS
from billing.payments.stripe.inbox import read_event
from billing.payments.stripe.signatures import BadSignature, verify
from proxy.customer_api.money_in import MoneyIn, StripeParts
from proxy.customer_api.rows import purchase_row
from proxy.gateway.authenticate import Authenticator
from proxy.observability.metrics import OTHER_TYPES
from proxy.web.auth_failures import Failures
from proxy.web.http import (
    TOO_LARGE,
    answering,
    capped_body,
    json_body,
    json_response,
    page_cursor,
    page_cursor_of,
    page_limit,
)
from proxy.web.origin import asked_by
from proxy.web.rejections import Rejection, forbidden, invalid, not_found, too_many, unavailable

log = logging.getLogger("tollkeeper.stripe")

PROBE_TYPE = "tollkeeper.preflight"
"""Of the event by which `tollkeeper preflight` learns that this endpoint is reached and verifies.

Stripe has no such type.
"""
UNSIGNED_PROBE = b'{"tollkeeper":"preflight"}'
"""Its unsigned counterpart is refused like any other, but is nobody's attack: it is not counted as a failure."""
OFF = "Purchases are switched off for the moment. Credits you have bought stay yours; try again later."


class CheckoutRequest(msgspec.Struct, rename="camel", frozen=True):
    """What may be said about a purchase; anything else in the body (an amount, say) is ignored."""

    package_code: str
    save_payment_method: bool = False


@dataclass(frozen=True, slots=True)
class CheckoutApi:
    """The handlers and what they need."""

    money: MoneyIn
    authenticator: Authenticator
    accounts: Accounts
    failures: Failures = field(default_factory=Failures)

    def routes(self) -> list[Route]:
        """What to mount."""
        return [
            Route("/api/billing/checkout", answering(self._checkout), methods=["POST"]),
            Route("/api/billing/purchases", answering(self._purchases)),
            Route("/api/billing/purchases/{purchase_id}", answering(self._purchase)),
            Route("/api/billing/purchases/{purchase_id}/receipt", answering(self._receipt)),
            Route("/api/billing/portal", answering(self._portal), methods=["POST"]),
            Route("/webhooks/stripe", answering(self._webhook), methods=["POST"]),
        ]

    async def _checkout(self, request: Request) -> Response:
        key = await self.authenticator.authenticate(request.scope["headers"], request.scope["client"])
        asked = await json_body(request, CheckoutRequest)
        if not self.money.settings.billing.purchase_enabled:
            raise unavailable(OFF, "purchases_disabled", 60_000)
        offer = self.money.offer(asked.package_code)
        if offer is None:
            raise invalid(
                "There is no package of that code; `packages` of GET /api/billing/me lists them.", "packageCode"
            )
        parts = await self._stripe()
        account = await self.accounts.get(key.account_id)
        try:
            purchase = await parts.checkout.open(
                key.account_id, account["name"], offer, save_method=asked.save_payment_method
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
        except StripeRefused as refused:
            log.error("no payment page for %s: %s", key.account_id, refused)
            raise unavailable(
                "The payment provider does not open a payment page now. Nothing was charged.", "checkout_failed"
            ) from None
        return json_response({**purchase_row(purchase), "url": purchase.url}, 201)

    async def _purchases(self, request: Request) -> Response:
        key = await self.authenticator.authenticate(request.scope["headers"], request.scope["client"])
        limit = page_limit(request)
        rows = await self.money.sales.of_account(
            key.account_id, limit + 1, page_cursor(request.query_params.get("cursor"))
        )
        following = page_cursor_of(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [purchase_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _purchase(self, request: Request) -> Response:
        """One purchase, by its own id or its session's.

        Where buyers land, so it looks at Stripe when nothing came yet.
        """
        purchase = await self._own(request)
        if purchase.state in ("open", "processing") and purchase.session_id is not None and self.money.keys is not None:
            try:
                await (await self._stripe()).sync.session(purchase.session_id)
            except (NotYet, StoreUnavailable, StripeRefused) as error:
                log.warning("purchase %s is shown as we knew it: %s", purchase.id, error)
            purchase = await self._own(request)
        return json_response(purchase_row(purchase))

    async def _receipt(self, request: Request) -> Response:
        return RedirectResponse(
            await receipt_url(self.money, await self._own(request)), 303, {"cache-control": "no-store"}
        )

    async def _portal(self, request: Request) -> Response:
        """Always the caller's own Stripe customer, and always back to our own page: neither comes from the request."""
        key = await self.authenticator.authenticate(request.scope["headers"], request.scope["client"])
        if not key.acted_for:
            raise forbidden(
                "An API key cannot reach the saved cards: manage them on the Credits page (/credits).",
                "credits_page_only",
            )
        parts = await self._stripe()
        buyer = await self.money.buyers.find(key.account_id)
        if buyer is None:
            raise not_found("This account has not bought anything yet.", "no_customer")
        try:
            url = await parts.gateway.portal_url(buyer.customer_id, self.money.settings.stripe.cancel_url)
        except StripeRefused as refused:
            log.error("no portal for %s: %s", key.account_id, refused)
            raise unavailable("The payment provider does not open its page now.", "portal_failed") from None
        return json_response({"url": url}, 201)

    async def _webhook(self, request: Request) -> Response:
        """Verified, committed, then 2xx. What we cannot keep is a 5xx, so that Stripe sends it again."""
        money = self.money
        if money.keys is None:
            # not a 503: anybody may post here, and it would count as a failing of ours
            raise not_found("Stripe is not configured here.", "stripe_not_configured")
        try:
            body = await capped_body(request, money.settings.advanced.max_webhook_bytes)
        except Rejection as rejection:
            if rejection.status == TOO_LARGE:
                self._failed("too_large")
            raise
        headers = request.headers.getlist("stripe-signature")
        secrets = [secret.reveal() for secret in money.keys.webhook_secrets]
        try:
            verify(body, headers[0] if len(headers) == 1 else "", secrets, int(time.time()))
        except BadSignature:
            if body != UNSIGNED_PROBE:
                self._failed("signature")
                self._limit_failures(asked_by(request.scope).address)
            raise invalid("The signature does not verify.", code="bad_signature") from None
        try:
            return await self._keep(body)
        except (Rejection, StoreUnavailable, asyncio.CancelledError):
            raise
        except BaseException:
            self._failed("internal")  # Stripe gets a 500 and sends it again
            raise

    async def _keep(self, body: bytes) -> Response:
        """Commit an event whose signature verified. Raises Rejection, and StoreUnavailable when it is not kept."""
        money, conf = self.money, self.money.settings.stripe
        try:
            event = read_event(body)
        except ValueError:
            self._failed("unreadable")
            raise invalid("The body is not an event.", code="bad_event") from None
        if event.livemode != conf.livemode:
            self._failed("livemode")
            log.error(
                "event %s (%s) has livemode %s here, where livemode is %s",
                event.id,
                event.type,
                event.livemode,
                conf.livemode,
            )
            raise invalid("This endpoint takes events of the other mode.", code="wrong_livemode")
        if event.type == PROBE_TYPE:
            return json_response({"received": True, "probe": True})  # verified, which is all it asks; nothing is kept
        if event.api_version not in (API_VERSION, None, ""):  # thin events have none
            money.metrics.count(money.metrics.event_versions)
            log.warning(
                "event %s (%s) has API version %s, not %s", event.id, event.type, event.api_version, API_VERSION
            )
        try:
            await money.inbox.store(event, body, "webhook")
        except StoreUnavailable:
            self._failed("store")
            raise
        # the label comes from our own table: nobody can invent series
        money.metrics.count(money.metrics.webhook_events, event.type if event.type in KINDS else OTHER_TYPES)
        return json_response({"received": True})

    async def _own(self, request: Request) -> Purchase:
        """The purchase of the path, if it is the caller's; of anybody else's it is not said that it exists."""
        key = await self.authenticator.authenticate(request.scope["headers"], request.scope["client"])
        wanted = request.path_params["purchase_id"]
        sales = self.money.sales
        purchase = await (sales.of_session(wanted) if wanted.startswith("cs_") else sales.get(wanted))
        if purchase is None or purchase.account_id != key.account_id:
            raise not_found("There is no such purchase of yours.", "purchase_not_found")
        return purchase

    async def _stripe(self) -> StripeParts:
        if self.money.keys is None:
            raise unavailable(
                "Credits cannot be bought here: no payment provider is configured.", "purchases_unavailable", 60_000
            )
        return await self.money.parts()

    def _limit_failures(self, address: str) -> None:
        """Raises Rejection (429) when too many signatures from there did not verify.

        One that does is never asked about.
        """
        self.failures.check("webhook", address)
        self.failures.note("webhook", address)

    def _failed(self, reason: str) -> None:
        self.money.metrics.count(self.money.metrics.webhook_failures, reason)


async def receipt_url(money: MoneyIn, purchase: Purchase) -> str:
    """Where Stripe shows the receipt: asked for anew, because links age and show what was refunded since.

    Raises Rejection.
    """
    url = purchase.receipt_url
    if purchase.charge_id and money.keys is not None:
        try:
            charge = await (await money.parts()).gateway.charge(purchase.charge_id)
            url = (charge.receipt_url if charge is not None else None) or url
        except (StoreUnavailable, StripeRefused) as error:
            log.warning("the receipt of %s is the one we kept: %s", purchase.id, error)
    if not url.startswith(("https://", "http://")):
        raise not_found("There is no receipt for this purchase yet.", "receipt_not_found")
    return url
