"""Price plans: how a model is sold to the accounts that have one, instead of at everyone's prices. Pure.

    {"markup": "1.1", "models": {"gpt-6-sol*": {"markup": "1.05"},
                                 "gpt-4.1": {"rates": {"default": {"short": {"input": "1.80", "output": "7.50"}}}}}}

The first pattern that a model's name fits says how it is sold: at a markup on its cost, or at explicit prices (USD per
million tokens) in the tiers that have some, where outputs that have none are sold at the markup. Everything else is
sold at the plan's `markup`; without one, as to everyone. What is billed by the call, the second or the character is
always sold at a markup.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any

import msgspec

from billing.money.amounts import MoneyError
from billing.money.catalogue.models import Model, Tier
from billing.money.model_rates import PER_UNIT, ModelRates, complete_prices, model_rates

PLAN_ID = re.compile(r"^[a-z0-9][a-z0-9_-]{0,39}$")
Markup = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$")]
TokenPrice = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,12})?$")]
Pattern = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,120}$")]
MOST_RULES = 500
PARTS = frozenset(ModelRates.__struct_fields__) - {
    "tier",
    "context",
    "web_search",
    "millisecond",
    "character",
    "snapshot",
}
"""Parts of a token price, as rate cards name them."""
TIERS = frozenset(("default", "flex", "priority", "ultrafast", "batch"))
UNITS = {"per_second": ("millisecond", 1_000), "per_character": ("character", 1), "web_search": ("web_search", 1)}
"""A unit as cards name it → its rate, and how many of what that counts make one."""
PRICES_SHAPE = (
    'prices are written {"markup": "1.1", "models": {"gpt-6*": {"markup": "1.05"}}}: a markup for all, then by model '
    "or pattern a `markup`, or `rates` of its own; every number in quotes, markups with at most 6 decimals"
)


class BadPricePlan(MoneyError):
    """A price plan that must not be used: what is wrong with it, and where."""


class PlanRule(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """How models of one pattern are sold. With `rates`, `markup` is that of calls and units."""

    markup: Markup | None = None
    rates: dict[str, dict[str, dict[str, TokenPrice]]] | None = None


class PlanDocument(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A plan's prices as they are written and kept."""

    markup: Markup | None = None
    models: dict[Pattern, PlanRule] = {}


def read_prices(raw: Any) -> PlanDocument:
    """Return a plan's prices, checked whole. Raises BadPricePlan with the first thing that is wrong."""
    try:
        document = msgspec.convert(raw, PlanDocument)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadPricePlan(f"the prices cannot be read: {error}; {PRICES_SHAPE}") from None
    if document.markup is None and not document.models:
        raise BadPricePlan(f"the plan has no price; {PRICES_SHAPE}")
    if len(document.models) > MOST_RULES:
        raise BadPricePlan(f"a plan names at most {MOST_RULES} models or patterns")
    for pattern, rule in document.models.items():
        if rule.markup is None and rule.rates is None:
            raise BadPricePlan(f"models.{pattern} has neither a markup nor rates")
        check_rates(f"models.{pattern}.rates", rule.rates or {})
    return document


