"""Usage → money, exactly. Prices are USD per 1,000,000 tokens, which is millicredits per token.

Every rate becomes an integer of 10**-15 millicredits when the book is built (the catalogue has at most 12
decimals for a million tokens and 15 for a second), so a charge is integer sums and one division, rounded up
once. Rules and their sources: docs/openai.md#price-formula, #service-tiers, #hosted-tools.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from importlib.resources import files
from typing import Any, NamedTuple, NoReturn

import msgspec

from billing.money.amounts import Millicredits, RoundingMode, round_up
from billing.money.errors import InvariantBroken, UnpricedModel
from billing.money.model_rates import PER_UNIT, SCALE, ModelRates, exact_rate, model_rates, scaled_cost
from billing.money.usage import MAX_TOKENS, Usage

LONG_CONTEXT_TOKENS = 272_000
"""Above this many input tokens the whole request costs the long rates; exactly this many is still short."""

TIER_OF_ECHO = {"default": "default", "standard": "default", "auto": "default", "fast": "priority"}
DATED = re.compile(r"^(.+)-\d{4}-\d{2}-\d{2}$")


class Tier(NamedTuple):
    """One service tier: the usual card, and the one for long context where the model has one."""

    short: ModelRates
    long: ModelRates | None

    def card(self, input_tokens: int) -> ModelRates:
        """Return the card that a request with that much input is priced by."""
        return self.long if self.long is not None and input_tokens > LONG_CONTEXT_TOKENS else self.short


class Model(NamedTuple):
    """A model that can be sold: what it costs us (`tiers`), what customers pay, and what bounds it.

    Customers pay `markup` times the cost, or by `sale` where a tier has explicit prices.
    """

    name: str
    mode: str
    endpoints: frozenset[str]
    reasoning: bool
    context_window: int | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    searches_each_call: bool
    tiers: Mapping[str, Tier]
    markup: Fraction
    sale: Mapping[str, Tier]

    def tier(self, name: str) -> Tier:
        """Return the rates of a service tier. Raises UnpricedModel when this model is not sold in it."""
        found = self.tiers.get(name)
        if found is None:
            raise UnpricedModel(self.name, f"has no price in service tier {name!r}.")
        return found


class Charge(NamedTuple):
    """One request's priced usage in millicredits: what the customer pays, what OpenAI bills us; and by which rates."""

    amount: Millicredits
    cost: Millicredits
    tier: str
    rates: msgspec.Raw


class ModelUsage(NamedTuple):
    """Usage of another model inside a request: an image tool, an SVG author, a transcriber."""

    model: Model
    tier: str
    usage: Usage


class Bounds(NamedTuple):
    """Upper bounds of one request: tokens (audio input is a part of input), calls, milliseconds, characters.

    `more` are the bounds of other models that hosted tools may call.
    """

    input_tokens: int
    output_tokens: int
    audio_input_tokens: int = 0
    audio_output: bool = False
    cache_write_12h: bool = False
    web_searches: int = 0
    milliseconds: int = 0
    characters: int = 0
    calls: tuple[tuple[str, int], ...] = ()
    more: tuple[tuple[Model, str, "Bounds"], ...] = ()


class BookOrigin(NamedTuple):
    """A rate card's id, and the markup and rounding that a book was made with."""

    card_id: str
    markup: str
    rounding: RoundingMode


def family(name: str) -> str:
    """Return the name under which a model's figures are shown: without its date, of a fine-tuned one the base.

    A name that is served is priced by itself or by such a name (PriceBook.find), so there are no more of them than
    priced models, whatever dates and owners clients think of.
    """
    base = f"ft:{name.split(':')[1]}" if name.startswith("ft:") else name
    dated = DATED.match(base)
    return dated[1] if dated else base


