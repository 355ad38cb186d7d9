"""The one module that speaks to Stripe, through its own library (pinned to an API version), asynchronously.

Everything is read back as our own structs (objects.py). A call that Stripe did not answer raises
StoreUnavailable: whoever called tries again, with the same idempotency key, and Stripe does a thing once. Imported only
where Stripe is configured, because the library takes time and memory.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import stripe

from billing.money.errors import StoreUnavailable, StripeRefused
from billing.payments.stripe.event_types import API_VERSION
from billing.payments.stripe.objects import (
    ASKING_ID,
    MARK,
    OWN_ID,
    CheckoutSession,
    Dispute,
    Event,
    Intent,
    Invoice,
    PaymentError,
    Refund,
    StripeAccount,
    StripeCharge,
    TaxCalculation,
    WebhookEndpoint,
    decline_code,
)

PAGE = 100
RETRIES = 2
CALL_SECONDS = 10.0
BUSY_PAUSES = (0.5, 1.0)
"""Seconds before the second and the third try of a call that met a 429, where Stripe does not say how many."""
LONGEST_PAUSE = 3
TYPES_IN_ONE_LIST = 20
SESSION_DETAILS = ["payment_intent.latest_charge.balance_transaction"]
INTENT_DETAILS = ["latest_charge.balance_transaction"]

SAME_KEY = "idempotency_error"
"""Stripe's refusal of a key that it knows with other parameters."""
NOT_ATTACHED = "payment_method_unexpected_state"
"""Stripe's refusal to detach what is attached to nobody."""
NOT_PERMITTED = "permission_denied"
"""Our code for what a restricted key may not do."""

View = TypeVar("View")


class Declined(NamedTuple):
    """The bank said no, or wants the buyer to be there (`authentication_required`)."""

    code: str
    message: str
    intent_id: str


class Order(NamedTuple):
    """A purchase as Stripe is asked for it. `key` is its idempotency key: the same order twice is one payment."""

    purchase_id: str
    key: str
    customer_id: str
    currency: str
    cents: int
    title: str


class DueTax(NamedTuple):
    """Tax on top of an order, in cents, and Stripe's calculation of it: it books the tax of a payment that names it."""

    calculation_id: str
    cents: int


class PageOptions(NamedTuple):
    """The things that a payment page asks a buyer for and makes, beside the payment.

    `invoices`: Stripe's numbered invoice; `company`: the company's name and tax id; `address`: always the billing
    address; `tax_code` of what is sold ("": the account's own).
    """

    invoices: bool = False
    company: bool = False
    address: bool = False
    tax_code: str = ""


PLAIN_PAGE = PageOptions()


