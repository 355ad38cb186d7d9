"""Stripe's objects as far as money in needs them, and what they say of a payment. Pure: nothing here calls anyone.

Fields that Stripe may leave out or null have a default; fields we do not read are ignored, so a newer API version with
more of them still decodes. Amounts are cents of `currency`; `created` is Unix seconds.
"""

from typing import Any

import msgspec

from billing.payments.purchase import Payment, PaymentStatus

NEEDS_BUYER = "authentication_required"
"""The bank wants the buyer to be there."""
DECLINED_FOR_GOOD = "declined_for_good"
"""Our code of a decline that says that the card is not its bearer's: trying it again is asking for a dispute."""
RISKY_DECLINES = frozenset({"fraudulent", "lost_card", "merchant_blacklist", "pickup_card", "stolen_card"})
OWN_ID = "tollkeeper_purchase"
"""The metadata key by which our objects name their purchase: a hint for people and for finding rows, never proof."""
MARK = "tollkeeper_installation"
"""The metadata key of the installation that made an object (ownership.py)."""
ASKING_ID = "tollkeeper_refund"
"""The metadata key by which a refund names the asking that it was made for."""


class StripeObject(msgspec.Struct, frozen=True, kw_only=True):
    """Base: immutable."""


class BalanceTransaction(StripeObject, frozen=True):
    """Money that moved on our Stripe balance; `net` = amount - fee."""

    id: str
    amount: int
    currency: str
    fee: int = 0
    created: int = 0


class MethodNumbers(StripeObject, frozen=True):
    """Parts of a card or bank account by which its owner knows it."""

    brand: str | None = None
    bank_name: str | None = None
    last4: str | None = None


class MethodDetails(StripeObject, frozen=True):
    """The payment method of a charge, as it was then."""

    type: str = ""
    card: MethodNumbers | None = None
    us_bank_account: MethodNumbers | None = None
    sepa_debit: MethodNumbers | None = None

    @property
    def label(self) -> tuple[str, str]:
        """Return (brand, bank or kind; last four characters), "" for what Stripe does not say."""
        numbers = self.card or self.us_bank_account or self.sepa_debit or MethodNumbers()
        return numbers.brand or numbers.bank_name or self.type.replace("_", " "), numbers.last4 or ""


class StripeCharge(StripeObject, frozen=True):
    """One payment taken."""

    id: str
    created: int = 0
    receipt_url: str | None = None
    payment_intent: str | None = None
    balance_transaction: BalanceTransaction | str | None = None
    payment_method_details: MethodDetails | None = None


class PaymentError(StripeObject, frozen=True):
    """The reason that the last attempt did not work."""

    code: str | None = None
    decline_code: str | None = None
    message: str | None = None


class TaxInput(StripeObject, frozen=True):
    """The tax that a payment is made with."""

    calculation: str = ""


class HookInputs(StripeObject, frozen=True):
    """The part of a payment's hooks that they are given."""

    tax: TaxInput | None = None


class Hooks(StripeObject, frozen=True):
    """The part of a payment that Stripe acts by when it succeeds."""

    inputs: HookInputs | None = None


class TaxCalculation(StripeObject, frozen=True):
    """Stripe Tax's answer for an order: cents on top of its lines."""

    id: str
    amount_total: int
    tax_amount_exclusive: int


class Invoice(StripeObject, frozen=True):
    """A numbered invoice, and where it can be read."""

    id: str
    number: str | None = None
    hosted_invoice_url: str | None = None
    invoice_pdf: str | None = None


class Intent(StripeObject, frozen=True):
    """A PaymentIntent."""

    id: str
    status: str
    amount: int
    currency: str
    livemode: bool
    created: int = 0
    amount_received: int = 0
    customer: str | None = None
    payment_method: str | None = None
    latest_charge: StripeCharge | str | None = None
    last_payment_error: PaymentError | None = None
    hooks: Hooks | None = None
    metadata: dict[str, str] = {}

    @property
    def tax_calculation(self) -> str:
        """Id of the calculation of its tax; "" for none."""
        inputs = self.hooks.inputs if self.hooks is not None else None
        return inputs.tax.calculation if inputs is not None and inputs.tax is not None else ""


class TotalDetails(StripeObject, frozen=True):
    """Parts of a session's total beside its lines."""

    amount_tax: int = 0


class CheckoutSession(StripeObject, frozen=True):
    """A Checkout Session."""

    id: str
    mode: str
    payment_status: str
    livemode: bool
    created: int = 0
    status: str | None = None
    currency: str | None = None
    amount_subtotal: int | None = None
    amount_total: int | None = None
    total_details: TotalDetails | None = None
    customer: str | None = None
    client_reference_id: str | None = None
    expires_at: int | None = None
    metadata: dict[str, str] = {}
    url: str | None = None
    payment_intent: Intent | str | None = None
    invoice: str | None = None


