"""The terms of an automatic recharge: what one payment costs and brings, as its owner consented to it. Pure.

A package is a name whose price can change. What was agreed is kept beside the name; a dearer package, or one with fewer
credits for the money, is not charged before it is agreed to again. A cheaper one is: nobody pays more than they said.
"""

from typing import NamedTuple

from billing.money.amounts import written_credits, written_usd
from billing.payments.purchase import MILLICREDITS_PER_CENT, Offer
from billing.payments.recharge.rows import Recharge

LINK_MS = 23 * 3_600_000
"""Payment pages close after a day: an older link to one is not shown."""
NO_CARD = "There is no saved card any more: buy once and save it."


class Terms(NamedTuple):
    """Cents that one payment costs, millicredits that it brings, and whether tax comes on top of the price."""

    price_cents: int
    millicredits: int
    taxed: bool = False

    @property
    def words(self) -> str:
        """The terms as a customer reads them."""
        dollars = written_usd(self.price_cents * MILLICREDITS_PER_CENT)
        return f"{written_credits(self.millicredits)} credits for ${dollars}{' plus tax' if self.taxed else ''}"


class RechargeBounds(NamedTuple):
    """The operator's own bounds of what one account pays by itself, whatever it allows: cents a UTC month, payments
    within an hour.
    """

    month_cents: int = 2**53
    hour_payments: int = 2**53


UNBOUNDED = RechargeBounds()


class Standing(NamedTuple):
    """State of a recharge as its owner is told it, whatever has been tried so far."""

    state: str
    message: str
    action_url: str = ""


def terms_of(offer: Offer) -> Terms:
    """Return the terms of a package as it is sold now."""
    return Terms(offer.price_cents, offer.paid + offer.bonus, offer.taxed)


def objection(row: Recharge, offer: Offer | None) -> str:
    """Return why today's package may not be charged by what was agreed; "" when it may."""
    if offer is None:
        return f"The package {row.package_code!r} is not on sale any more: choose another."
    now = terms_of(offer)
    if row.agreed_price_cents is None or row.agreed_millicredits is None:
        return f"Please confirm the price of automatic recharge: {now.words}."
    agreed = Terms(row.agreed_price_cents, row.agreed_millicredits, row.agreed_tax)
    fewer = now.millicredits * agreed.price_cents < agreed.millicredits * now.price_cents
    if now.price_cents > agreed.price_cents or fewer or (now.taxed and not agreed.taxed):
        return f"The price changed from {agreed.words} to {now.words}: please confirm it, nothing is charged before."
    return ""


def standing(row: Recharge | None, offer: Offer | None, now: int, *, has_card: bool = True) -> Standing:
    """Return where a recharge stands now: one that could not fire says why before it has to (`now`: Unix ms)."""
    if row is None:
        return Standing("ready", "")
    url = row.action_url if row.updated_at > now - LINK_MS else ""
    if row.enabled and row.state in ("ready", "waiting", "ceiling"):
        problem = objection(row, offer)
        if problem:
            return Standing("stopped", problem)
        if not has_card:
            return Standing("action_needed", NO_CARD)
    return Standing(row.state, row.message, url)
