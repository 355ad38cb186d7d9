"""Money that goes back: refunds and disputes as claims on a purchase. Pure.

    refund    pending, requires_action, succeeded   counts
              failed, canceled                      does not: it gives back what it took
    dispute   needs_response, under_review, warning_needs_response, warning_under_review, appeal_*   counts
              lost, prevented                       counts, and is final
              won, warning_closed, charge_refunded  does not: it gives back what it took

A status we do not know leaves standing what stood (a new claim counts), and is reported.

What a claim takes. `share(cents)` is what so many cents of the whole are worth: paid part and tax exactly the cents,
the tax in whole cents as a tax return wants it, the bonus pro rata, rounded down for the customer. Every claim that
counts takes its share of what was sold, in the order in which we heard of them: `share` of all claims so far minus that
of the claims before it, never more than the purchase. So partial refunds of any split sum to the whole, a dispute on
top of a refund takes only what is left, and a refund that fails gives back exactly what it took, whatever came in
between. What one claim takes may change when another one ends: each time all of them are computed anew, and the
differences are booked as new transfers under the claim's next `version` (I4: the reference is claim and version; I5:
nothing booked is changed).

    refund    customer → cash (paid part), customer → promo (bonus), payable:tax → cash;
              what exceeds the purchase is our loss
    dispute   customer → disputes (paid part), customer → promo (bonus), payable:tax → disputes; won: all of it back
              Stripe takes or returns the money: disputes ↔ cash; lost: what then remains in `disputes` is cleared

Credits and cash go separate ways. Credits follow the status; cash follows Stripe's balance transactions, each booked
once by its own id. A claim on a purchase that is not credited (yet) is only kept, with what Stripe moved for it; the
transaction that credits the purchase books both (a dispute's fee is booked at once). A balance may go below zero by a
claim, and by nothing else but an admin (I2). When a dispute is lost `disputes` is brought to zero:
what was taken back and not withdrawn is cash we have yet to lose, what was withdrawn beyond it is `platform_loss`.

What follows besides money: any dispute that is not released stops automatic recharge; a claim that lowers the
balance uses a crossing up, so that no card is charged for what was given back; so many lost disputes block the account.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from billing.money.errors import InvariantBroken
from billing.money.postings import CASH, DISPUTES, PLATFORM_LOSS, PROMO, TAX, Posting, customer, signed
from billing.payments.purchase import MILLICREDITS_PER_CENT

Kind = Literal["refund", "dispute"]

REFUND_COUNTS = {"pending": True, "requires_action": True, "succeeded": True, "failed": False, "canceled": False}
DISPUTE_OPEN = frozenset({"needs_response", "under_review", "warning_needs_response", "warning_under_review"})
DISPUTE_RELEASED = frozenset({"won", "warning_closed", "charge_refunded"})
DISPUTE_LOST = frozenset({"lost", "prevented"})


class Whole(NamedTuple):
    """A purchase as sold: total paid in cents, and its parts in millicredits. `expired`: of the bonus, and gone."""

    total_cents: int
    paid: int
    bonus: int
    tax: int
    expired: int = 0


class Parts(NamedTuple):
    """Millicredits taken back by a claim. `loss` is what we return beyond what was sold."""

    paid: int = 0
    bonus: int = 0
    tax: int = 0
    loss: int = 0


NOTHING = Parts()


class Claim(NamedTuple):
    """A refund or dispute as it stands, and what of it is booked already.

    `withdrawn` is what Stripe has taken for a dispute, net of what it gave back; `cleared` what was booked out of
    `disputes` when it was lost. Both in millicredits.
    """

    claim_id: str
    kind: Kind
    cents: int
    counts: bool
    lost: bool
    booked: Parts = NOTHING
    withdrawn: int = 0
    cleared: int = 0


class ClaimStatus(NamedTuple):
    """A status: counts against the purchase, is final as lost, is one that we know."""

    counts: bool
    lost: bool
    known: bool


def refund_status(status: str) -> ClaimStatus:
    """Return what a refund's status means: it counts until it fails; an unknown one counts (and is reported)."""
    return ClaimStatus(REFUND_COUNTS.get(status, True), lost=False, known=status in REFUND_COUNTS)


