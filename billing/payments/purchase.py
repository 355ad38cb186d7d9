"""What a purchase is, which states it goes through, and when it may be credited. Pure.

    created ─▶ open ─▶ processing ─▶ credited        the row exists before Stripe is asked for anything
       │         │          │           ▲
       ├─────────┴──────────┴▶ expired, failed ┄┄┄┄┄┘  a payment that arrives late still wins
       └─────────────────────▶ review ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘  paid, but not what was sold: a person decides
                                  └┄▶ dismissed         that nothing is to be credited for it

`credited` is final; what is paid back afterwards is a claim (claims.py). Money is keyed by the purchase, never by the
event that told of it, and the credits come from the row, never from what Stripe says was paid.
"""

from fractions import Fraction
from typing import Literal, NamedTuple

from billing.money.amounts import Millicredits, MoneyError, package_credits, parse_usd
from billing.money.errors import BillingError

State = Literal["created", "open", "processing", "credited", "expired", "failed", "review", "dismissed"]
Origin = Literal["checkout", "auto"]
PaymentStatus = Literal["open", "processing", "paid", "expired", "failed", "free", "unknown"]

CURRENCY = "usd"
"""A credit is a thousandth of a dollar, so nothing is sold in anything else."""
MILLICREDITS_PER_CENT = 10_000
UNSETTLED: tuple[State, ...] = ("created", "open", "processing")
"""States in which money may still be on its way."""

NEXT: dict[State, frozenset[State]] = {
    "created": frozenset({"open", "processing", "credited", "expired", "failed", "review"}),
    "open": frozenset({"processing", "credited", "expired", "failed", "review"}),
    "processing": frozenset({"credited", "failed", "review"}),
    "expired": frozenset({"credited", "review"}),
    "failed": frozenset({"credited", "review"}),
    "review": frozenset({"credited"}),
    "credited": frozenset(),
    "dismissed": frozenset(),
}


class Offer(NamedTuple):
    """A package as sold: what it costs in cents, and the credits of its paid and its bonus part in millicredits."""

    code: str
    currency: str
    price_cents: int
    paid: Millicredits
    bonus: Millicredits


class Sold(NamedTuple):
    """The part of a purchase's row that a payment is held against."""

    state: State
    currency: str
    price_cents: int
    livemode: bool
    customer_id: str


class Payment(NamedTuple):
    """What Stripe says now of the Checkout Session or PaymentIntent of a purchase. Amounts in cents of `currency`."""

    status: PaymentStatus
    mode: str
    currency: str
    subtotal_cents: int
    total_cents: int
    tax_cents: int
    livemode: bool
    customer_id: str


class Transition(NamedTuple):
    """The state a purchase goes to, and what is wrong with its payment ("" = nothing)."""

    state: State
    problem: str = ""


def offer(code: str, usd: str, bonus_percent: str) -> Offer:
    """The package of those settings. Raises MoneyError when its price is not whole cents."""
    paid, bonus = package_credits(usd, bonus_percent)
    cents = Fraction(paid, MILLICREDITS_PER_CENT)
    if cents.denominator != 1 or cents < 1:
        raise MoneyError(f"the price ${usd} of {code!r} is not a whole number of cents")
    return Offer(code, CURRENCY, cents.numerator, paid, bonus)


class NotAcceptable(BillingError):
    """A payment in review that cannot be credited, or dismissed, by hand: why, and what to do instead."""


def accepted(sold: Sold, payment: Payment, returned_cents: int, bonus: int) -> tuple[int, int]:
    """The paid and the bonus part, in millicredits, of a payment in review that a person accepts.

    What came in (without tax) is the paid part, whatever was sold; with it goes its share of the package's `bonus`
    (millicredits), never more than all of that. `returned_cents` is what refunds and disputes took of it already.
    Raises NotAcceptable.
    """
    cents = payment.total_cents - payment.tax_cents
    if payment.status != "paid":
        raise NotAcceptable(
            f"Stripe says that this payment is {payment.status!r}, not paid: there is nothing to accept"
        )
    if payment.livemode != sold.livemode:
        raise NotAcceptable("the payment is of the other mode (test or live): it is not money of ours")
    if payment.currency != sold.currency:
        raise NotAcceptable(
            f"it was paid in {payment.currency!r} and sold in {sold.currency!r}: refund it at Stripe, then dismiss it"
        )
    if cents < 1 or payment.tax_cents < 0:
        raise NotAcceptable("no money came in: dismiss it, and move credits with `tollkeeper grant` if some are owed")
    if returned_cents >= payment.total_cents:
        raise NotAcceptable("all of it was refunded or disputed: there is nothing left to accept")
    return cents * MILLICREDITS_PER_CENT, min(bonus * cents // sold.price_cents, bonus)


class NotRefundable(BillingError):
    """There is nothing to give back, or not so much: why."""


class Refunded(NamedTuple):
    """What Stripe made of it: its id, `cents`, and its status (`pending`, `succeeded`, ...)."""

    refund_id: str
    cents: int
    status: str


def refund_cents(usd: str) -> int:
    """Dollars as cents. Raises MoneyError for what is no whole number of cents above 0."""
    cents, rest = divmod(parse_usd(usd), MILLICREDITS_PER_CENT)
    if rest or cents < 1:
        raise MoneyError(f"${usd[:40]} is not a whole number of cents above 0")
    return cents


def may_become(now: State, then: State) -> bool:
    """Whether a purchase moves on: never backwards, and never out of `credited`."""
    return then in NEXT[now]


def judge(sold: Sold, payment: Payment) -> Transition:
    """Where a purchase stands, by what Stripe says of its payment.

    Only `paid` and exactly what was sold is credited.
    """
    plain: dict[str, Transition] = {
        "open": Transition("open"),
        "processing": Transition("processing"),
        "expired": Transition("expired"),
        "failed": Transition("failed", "the payment failed"),
        "free": Transition("review", "complete without a payment (a full discount?): nothing is credited"),
        "unknown": Transition("review", "Stripe reports a status this version does not know"),
    }
    if payment.status != "paid":
        return plain[payment.status]
    problem = mismatch(sold, payment)
    return Transition("review", problem) if problem else Transition("credited")


def mismatch(sold: Sold, payment: Payment) -> str:
    """What of a payment is not what was sold; "" when all is right.

    Tax comes on top; a discount is nothing we offer.
    """
    checks = (
        (payment.livemode == sold.livemode, "livemode differs"),
        (payment.mode == "payment", f"its mode is {payment.mode!r}"),
        (payment.currency == sold.currency, f"paid in {payment.currency!r}, sold in {sold.currency!r}"),
        (payment.subtotal_cents == sold.price_cents, f"{payment.subtotal_cents} cents instead of {sold.price_cents}"),
        (payment.tax_cents >= 0, "a negative tax"),
        (
            payment.total_cents == payment.subtotal_cents + payment.tax_cents,
            f"a total of {payment.total_cents} cents (a discount?)",
        ),
        (payment.customer_id == sold.customer_id, "another customer"),
    )
    return "; ".join(text for right, text in checks if not right)