class PriceBook:
    """All prices that apply now: a rate card's costs, and what customers pay for them."""

    def __init__(self, catalogue: Mapping[str, Any], markup: str, rounding: RoundingMode) -> None:
        """`catalogue` as in config/prices/catalogue.json; `markup` a decimal string, "1" sells at cost.

        The catalogue may have `prices`: {"markup": "1.2", "models": {GLOB: {"markup": "1.5"} or {"rates": ...}}},
        which then wins over `markup`. Raises InvariantBroken for a price that cannot be exact.
        """
        sale = catalogue.get("prices", {})
        self.catalogue_id: str = catalogue["catalogueId"]
        self.effective_from: str = catalogue["effectiveFrom"]
        self._markup_text: str = sale.get("markup", markup)
        self._rules: Mapping[str, Any] = sale.get("models", {})
        self._rounding: RoundingMode = rounding
        self._calls = {name: exact_rate(price, PER_UNIT) for name, price in catalogue["tools"].items()}
        self._models = {name: self._model(name, row) for name, row in catalogue["models"].items() if is_priced(row)}

    @property
    def origin(self) -> "BookOrigin":
        """The parts that this very book can be made of again."""
        return BookOrigin(self.catalogue_id, self._markup_text, self._rounding)

    def names(self) -> list[str]:
        """Every priced model's name, sorted."""
        return sorted(self._models)

    def find(self, name: str) -> Model | None:
        """Return the model of that name; a dated snapshot falls back to its alias, `ft:` to its base's ft row."""
        model = self._models.get(name)
        if model is None and name.startswith("ft:"):
            base = f"ft:{name.split(':')[1]}"
            dated = DATED.match(base)
            return self._models.get(base) or (self._models.get(dated[1]) if dated else None)
        if model is None and (dated := DATED.match(name)):
            return self._models.get(dated[1])
        return model

    def prices_call(self, name: str) -> bool:
        """Tell whether a hosted tool's call has a price."""
        return name in self._calls

    def call_price(self, name: str) -> int:
        """Return the price of a hosted tool's call, for comparing. Raises UnpricedModel."""
        return self._call(name)

    def price(self, model: Model, tier: str, usage: Usage, more: Sequence[ModelUsage] = ()) -> Charge:
        """Price a normalised usage by the formula of docs/openai.md#price-formula, rounded up once.

        Raises UnpricedModel when the model is not sold in `tier`.
        """
        card = model.tier(tier).card(usage.input_tokens)
        cost = self._cost(card, usage)
        if not more and model.markup == 1 and not model.sale:
            return self._charge(card, cost, None, ())
        due, cards = Fraction(self._due(model, tier, usage, cost)), []
        for line in more:
            other = line.model.tier(line.tier).card(line.usage.input_tokens)
            its_cost = self._cost(other, line.usage)
            cost += its_cost
            due += self._due(line.model, line.tier, line.usage, its_cost)
            cards.append(other)
        return self._charge(card, cost, due, cards)

    def ceiling(self, model: Model, tier: str, bounds: Bounds) -> Charge:
        """Price the most that a request within `bounds` can cost (I2): all at the dearest rate that can apply."""
        card = model.tier(tier).card(bounds.input_tokens)
        cost = self._most(card, bounds)
        if not bounds.more and model.markup == 1 and not model.sale:
            return self._charge(card, cost, None, ())
        due, cards = Fraction(self._most_due(model, tier, bounds, cost)), []
        for other_model, other_tier, other_bounds in bounds.more:
            other = other_model.tier(other_tier).card(other_bounds.input_tokens)
            its_cost = self._most(other, other_bounds)
            cost += its_cost
            due += self._most_due(other_model, other_tier, other_bounds, its_cost)
            cards.append(other)
        return self._charge(card, cost, due, cards)

    def affordable_output(self, model: Model, tier: str, bounds: Bounds, budget: int) -> int:
        """Count the output tokens that fit into `budget` millicredits beside the rest of `bounds` (0 when none do)."""
        low, high = 0, MAX_TOKENS
        if (
            not model.tier(tier).short.output
            or self.ceiling(model, tier, bounds._replace(output_tokens=1)).amount > budget
        ):
            return 0
        while low < high:
            middle = (low + high + 1) // 2
            if self.ceiling(model, tier, bounds._replace(output_tokens=middle)).amount <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def _charge(
        self, card: ModelRates, cost_scaled: int, due_scaled: Fraction | None, more: Sequence[ModelRates]
    ) -> Charge:
        """`due_scaled` None: sold at cost."""
        cost = round_up(cost_scaled, SCALE)
        if due_scaled is None:
            due = cost if self._rounding == "exact" else round_up(cost_scaled, SCALE, self._rounding)
        else:
            due = round_up(due_scaled.numerator, SCALE * due_scaled.denominator, self._rounding)
        rates = card.snapshot
        if more:
            rates = msgspec.Raw(
                msgspec.json.encode({**msgspec.json.decode(rates), "more": [other.snapshot for other in more]})
            )
        return Charge(due, cost, card.tier, rates)

    def _cost(self, card: ModelRates, usage: Usage) -> int:
        scaled = scaled_cost(card, usage)
        for name, number in usage.calls:
            scaled += self._call(name) * number
        return scaled

    def _due(self, model: Model, tier: str, usage: Usage, cost: int) -> Fraction | int:
        explicit = model.sale.get(tier)
        if explicit is None:
            return cost * model.markup
        calls = sum(self._call(name) * number for name, number in usage.calls)
        return scaled_cost(explicit.card(usage.input_tokens), usage) + calls * model.markup

    def _most(self, card: ModelRates, bounds: Bounds) -> int:
        return _scaled_ceiling(card, bounds) + sum(self._call(name) * number for name, number in bounds.calls)

    def _most_due(self, model: Model, tier: str, bounds: Bounds, cost: int) -> Fraction | int:
        explicit = model.sale.get(tier)
        if explicit is None:
            return cost * model.markup
        calls = sum(self._call(name) * number for name, number in bounds.calls)
        return _scaled_ceiling(explicit.card(bounds.input_tokens), bounds) + calls * model.markup

    def _call(self, name: str) -> int:
        rate = self._calls.get(name)
        if rate is None:
            raise UnpricedModel(name, "has no price per call.")
        return rate

    def _model(self, name: str, row: Mapping[str, Any]) -> Model:
        rule: Mapping[str, Any] = next(
            (rule for pattern, rule in self._rules.items() if fnmatchcase(name, pattern)), {}
        )
        markup = rule.get("markup", self._markup_text)
        return Model(
            name=name,
            mode=row["mode"],
            endpoints=frozenset(row["endpoints"]),
            reasoning=row["reasoning"],
            context_window=row["contextWindow"],
            max_input_tokens=row["maxInputTokens"],
            max_output_tokens=row["maxOutputTokens"],
            searches_each_call=row.get("webSearchIncluded", False),
            tiers=self._tiers(row, row["rates"], markup, rule.get("rates", {})),
            markup=Fraction(Decimal(markup)),
            sale=self._tiers(row, rule["rates"], markup, {}) if "rates" in rule else {},
        )

    def _tiers(
        self, row: Mapping[str, Any], rates: Mapping[str, Any], markup: str, explicit: Mapping[str, Any]
    ) -> dict[str, Tier]:
        units = {name: row[name] for name in ("per_second", "per_character") if name in row}
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
                cards[context] = self._card(tier, context, parts, units, shown)
            tiers[tier] = Tier(cards["short"], cards.get("long"))
        return tiers

    def _card(
        self, tier: str, context: str, rates: Mapping[str, str], units: Mapping[str, str], sold: Mapping[str, Any]
    ) -> ModelRates:
        snapshot = {
            "rateCardId": self.catalogue_id,
            "tier": tier,
            "context": context,
            "usdPerMillionTokens": dict(rates),
            "usdPerUnit": dict(units),
            **sold,
        }
        return model_rates(tier, context, rates, units, msgspec.Raw(msgspec.json.encode(snapshot)))


