"""Buying for any amount of dollars, within the operator's bounds."""

from fractions import Fraction
from typing import Any

from billing.money.amounts import MoneyError, decimal_of
from billing.payments.purchase import Offer, offer_of_amount
from config.settings import Purchases
from proxy.web.rejections import invalid


def amount_bounds(sold: Purchases) -> dict[str, Any] | None:
    """Return between which amounts may be bought, and at which price; None: packages only."""
    if not Fraction(sold.amount_max_usd):
        return None
    return {
        "minUsd": sold.amount_min_usd,
        "maxUsd": sold.amount_max_usd,
        "usdPer1000Credits": sold.usd_per_1000_credits,
    }


def offer_for_usd(sold: Purchases, usd: str) -> Offer:
    """Return the credits that so many dollars buy. Raises Rejection."""
    least, most = Fraction(sold.amount_min_usd), Fraction(sold.amount_max_usd)
    if not most:
        raise invalid("Only packages are sold here: name a `packageCode`.", "usd")
    try:
        dollars = decimal_of(usd.removeprefix("$"), "dollars")
    except MoneyError as error:
        raise invalid(f"`usd` is not an amount: {error}", "usd") from None
    cents = dollars * 100
    if cents.denominator != 1 or not least <= dollars <= most:
        words = f"dollars and cents, from {sold.amount_min_usd} to {sold.amount_max_usd}"
        raise invalid(f"`usd` must be {words}.", "usd")
    return offer_of_amount(cents.numerator, sold.usd_per_1000_credits)