class Refund(StripeObject, frozen=True):
    """Money on its way back to a buyer."""

    id: str
    amount: int
    currency: str
    created: int = 0
    status: str | None = None
    charge: str | None = None
    payment_intent: str | None = None
    reason: str | None = None
    metadata: dict[str, str] = {}


class Dispute(StripeObject, frozen=True):
    """A chargeback or an inquiry that may become one."""

    id: str
    amount: int
    currency: str
    status: str
    created: int = 0
    livemode: bool | None = None
    reason: str = ""
    charge: str | None = None
    payment_intent: str | None = None
    balance_transactions: tuple[BalanceTransaction, ...] = ()


class Event(StripeObject, frozen=True):
    """The envelope of an event; what it carries is fetched anew, for what it carries may be old."""

    id: str
    type: str
    created: int | str
    livemode: bool = False
    api_version: str | None = None
    data: "EventData | None" = None
    object: str = "event"


class EventData(StripeObject, frozen=True):
    """The part of an event that names its object."""

    object: "EventObject"


class EventObject(StripeObject, frozen=True):
    """The ids are all we take from it: `charge` and `payment_intent` of a warning, which says nothing else of use."""

    id: str | None = None
    object: str | None = None
    charge: Any = None
    payment_intent: Any = None


class StripeAccount(StripeObject, frozen=True):
    """Our own Stripe account."""

    id: str
    charges_enabled: bool = False
    payouts_enabled: bool = False


class WebhookEndpoint(StripeObject, frozen=True):
    """A webhook endpoint; `api_version` None: the account's default."""

    id: str
    url: str
    status: str
    livemode: bool = False
    enabled_events: tuple[str, ...] = ()
    api_version: str | None = None


INTENT_STATUS: dict[str, PaymentStatus] = {
    "succeeded": "paid",
    "processing": "processing",
    "requires_payment_method": "failed",
    "requires_action": "failed",
    "requires_confirmation": "failed",
    "canceled": "failed",
}
"""Of an off-session payment: whatever would need the buyer has failed, for the buyer is not there."""


def payment_of_session(session: CheckoutSession) -> Payment:
    """Return what a Checkout Session says of its purchase."""
    tax = session.total_details.amount_tax if session.total_details else 0
    return Payment(
        _session_status(session),
        session.mode,
        session.currency or "",
        session.amount_subtotal or 0,
        session.amount_total or 0,
        tax,
        session.livemode,
        session.customer or "",
    )


def payment_of_intent(intent: Intent, calculation: str = "", tax_cents: int = 0) -> Payment:
    """Return what an off-session PaymentIntent says of its purchase.

    `tax_cents` are in it where it was made with this calculation of them, and with no other.
    """
    paid = intent.amount_received if intent.status == "succeeded" else intent.amount
    tax = tax_cents if calculation and intent.tax_calculation == calculation else 0
    status: PaymentStatus = INTENT_STATUS.get(intent.status, "unknown")
    return Payment(status, "payment", intent.currency, paid - tax, paid, tax, intent.livemode, intent.customer or "")


def failure_of(intent: Intent) -> str:
    """Return the code of why a payment did not work; "" when it did, or may yet."""
    if intent.status in ("requires_action", "requires_confirmation"):
        return NEEDS_BUYER
    error = intent.last_payment_error
    return decline_code(error) if error is not None and intent.status != "succeeded" else ""


def decline_code(error: PaymentError) -> str:
    """Return the code of a decline: Stripe's, or ours for one that no later try should follow."""
    return DECLINED_FOR_GOOD if error.decline_code in RISKY_DECLINES else error.code or "card_declined"


def _session_status(session: CheckoutSession) -> PaymentStatus:
    if session.payment_status == "paid":
        return "paid"
    if session.payment_status == "no_payment_required":
        return "free" if session.status == "complete" else "open"
    if session.payment_status != "unpaid" or session.status not in ("open", "complete", "expired"):
        return "unknown"
    if session.status == "complete":
        intent = session.payment_intent
        # a delayed method: still on its way, unless its PaymentIntent asks for another method or is canceled
        failed = isinstance(intent, Intent) and intent.status in ("requires_payment_method", "canceled")
        return "failed" if failed else "processing"
    return "open" if session.status == "open" else "expired"


def id_of(reference: "str | Intent | StripeCharge | BalanceTransaction | None") -> str:
    """Return the id of an object, expanded or not; "" for none."""
    return reference if isinstance(reference, str) else reference.id if reference is not None else ""
