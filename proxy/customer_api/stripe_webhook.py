"""Stripe's webhook: deliveries are verified and committed to the inbox; the inbox's worker handles them."""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.money.errors import StoreUnavailable
from billing.payments.stripe.event_types import API_VERSION, KINDS
from billing.payments.stripe.inbox import read_event
from billing.payments.stripe.signatures import BadSignature, WrongTime, verify
from proxy.customer_api.money_in import MoneyIn
from proxy.observability.money_in_metrics import OTHER_TYPES
from proxy.web.auth_failures import AuthFailures
from proxy.web.http import TOO_LARGE, capped_body, json_handler, json_response
from proxy.web.origin import origin_of
from proxy.web.rejections import Rejection, invalid, not_found

log = logging.getLogger("tollkeeper.stripe")

PROBE_TYPE = "tollkeeper.preflight"
"""Type of the event by which `tollkeeper preflight` learns that this endpoint is reached and verifies.

Stripe has no such type.
"""
UNSIGNED_PROBE = b'{"tollkeeper":"preflight"}'
"""Its unsigned counterpart is refused like any other, but is nobody's attack: it is not counted as a failure."""


@dataclass(frozen=True, slots=True)
class StripeWebhook:
    """The handler and what it needs."""

    money: MoneyIn
    failures: AuthFailures = field(default_factory=AuthFailures)

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [Route("/webhooks/stripe", json_handler(self._deliver), methods=["POST"])]

    async def _deliver(self, request: Request) -> Response:
        """Verify, commit, then answer 2xx. An event that cannot be kept is a 5xx, so that Stripe sends it again."""
        body = await self._signed_body(request)
        try:
            return await self._keep(body)
        except (Rejection, StoreUnavailable, asyncio.CancelledError):
            raise
        except BaseException:
            self._count_failure("internal")  # Stripe gets a 500 and sends it again
            raise

    async def _signed_body(self, request: Request) -> bytes:
        """Read the body, when one of our secrets signed it. Raises Rejection."""
        keys = self.money.keys
        if keys is None:
            # not a 503: anybody may post here, and it would count as a failing of ours
            raise not_found("Stripe is not configured here.", "stripe_not_configured")
        try:
            body = await capped_body(request, self.money.settings.advanced.max_webhook_bytes)
        except Rejection as rejection:
            if rejection.status == TOO_LARGE:
                self._count_failure("too_large")
            raise
        headers = request.headers.getlist("stripe-signature")
        signature = headers[0] if len(headers) == 1 else ""
        secrets = [secret.reveal() for secret in keys.webhook_secrets]
        try:
            verify(body, signature, secrets, int(time.time()))
        except WrongTime as error:
            self._count_failure("clock")
            log.error(  # noqa: TRY400 - nothing failed here
                "a delivery that our secret signed is refused: by this machine's clock it was signed %d seconds ago "
                "(compare the clocks: tollkeeper preflight)",
                error.seconds_ago,
            )
            said = f"The signature verifies, but by this machine's clock it was made {error.seconds_ago} seconds ago."
            raise invalid(said, code="signature_time") from None
        except BadSignature:
            if body != UNSIGNED_PROBE:
                self._count_failure("signature")
                self._limit_forgeries(origin_of(request.scope).address)
            raise invalid("The signature does not verify.", code="bad_signature") from None
        return body

    async def _keep(self, body: bytes) -> Response:
        """Commit an event whose signature verified. Raises Rejection, and StoreUnavailable when it is not kept."""
        money, conf = self.money, self.money.settings.stripe
        try:
            event = read_event(body)
        except ValueError:
            self._count_failure("unreadable")
            raise invalid("The body is not an event.", code="bad_event") from None
        if event.livemode != conf.livemode:
            self._count_failure("livemode")
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
            money.metrics.count(money.metrics.money_in.event_versions)
            log.warning(
                "event %s (%s) has API version %s, not %s", event.id, event.type, event.api_version, API_VERSION
            )
        try:
            await money.inbox.store(event, body, "webhook")
        except StoreUnavailable:
            self._count_failure("store")
            raise
        # the label comes from our own table: nobody can invent series
        money.metrics.count(money.metrics.money_in.webhook_events, event.type if event.type in KINDS else OTHER_TYPES)
        return json_response({"received": True})

    def _limit_forgeries(self, address: str) -> None:
        """Count one, and raise Rejection (429) when there were too many from this address.

        A delivery that verifies is never limited.
        """
        self.failures.check("webhook", address)
        self.failures.count("webhook", address)

    def _count_failure(self, reason: str) -> None:
        self.money.metrics.count(self.money.metrics.money_in.webhook_failures, reason)
