"""Margins of packages: what each leaves when all its credits are used, at the prices in force. Pure.

    left = price - Stripe's fee - OpenAI's price of what its credits buy

A credit is a thousandth of a dollar of what customers are charged, so credits cost us their face value divided by the
markup; the model with the lowest markup is the worst that can be bought with all of them. A bonus comes on top.
"""

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from billing.money.catalogue.models import Model, Tier
from billing.money.model_rates import ModelRates
from billing.money.pricing import PriceBook
from billing.payments.purchase import MILLICREDITS_PER_CENT, Offer

FEE_PERMILLE, FEE_CENTS = 29, 30
"""Stripe's list price of a card payment in the US: 2.9 % and $0.30. Yours may be another."""
FEES = "Stripe's 2.9 % + $0.30"
RATES = tuple(name for name in ModelRates.__struct_fields__ if name not in ("tier", "context", "snapshot"))


class Cheapest(NamedTuple):
    """The model on which customers pay least of its cost, and how many times the cost that is."""

    model: str
    markup: Fraction


class PackageMargin(NamedTuple):
    """A package, and the part of its price that is left in the worst case, in per cent (None: nothing is charged)."""

    code: str
    percent: Fraction | None

    def __str__(self) -> str:
        """For people."""
        return f"{self.code} leaves {self.percent_text}"

    @property
    def percent_text(self) -> str:
        """The percentage with one decimal."""
        return "nothing" if self.percent is None else f"{_decimal(self.percent):.1f} %"


def cheapest(book: PriceBook) -> Cheapest | None:
    """Return the worst model of a price book; None when it has none."""
    found = [Cheapest(name, _markup(model)) for name in book.names() if (model := book.find(name)) is not None]
    return min(found, key=lambda one: (one.markup, one.model), default=None)


def package_margins(offers: Iterable[Offer], markup: Fraction) -> list[PackageMargin]:
    """Return what each package leaves when its credits are used at so many times the cost."""
    found = []
    for one in offers:
        fee = Fraction(one.price_cents * FEE_PERMILLE, 1_000) + FEE_CENTS
        face = Fraction(one.paid + one.bonus, MILLICREDITS_PER_CENT)
        left = one.price_cents - fee - face / markup if markup else None
        found.append(PackageMargin(one.code, None if left is None else 100 * left / one.price_cents))
    return found


def selling_below(book: PriceBook, offers: Iterable[Offer], target_percent: int = 0) -> tuple[str, bool]:
    """Return what each package leaves by this book in words, and whether one leaves less than the target."""
    worst = cheapest(book)
    if worst is None:
        return "nothing is priced", False
    margins = package_margins(offers, worst.markup)
    words = ", ".join(map(str, margins)) or "no package is sold"
    below = any(one.percent is None or one.percent < target_percent for one in margins) or worst.markup < 1
    where = f"at {_decimal(worst.markup):.6g} times the cost ({worst.model}, the lowest), after {FEES}"
    return f"{words}, {where}", below


def _decimal(value: Fraction) -> Decimal:
    """Return a fraction for people to read: money meets no float, not even in words."""
    return Decimal(value.numerator) / value.denominator


def _markup(model: Model) -> Fraction:
    """Return how many times their cost a model's rates are sold for at least, in any tier."""
    found = [] if model.tiers.keys() <= model.sale.keys() else [model.markup]
    for name, own in model.tiers.items():
        sold = model.sale.get(name)
        for cost, price in _pairs(own, sold) if sold is not None else []:
            found += [Fraction(getattr(price, rate), getattr(cost, rate)) for rate in RATES if getattr(cost, rate)]
    return min(found, default=model.markup)


def _pairs(own: Tier, sold: Tier) -> list[tuple[ModelRates, ModelRates]]:
    """Return what each context length costs, with what it is sold for."""
    found = [(own.short, sold.short)]
    if own.long is not None:
        found.append((own.long, sold.long or sold.short))
    return found