def is_priced(row: Mapping[str, Any]) -> bool:
    """Tell whether a catalogue row has any price to sell by."""
    return bool(row["rates"] or "per_second" in row or "per_character" in row)


def tier_of(echo: str | None, asked: str) -> str:
    """Return the price tier of an echoed `service_tier`; without an echo, the tier that was asked for."""
    if echo is None:
        return asked
    return TIER_OF_ECHO.get(echo, echo)


def load_catalogue() -> dict[str, Any]:
    """Return the shipped price catalogue (strings, never floats)."""
    return read_catalogue(files("config").joinpath("prices/catalogue.json").read_text(encoding="utf-8"))


def read_catalogue(text: str) -> dict[str, Any]:
    """Read a price catalogue from JSON. Raises InvariantBroken for a price that is a number, ValueError for no JSON."""
    catalogue: dict[str, Any] = json.loads(text, parse_float=_refuse_float)
    return catalogue


def _scaled_ceiling(card: ModelRates, bounds: Bounds) -> int:
    dearest_in = max(card.input, card.cache_write_30m, card.image_input)
    if bounds.cache_write_12h:
        dearest_in = max(dearest_in, card.cache_write_12h)
    dearest_out = max(card.output, card.image_output)
    if bounds.audio_output:
        dearest_out = max(dearest_out, card.audio_output)
    return (
        dearest_in * (bounds.input_tokens - bounds.audio_input_tokens)
        + max(dearest_in, card.audio_input) * bounds.audio_input_tokens
        + dearest_out * bounds.output_tokens
        + card.web_search * bounds.web_searches
        + card.millisecond * bounds.milliseconds
        + card.character * bounds.characters
    )


def _refuse_float(text: str) -> NoReturn:
    raise InvariantBroken(f"a price stands as a number, not a string: {text}")