def check_rates(path: str, rates: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
    """Check explicit prices of a pattern, which stand at that path. Raises BadPricePlan."""
    for tier, block in rates.items():
        where = f"{path}.{tier}"
        if tier not in TIERS:
            raise BadPricePlan(f"{where}: there is no such service tier")
        if "short" not in block or block.keys() - {"short", "long"}:
            raise BadPricePlan(f"{where} must have `short`, and may have `long`")
        for context, parts in block.items():
            if parts.keys() - PARTS:
                raise BadPricePlan(f"{where}.{context}: there is no {min(parts.keys() - PARTS)!r} to price")
            if "input" not in parts:
                raise BadPricePlan(f"{where}.{context} lacks a price: `input`")
        short, long = (_rates(tier, block, context) for context in ("short", "long"))
        if any(getattr(long, part) < getattr(short, part) for part in PARTS):
            # what is held for a long request must cover one that turns out short
            raise BadPricePlan(f"{where}.long is cheaper than short: a longer request cannot cost less")


def _rates(tier: str, block: Mapping[str, Mapping[str, str]], context: str) -> ModelRates:
    return model_rates(tier, context, block.get(context, block["short"]), {}, msgspec.Raw(b"{}"))


class PlanPrices:
    """One version of a plan, ready to sell by."""

    def __init__(self, version_id: str, document: PlanDocument) -> None:
        """`version_id` goes into the snapshot of every request that it prices: "gold.2"."""
        self.version_id = version_id
        self._document = document

    def sell(self, model: Model) -> Model:
        """Return the model as the plan sells it."""
        document = self._document
        rule = next((rule for glob, rule in document.models.items() if fnmatchcase(model.name, glob)), PlanRule())
        # explicit prices of a rule without a markup are beside the plan's own, and without that beside everyone's
        markup = rule.markup or document.markup
        if markup is None and rule.rates is None:
            return self._named(model)
        ratio = model.markup if markup is None else Fraction(Decimal(markup))
        sale = {
            name: _sold(tier, rule.rates[name], ratio)
            for name, tier in model.tiers.items()
            if rule.rates is not None and name in rule.rates
        }
        tiers = {name: self._priced(tier, sale.get(name), ratio) for name, tier in model.tiers.items()}
        return model._replace(markup=ratio, sale=sale, tiers=tiers)

    def _named(self, model: Model) -> Model:
        """Return a model that is sold as to everyone, by this plan."""

        def named(rates: ModelRates) -> ModelRates:
            return rates._replace(snapshot=_written({**_read(rates), "pricePlan": self.version_id}))

        return model._replace(
            tiers={
                name: Tier(named(tier.short), None if tier.long is None else named(tier.long))
                for name, tier in model.tiers.items()
            }
        )

    def _priced(self, tier: Tier, sold: Tier | None, markup: Fraction) -> Tier:
        """Return what a tier costs, with a snapshot that says how it is sold."""

        def priced(cost: ModelRates, price: ModelRates | None) -> ModelRates:
            snapshot = _read(cost)
            snapshot.pop("customerUsdPerMillionTokens", None)
            snapshot |= {"markup": _text(markup), "pricePlan": self.version_id}
            if price is not None:
                shown = _read(price)
                snapshot["customerUsdPerMillionTokens"] = shown["usdPerMillionTokens"]
                snapshot["customerUsdPerUnit"] = shown["usdPerUnit"]
            return cost._replace(snapshot=_written(snapshot))

        long = None if tier.long is None else priced(tier.long, None if sold is None else sold.long)
        return Tier(priced(tier.short, None if sold is None else sold.short), long)


class PlannedModels(Mapping[str, Model]):
    """Models as a plan sells them, each made when it is first asked for: a card has hundreds, an account uses a few."""

    def __init__(self, models: Mapping[str, Model], plan: PlanPrices) -> None:
        """`models`: as everyone buys them."""
        self._models, self._plan = models, plan
        self._made: dict[str, Model] = {}

    def __getitem__(self, name: str) -> Model:
        """Return the model of that name. Raises KeyError."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = self._plan.sell(self._models[name])
        return found

    def __iter__(self) -> Iterator[str]:
        """Walk over the names."""
        return iter(self._models)

    def __len__(self) -> int:
        """Count the models."""
        return len(self._models)


def _sold(tier: Tier, block: Mapping[str, Mapping[str, str]], markup: Fraction) -> Tier:
    """Return explicit prices of a tier, with its units at the markup."""

    def sold(cost: ModelRates, context: str) -> ModelRates:
        parts = complete_prices(block.get(context, block["short"]), _read(cost)["usdPerMillionTokens"], markup)
        rates = model_rates(cost.tier, context, parts, {}, msgspec.Raw(b"{}"))
        units, shown = {}, {}
        for unit, (rate, number) in UNITS.items():
            if its := getattr(cost, rate):
                units[rate] = -(-its * markup.numerator // markup.denominator)  # exact, but for absurd decimals
                shown[unit] = _text(Fraction(units[rate] * number, PER_UNIT))
        snapshot = _written({"usdPerMillionTokens": parts, "usdPerUnit": shown})
        return rates._replace(**units, snapshot=snapshot)

    return Tier(sold(tier.short, "short"), None if tier.long is None else sold(tier.long, "long"))


def _read(rates: ModelRates) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(rates.snapshot)
    return found


def _written(snapshot: Mapping[str, Any]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(snapshot))


def _text(value: Fraction) -> str:
    """Return a fraction that has an end in decimals as decimals."""
    return format((Decimal(value.numerator) / value.denominator).normalize(), "f")