class StripeGateway:
    """The calls to Stripe. Each raises StoreUnavailable when Stripe does not answer, StripeRefused when it refuses."""

    def __init__(
        self, api_key: str, *, api_base: str, mark: str = "", timeout_seconds: int | float = CALL_SECONDS
    ) -> None:
        """`api_base`: "" is Stripe itself; a URL is a simulator. `mark`: our installation's, on all that is made."""
        self._mark = {MARK: mark} if mark else {}
        self._http = stripe.HTTPXClient(timeout=timeout_seconds)
        addresses: Any = {"base_addresses": {"api": api_base}} if api_base else {}
        self._client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            max_network_retries=RETRIES,
            http_client=self._http,
            **addresses,
        )
        self._v1 = self._client.v1

    async def close(self) -> None:
        """Close connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    # -- making ---------------------------------------------------------------------------------------------

    async def create_customer(self, account_id: str, name: str, key: str) -> str:
        """Make a Stripe customer for an account; twice with the same key within a day is one."""
        params: Any = {"name": name, "metadata": {"tollkeeper_account": account_id, **self._mark}}
        made = await _asked(lambda: self._v1.customers.create_async(params, {"idempotency_key": key}))
        return str(made["id"])

    async def create_session(
        self,
        order: Order,
        *,
        success_url: str,
        cancel_url: str,
        save_method: bool,
        tax: bool,
        options: PageOptions = PLAIN_PAGE,
    ) -> CheckoutSession:
        """Make a hosted payment page for an order."""
        line: dict[str, Any] = {
            "quantity": 1,
            "price_data": {
                "currency": order.currency,
                "unit_amount": order.cents,
                "product_data": {"name": order.title},
            },
        }
        intent: dict[str, Any] = {"metadata": {OWN_ID: order.purchase_id, **self._mark}}
        if save_method:
            intent["setup_future_usage"] = "off_session"
        params: dict[str, Any] = {
            "mode": "payment",
            "customer": order.customer_id,
            "client_reference_id": order.purchase_id,
            "line_items": [line],
            "metadata": {OWN_ID: order.purchase_id, **self._mark},
            "payment_intent_data": intent,
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        if tax:
            line["price_data"]["tax_behavior"] = "exclusive"
            params["automatic_tax"] = {"enabled": True}
        if tax and options.tax_code:
            line["price_data"]["product_data"]["tax_code"] = options.tax_code
        params |= self._asked_for(options, tax=tax)
        made = await _asked(
            lambda: self._v1.checkout.sessions.create_async(cast("Any", params), {"idempotency_key": order.key})
        )
        return _view(made, CheckoutSession)

    def _asked_for(self, options: PageOptions, *, tax: bool) -> dict[str, Any]:
        """Return the parameters of what a page asks for; what the buyer says is kept with the customer at Stripe."""
        found: dict[str, Any] = {}
        kept = {"address": "auto"} if tax or options.address else {}
        if options.address:
            found["billing_address_collection"] = "required"
        if options.company:
            found["tax_id_collection"] = {"enabled": True}
            kept["name"] = "auto"
        if options.invoices:
            found["invoice_creation"] = {"enabled": True, "invoice_data": {"metadata": dict(self._mark)}}
        return {**found, "customer_update": kept} if kept else found

    async def calculate_tax(self, order: Order, tax_code: str) -> DueTax:
        """Ask Stripe Tax what comes on top of an order, by the address and tax ids of its customer.

        Twice with the same order within a day is one calculation.
        """
        line = {"amount": order.cents, "reference": order.purchase_id, "tax_behavior": "exclusive"}
        if tax_code:
            line["tax_code"] = tax_code
        params: Any = {"currency": order.currency, "customer": order.customer_id, "line_items": [line]}
        made = await _asked(
            lambda: self._v1.tax.calculations.create_async(params, {"idempotency_key": f"{order.key}:tax"})
        )
        found = _view(made, TaxCalculation)
        return DueTax(found.id, found.tax_amount_exclusive)

    async def charge_saved_method(
        self, order: Order, payment_method_id: str, tax: DueTax | None = None
    ) -> Intent | Declined:
        """Take a payment while the buyer is away, with the method they consented to, and the tax on top of it.

        Stripe books the tax of a payment that names its calculation, and books it back where the payment is refunded.
        """
        params: Any = {
            "amount": order.cents + (tax.cents if tax is not None else 0),
            "currency": order.currency,
            "customer": order.customer_id,
            "payment_method": payment_method_id,
            "off_session": True,
            "confirm": True,
            "description": order.title,
            "metadata": {OWN_ID: order.purchase_id, **self._mark},
            "expand": INTENT_DETAILS,
        }
        if tax is not None:
            params["hooks"] = {"inputs": {"tax": {"calculation": tax.calculation_id}}}
        try:
            made = await _asked(lambda: self._v1.payment_intents.create_async(params, {"idempotency_key": order.key}))
        except _CardRefused as refused:
            return refused.declined
        return _view(made, Intent)

    async def refund_payment(self, intent_id: str, cents: int, purchase_id: str, asking_id: str, key: str) -> Refund:
        """Give so much of a payment back; twice with the same key within a day is once."""
        params: Any = {
            "payment_intent": intent_id,
            "amount": cents,
            "reason": "requested_by_customer",
            "metadata": {OWN_ID: purchase_id, ASKING_ID: asking_id, **self._mark},
        }
        return _view(await _asked(lambda: self._v1.refunds.create_async(params, {"idempotency_key": key})), Refund)

    async def portal_url(self, customer_id: str, return_url: str) -> str:
        """Return a one-time link for a customer to manage saved cards and see receipts."""
        options: Any = {"idempotency_key": secrets.token_hex(16)}  # of this call: a link is for one use
        params: Any = {"customer": customer_id, "return_url": return_url}
        made = await _asked(lambda: self._v1.billing_portal.sessions.create_async(params, options))
        return str(made["url"])

    async def detach_method(self, payment_method_id: str) -> None:
        """Have a saved payment method be nobody's, for good; one that is so already, or is gone, is no failure."""
        try:
            await _asked(lambda: self._v1.payment_methods.detach_async(payment_method_id))
        except StripeRefused as refused:
            if refused.status != 404 and refused.code != NOT_ATTACHED:
                raise

    # -- the account itself, for preflight ---------------------------------------------------------------------

    async def account(self) -> tuple[StripeAccount, str]:
        """Return our Stripe account, and the Date of Stripe's answer ("" when it has none)."""
        found = await _asked(self._v1.accounts.retrieve_current_async)
        last = found.last_response
        return _view(found, StripeAccount), str(last.headers.get("date", "")) if last is not None else ""

    async def endpoints(self) -> list[WebhookEndpoint]:
        """Return every webhook endpoint of the account."""
        listed = await _asked(lambda: self._v1.webhook_endpoints.list_async({"limit": PAGE}))
        return [_view(row, WebhookEndpoint) for row in listed.data]

    async def unreadable(self, *, invoices: bool = False) -> list[str]:
        """Return what we must read and the key may not, in Stripe's names; `invoices`: some are made of purchases."""
        services: dict[str, Any] = {
            "Checkout Sessions": self._v1.checkout.sessions,
            "PaymentIntents": self._v1.payment_intents,
            "Charges": self._v1.charges,
            "Refunds": self._v1.refunds,
            "Disputes": self._v1.disputes,
            "Events": self._v1.events,
            **({"Invoices": self._v1.invoices} if invoices else {}),
        }
        found = []
        for name, service in services.items():
            try:
                await _asked(partial(service.list_async, {"limit": 1}))
            except StripeRefused as refused:
                if refused.code != NOT_PERMITTED:
                    raise
                found.append(name)
        return found

    # -- one object, as it is now ---------------------------------------------------------------------------

    async def session(self, session_id: str) -> CheckoutSession | None:
        """Return a Checkout Session with its payment; None when there is no such."""
        return await _found(
            lambda: self._v1.checkout.sessions.retrieve_async(session_id, {"expand": SESSION_DETAILS}), CheckoutSession
        )

    async def intent(self, intent_id: str) -> Intent | None:
        """Return a PaymentIntent with its charge; None when there is no such."""
        return await _found(
            lambda: self._v1.payment_intents.retrieve_async(intent_id, {"expand": INTENT_DETAILS}), Intent
        )

    async def refund(self, refund_id: str) -> Refund | None:
        """Return a refund; None when there is no such."""
        return await _found(lambda: self._v1.refunds.retrieve_async(refund_id), Refund)

    async def dispute(self, dispute_id: str) -> Dispute | None:
        """Return a dispute with its balance transactions; None when there is no such."""
        return await _found(lambda: self._v1.disputes.retrieve_async(dispute_id), Dispute)

    async def invoice(self, invoice_id: str) -> Invoice | None:
        """Return an invoice, with the links to it as they are now; None when there is no such."""
        return await _found(lambda: self._v1.invoices.retrieve_async(invoice_id), Invoice)

    async def charge(self, stripe_charge_id: str) -> StripeCharge | None:
        """Return a charge, with the link to its receipt as it is now; None when there is no such."""
        return await _found(
            lambda: self._v1.charges.retrieve_async(stripe_charge_id, {"expand": ["balance_transaction"]}), StripeCharge
        )

    # -- lists, newest first ----------------------------------------------------------------------------------

    def sessions(self, **filters: Any) -> AsyncIterator[CheckoutSession]:
        """List Checkout Sessions: `payment_intent=`, `customer=`, `created={"gte": seconds}`."""
        return self._list(self._v1.checkout.sessions, CheckoutSession, filters)

    def intents(self, **filters: Any) -> AsyncIterator[Intent]:
        """List PaymentIntents: `customer=`, `created=`, `expand=["data...."]`."""
        return self._list(self._v1.payment_intents, Intent, filters)

    def refunds(self, **filters: Any) -> AsyncIterator[Refund]:
        """List refunds: `charge=`, `payment_intent=`, `created=`."""
        return self._list(self._v1.refunds, Refund, filters)

    def disputes(self, **filters: Any) -> AsyncIterator[Dispute]:
        """List disputes: `charge=`, `payment_intent=`, `created=`."""
        return self._list(self._v1.disputes, Dispute, filters)

    async def events(self, since: int, types: Sequence[str]) -> AsyncIterator[tuple[Event, bytes]]:
        """List events of these types since a time (Unix seconds; Stripe keeps 30 days), each with its JSON."""
        for start in range(0, len(types), TYPES_IN_ONE_LIST):
            filters = {"created": {"gte": since}, "types": list(types[start : start + TYPES_IN_ONE_LIST])}
            async for raw in self._pages(self._v1.events, filters):
                yield msgspec.convert(raw, Event), msgspec.json.encode(raw)

    async def _list(self, service: Any, kind: type[View], filters: Mapping[str, Any]) -> AsyncIterator[View]:
        async for raw in self._pages(service, filters):
            yield msgspec.convert(raw, kind)

    async def _pages(self, service: Any, filters: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        params: dict[str, Any] = {**filters, "limit": PAGE}
        while True:
            page = (await _asked(lambda: service.list_async(params))).to_dict()
            for raw in page["data"]:
                yield raw
            if not page.get("has_more") or not page["data"]:
                return
            params["starting_after"] = page["data"][-1]["id"]


class _CardRefused(Exception):
    """A card error, on its way to becoming a Declined."""

    def __init__(self, declined: Declined) -> None:
        super().__init__(declined.code)
        self.declined = declined


async def _asked(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return a call's answer, asked for again a little later while Stripe has too many calls at once.

    The library itself asks again, with the same key, after no answer, a 409 and a 5xx. Failures are in our words.
    Raises StoreUnavailable, StripeRefused, _CardRefused.
    """
    for pause in BUSY_PAUSES:
        try:
            return await call()
        except stripe.RateLimitError as error:
            await asyncio.sleep(min(_retry_after(error), LONGEST_PAUSE) or pause)
        except stripe.StripeError as error:
            raise _in_our_words(error) from None
    try:
        return await call()
    except stripe.StripeError as error:
        raise _in_our_words(error) from None


def _in_our_words(error: stripe.StripeError) -> Exception:
    if isinstance(error, stripe.CardError):
        return _CardRefused(_declined(error))
    refused = isinstance(error, (stripe.InvalidRequestError, stripe.IdempotencyError, stripe.PermissionError))
    if refused and error.http_status != 409:  # 409: the same key is being worked on at this moment
        return StripeRefused(_code_of(error), _words(error), error.http_status or 400, kept=_is_kept(error))
    return StoreUnavailable("stripe", _words(error), in_doubt=True, kept=_is_kept(error))


def _is_kept(error: stripe.StripeError) -> bool:
    """Tell whether it is what Stripe keeps under the call's key: it answers that key with nothing else for a day."""
    if isinstance(error, stripe.IdempotencyError):
        return error.http_status != 409
    return _header(error, "idempotent-replayed") == "true"


def _header(error: stripe.StripeError, name: str) -> str:
    found = {key.lower(): value for key, value in (error.headers or {}).items()}
    return str(found.get(name, ""))


def _retry_after(error: stripe.StripeError) -> int:
    """Return the seconds that Stripe asks us to wait; 0 when it does not say."""
    given = _header(error, "retry-after")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 9 else 0


def _code_of(refusal: stripe.StripeError) -> str:
    """Return Stripe's own code; a word of ours where it gives none."""
    if isinstance(refusal, stripe.IdempotencyError):
        return SAME_KEY
    if isinstance(refusal, stripe.PermissionError):
        return NOT_PERMITTED
    return refusal.code or "invalid_request"


async def _found(call: Callable[[], Awaitable[Any]], kind: type[View]) -> View | None:
    try:
        return _view(await _asked(call), kind)
    except StripeRefused as refused:
        if refused.status == 404:
            return None
        raise


def _view(answer: Any, kind: type[View]) -> View:
    return msgspec.convert(answer.to_dict(), kind)


def _declined(error: stripe.CardError) -> Declined:
    body: Any = error.json_body if isinstance(error.json_body, dict) else {}
    inner = body.get("error", {})
    known = msgspec.convert({name: inner.get(name) for name in ("code", "decline_code", "message")}, PaymentError)
    intent = inner.get("payment_intent") or {}
    return Declined(decline_code(known), known.message or "The card was declined.", str(intent.get("id", "")))


def _words(error: stripe.StripeError) -> str:
    """Return what went wrong, without anything that could hold a key (Stripe quotes a key that it does not accept)."""
    if isinstance(error, stripe.AuthenticationError):
        return "AuthenticationError: Stripe does not accept STRIPE_API_KEY"
    if isinstance(error, stripe.PermissionError):
        return "PermissionError: STRIPE_API_KEY is a restricted key that may not do this"
    return f"{type(error).__name__}: {error.user_message or error.code or 'no answer'}"
