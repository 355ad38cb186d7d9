"""Models of a rate card's rows, sold as the card's own prices say."""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import msgspec

from billing.money.catalogue.models import SEARCH, STORAGE, Model, Tier, is_priced
from billing.money.model_rates import Adjustment, ModelRates, adjusted, complete_prices, model_rates

Row = Mapping[str, Any]
NO_MODEL: Row = {
    "mode": "service",
    "endpoints": (),
    "reasoning": False,
    "contextWindow": None,
    "maxInputTokens": None,
    "maxOutputTokens": None,
    "rates": {},
}


class CardModels:
    """Makes the models of a card."""

    def __init__(self, catalogue: Row, markup: str, adjustment: Adjustment) -> None:
        """`markup`: of models for which the card's `prices` have no other; see PriceBook."""
        sale = catalogue.get("prices", {})
        self.markup: str = sale.get("markup", markup)
        self._rules: Mapping[str, Any] = sale.get("models", {})
        self._rows: Row = catalogue["models"]
        self._card_id: str = catalogue["catalogueId"]
        self._adjustment = adjustment

    def models(self) -> dict[str, Model]:
        """Every model that has a price. Raises InvariantBroken for a price that cannot be exact."""
        return {name: self._model(name, row) for name, row in self._rows.items() if is_priced(row)}

    def services(self) -> dict[str, Model]:
        """Return what stands for a model where none is at work."""
        return {name: self._model(name, NO_MODEL) for name in (SEARCH, STORAGE)}

    def _model(self, name: str, row: Mapping[str, Any]) -> Model:
        rule: Mapping[str, Any] = next(
            (rule for pattern, rule in self._rules.items() if fnmatchcase(name, pattern)), {}
        )
        markup, factor = rule.get("markup", self.markup), self._adjustment.of(name)
        explicit = _completed(rule.get("rates", {}), row["rates"], factor, Fraction(Decimal(markup)))
        return Model(
            name=name,
            mode=row["mode"],
            endpoints=frozenset(row["endpoints"]),
            reasoning=row["reasoning"],
            context_window=row["contextWindow"],
            max_input_tokens=row["maxInputTokens"],
            max_output_tokens=row["maxOutputTokens"],
            searches_each_call=row.get("webSearchIncluded", False),
            tiers=self._tiers(row, row["rates"], markup, explicit, factor),
            markup=Fraction(Decimal(markup)),
            sale=self._tiers(row, explicit, markup, {}) if "rates" in rule else {},
            ends=date.fromisoformat(row["ends"]) if row.get("ends") is not None else None,
            successor=row.get("successor") or "",
        )

    def _tiers(self, row: Row, rates: Row, markup: str, explicit: Row, factor: Decimal | int = 1) -> dict[str, Tier]:
        units = adjusted({name: row[name] for name in ("per_second", "per_character") if name in row}, factor)
        units |= {"web_search": row["per_call"]["web_search"]} if "web_search" in row.get("per_call", {}) else {}
        tiers = {}
        for tier, block in (rates or {"default": {"short": {}}}).items():
            cards: dict[str, ModelRates] = {}
            for context, parts in block.items():
                sold = explicit.get(tier, {})
                shown = (
                    {"markup": markup}
                    if tier not in explicit
                    else {"customerUsdPerMillionTokens": sold.get(context, sold["short"])}
                )
                cards[context] = self._card(tier, context, adjusted(parts, factor), units, shown)
            tiers[tier] = Tier(cards["short"], cards.get("long"))
        return tiers

    def _card(
        self, tier: str, context: str, rates: Mapping[str, str], units: Mapping[str, str], sold: Mapping[str, Any]
    ) -> ModelRates:
        snapshot = {
            "rateCardId": self._card_id,
            "tier": tier,
            "context": context,
            "usdPerMillionTokens": dict(rates),
            "usdPerUnit": dict(units),
            **sold,
        }
        return model_rates(tier, context, rates, units, msgspec.Raw(msgspec.json.encode(snapshot)))


def _completed(explicit: Row, rates: Row, factor: Decimal | int, markup: Fraction) -> dict[str, dict[str, Row]]:
    """Return explicit sale prices with what they leave out (see `complete_prices`)."""
    found: dict[str, dict[str, Row]] = {}
    for tier, block in explicit.items():
        costs = rates.get(tier, {"short": {}})
        found[tier] = {
            context: complete_prices(parts, adjusted(costs.get(context, costs["short"]), factor), markup)
            for context, parts in block.items()
        }
    return found