def dispute_status(status: str) -> ClaimStatus:
    """Return what a dispute's status means: it counts while open and when lost; an unknown one too, reported."""
    known = status in DISPUTE_OPEN | DISPUTE_RELEASED | DISPUTE_LOST or status.startswith("appeal_")
    return ClaimStatus(status not in DISPUTE_RELEASED, lost=status in DISPUTE_LOST, known=known)


def share(whole: Whole, cents: int) -> Parts:
    """Return what of the purchase `cents` (cumulative) take back. The whole total takes exactly the whole.

    paid + tax is exactly the cents, tax to the nearest of them; the bonus is rounded down, for the customer, and what
    of it expired is not taken once more.
    """
    sums = whole.paid + whole.tax == whole.total_cents * MILLICREDITS_PER_CENT
    if whole.total_cents < 1 or not sums or whole.tax % MILLICREDITS_PER_CENT:
        raise InvariantBroken("the parts of a purchase do not sum to what was paid")
    counted = min(max(cents, 0), whole.total_cents)
    tax_cents = whole.tax // MILLICREDITS_PER_CENT
    tax = (2 * tax_cents * counted + whole.total_cents) // (2 * whole.total_cents) * MILLICREDITS_PER_CENT
    bonus = min(whole.bonus * counted // whole.total_cents, whole.bonus - whole.expired)
    return Parts(counted * MILLICREDITS_PER_CENT - tax, bonus, tax)


def cents_within(whole: Whole, before: int, left: int) -> int:
    """Return the most cents that a refund may have, `before` cents having gone, to take back at most so many
    millicredits.
    """
    least, most = 0, max(0, whole.total_cents - before)
    start = share(whole, before)
    while least < most:
        middle = (least + most + 1) // 2
        taken = share(whole, before + middle)
        fits = taken.paid + taken.bonus - start.paid - start.bonus <= left
        least, most = (middle, most) if fits else (least, middle - 1)
    return least


def allocate(whole: Whole, claims: Sequence[Claim]) -> list[Parts]:
    """Return what each claim takes, in the order of their arrival."""
    found, so_far, before = [], 0, share(whole, 0)
    for claim in claims:
        if not claim.counts:
            found.append(NOTHING)
            continue
        so_far += claim.cents
        after = share(whole, so_far)
        mine = Parts(after.paid - before.paid, after.bonus - before.bonus, after.tax - before.tax)
        if claim.kind == "refund":
            mine = mine._replace(loss=claim.cents * MILLICREDITS_PER_CENT - mine.paid - mine.tax)
        found.append(mine)
        before = after
    return found


def clearing(claim: Claim, parts: Parts) -> int:
    """Return the millicredits that must leave `disputes` for a lost dispute so that it ends at zero.

    Negative = more was withdrawn than taken back.
    """
    return parts.paid + parts.tax - claim.withdrawn if claim.lost else 0


def claim_postings(claim: Claim, parts: Parts, account_id: str, version: int, created_at: int) -> list[Posting]:
    """Return the transfers that take a claim from what is booked to `parts`. `version` makes their reference unique."""
    reference = (claim.kind, f"{claim.claim_id}:{version}")
    who, booked = customer(account_id), claim.booked
    change = Parts(*(new - old for new, old in zip(parts, booked, strict=True)))
    other = CASH if claim.kind == "refund" else DISPUTES
    rows = signed(who, other, change.paid, claim.kind, reference, created_at)
    rows += signed(who, PROMO, change.bonus, f"{claim.kind}_bonus", reference, created_at)
    rows += signed(TAX, other, change.tax, f"{claim.kind}_tax", reference, created_at)
    rows += signed(PLATFORM_LOSS, CASH, change.loss, "refund_loss", reference, created_at)
    rows += _clearing_postings(claim, clearing(claim, parts), reference, created_at)
    return rows


def _clearing_postings(claim: Claim, target: int, reference: tuple[str, str], created_at: int) -> list[Posting]:
    """Return postings to `target`: positive is cash we have yet to lose, negative is lost beyond the purchase."""
    cash = max(target, 0) - max(claim.cleared, 0)
    loss = max(-target, 0) - max(-claim.cleared, 0)
    rows = signed(DISPUTES, CASH, cash, "dispute_cleared", reference, created_at)
    return rows + signed(PLATFORM_LOSS, DISPUTES, loss, "dispute_loss", reference, created_at)
