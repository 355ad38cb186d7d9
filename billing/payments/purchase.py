"""A purchase: the states it goes through, and when it may be credited. Pure.

    created ─▶ open ─▶ processing ─▶ credited        the row exists before Stripe is asked for anything
       │         │          │           ▲
       ├─────────┴──────────┴▶ expired, failed ┄┄┄┄┄┘  a payment that arrives late still wins
       └─────────────────────▶ review ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘  paid, but not what was sold: a person decides
                                  └┄▶ dismissed         that nothing is to be credited for it

created      The row is committed with its idempotency key; Stripe may or may not have heard of it. A click or the
             recharge worker asks with that key again: one page, one payment. The sweeper looks for it at Stripe and
             gives it up after 15 minutes (failed, "Stripe never heard of it").
open         A payment page exists, and nothing was paid on it yet.
processing   Paid by a method that takes days: the order is complete, the money is not there.
expired      The page ended unpaid. failed: the payment did, or it was given up. Neither is the end: the buyer may have
             paid at the last moment, and Stripe may tell late. What then is paid is credited all the same.
review       Paid, but not exactly what was sold (mode, currency, amount, customer, a discount), or in a status we do
             not know. Nothing is credited until a person accepts it, or a later look finds it right.
dismissed    A person closed it in review (`judge` never says so). Final: no news credits it.
credited     Final. What is paid back afterwards is a claim (claims.py); it never leads out of this state.

How a purchase moves. An event of Stripe's, the sweeper, the landing page and a replay all do the same: read the row
(with its `revision`), fetch the object from Stripe as it is now, `judge` it, and in one transaction on the locked row
write state, transfers and outbox. Nothing is taken from an event but an id, so repeated, late and shuffled events
make no difference. A row whose revision moved meanwhile refuses the older picture (Stale), which is fetched again.
`NEXT` has only forward moves: news that would lead backwards changes nothing but what it completes (a receipt, a fee).

Money is keyed by the purchase, never by the event that told of it: the transfers' reference is its id, unique in SQL
(I4), and they are never changed (I5). The credits come from the row, never from what Stripe says was paid; only a
payment that a person accepts in review is credited by what came in. Dying between two of these steps leaves a row
that the next event, click or sweep takes on: docs/stripe.md has the table.
"""

from fractions import Fraction
from typing import Literal, NamedTuple, get_args

from billing.money.amounts import Millicredits, MoneyError, millicredits, package_credits, parse_usd
from billing.money.errors import BillingError, StoreUnavailable

State = Literal["created", "open", "processing", "credited", "expired", "failed", "review", "dismissed"]
STATES: tuple[State, ...] = get_args(State)
Origin = Literal["checkout", "auto", "transfer"]
PaymentStatus = Literal["open", "processing", "paid", "expired", "failed", "free", "unknown"]

CURRENCY = "usd"
"""A credit is a thousandth of a dollar, so nothing is sold in anything else."""
MILLICREDITS_PER_CENT = 10_000
AMOUNT_CODE = "amount"
"""What stands for a package where the buyer named the amount."""
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
    """A package as sold: what it costs in cents, and the credits of its paid and its bonus part in millicredits.

    `bonus_days`: after which what is left of the bonus expires (None: never); `taxed`: tax comes on top.
    """

    code: str
    currency: str
    price_cents: int
    paid: Millicredits
    bonus: Millicredits
    bonus_days: int | None = None
    taxed: bool = False


class Sold(NamedTuple):
    """The part of a purchase's row that a payment is held against."""

    state: State
    currency: str
    price_cents: int
    livemode: bool
    customer_id: str


class Payment(NamedTuple):
    """The Checkout Session or PaymentIntent of a purchase as it is now at Stripe. Amounts in cents of `currency`."""

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


def offer(code: str, usd: str, bonus_percent: str, bonus_days: int = 0) -> Offer:
    """Return the package of those settings (0 days: for good). Raises MoneyError when its price is not whole cents."""
    paid, bonus = package_credits(usd, bonus_percent)
    cents = Fraction(paid, MILLICREDITS_PER_CENT)
    if cents.denominator != 1 or cents < 1:
        raise MoneyError(f"the price ${usd} of {code!r} is not a whole number of cents")
    return Offer(code, CURRENCY, cents.numerator, paid, bonus, bonus_days or None)


def offer_of_amount(cents: int, usd_per_1000: str) -> Offer:
    """Return the credits that so many cents buy, where 1,000 cost so many dollars; rounded down to the millicredit.

    A credit is worth a thousandth of a dollar wherever it is spent: sold for less, the difference is a bonus, and it is
    never sold for more (that is what `billing.markup` is for). Raises MoneyError.
    """
    price = Fraction(usd_per_1000)
    if not 0 < price <= 1 or cents < 1:
        raise MoneyError("1,000 credits cost more than $0 and at most $1")
    paid = cents * MILLICREDITS_PER_CENT
    return Offer(AMOUNT_CODE, CURRENCY, cents, millicredits(paid), millicredits(int(Fraction(paid) / price) - paid))


class NotAcceptable(BillingError):
    """A payment in review that cannot be credited, or dismissed, by hand: why, and what to do instead."""


def accepted(sold: Sold, payment: Payment, returned_cents: int, bonus: int) -> tuple[int, int]:
    """Return the paid and the bonus part, in millicredits, of a payment in review that a person accepts.

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


class RefundInDoubt(StoreUnavailable):
    """No answer came, so a refund may have been made: the sentence says under which reference to ask again."""


class Refunded(NamedTuple):
    """A refund as Stripe made it: its id, `cents`, and its status (`pending`, `succeeded`, ...).

    `reference` names the asking; `again`: it was made for that asking before, and nothing more went back now.
    """

    refund_id: str
    cents: int
    status: str
    reference: str = ""
    again: bool = False


class RefundedPart(NamedTuple):
    """A purchase of which a part goes back; `made` None: `problem` says why it does not."""

    purchase_id: str
    made: Refunded | None
    problem: str = ""


def refund_cents(usd: str) -> int:
    """Return dollars as cents. Raises MoneyError for what is no whole number of cents above 0."""
    cents, rest = divmod(parse_usd(usd), MILLICREDITS_PER_CENT)
    if rest or cents < 1:
        raise MoneyError(f"${usd[:40]} is not a whole number of cents above 0")
    return cents


def may_become(now: State, then: State) -> bool:
    """Return True for a move forward: never backwards, and never out of `credited`."""
    return then in NEXT[now]


def judge(sold: Sold, payment: Payment) -> Transition:
    """Return where a purchase goes by what Stripe says of its payment.

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
    """Return what of a payment is not what was sold; "" when all is right.

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
