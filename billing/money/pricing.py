"""Usage → money, exactly. Prices are USD per 1,000,000 tokens, which is millicredits per token.

Every rate becomes an integer of 10**-15 millicredits when the book is built (the catalogue has at most 12
decimals for a million tokens and 15 for a second), so a charge is integer sums and one division, rounded up
once. Rules and their sources: docs/openai.md#price-formula, #service-tiers, #hosted-tools.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.resources import files
from typing import Any, NamedTuple, NoReturn

import msgspec

from billing.money.amounts import Millicredits, RoundingMode, round_up
from billing.money.catalogue.from_card import CardModels
from billing.money.catalogue.models import DATED, LONG_CONTEXT_TOKENS, Model, Tier
from billing.money.catalogue.price_plan import PlannedModels, PlanPrices
from billing.money.errors import InvariantBroken, UnpricedModel
from billing.money.model_rates import (
    AS_LISTED,
    SCALE,
    Adjustment,
    ModelRates,
    call_rate,
    customer_price,
    scaled_cost,
)
from billing.money.usage import MAX_TOKENS, Usage, Value

Row = Mapping[str, Any]
TIER_OF_ECHO = {"default": "default", "standard": "default", "auto": "default", "fast": "priority"}


class Charge(Value, frozen=True):
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


class Bounds(Value, frozen=True):
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
    """A rate card's id, and the markup, rounding and adjustment that a book was made with.

    `plan`: the version of the price plan that it sells by; "" = everyone's prices.
    """

    card_id: str
    markup: str
    rounding: RoundingMode
    adjustment: Adjustment = AS_LISTED
    plan: str = ""


class PriceBook:
    """All prices that apply now: a rate card's costs, and what customers pay for them."""

    def __init__(self, catalogue: Row, markup: str, rounding: RoundingMode, adjustment: Adjustment = AS_LISTED) -> None:
        """`catalogue` as in config/prices/catalogue.json; `markup` a decimal string, "1" sells at cost; `adjustment`
        of the upstream that these are the prices of, which leaves prices per call as they are.

        The catalogue may have `prices`: {"markup": "1.2", "models": {GLOB: {"markup": "1.5"} or {"rates": ...}}},
        which then wins over `markup`. Raises InvariantBroken for a price that cannot be exact.
        """
        made = CardModels(catalogue, markup, adjustment)
        self.catalogue_id: str = catalogue["catalogueId"]
        self.effective_from: str = catalogue["effectiveFrom"]
        self.plan_id = ""
        """Version of the price plan that it sells by; "" = everyone's prices."""
        self._markup_text = made.markup
        self._rounding: RoundingMode = rounding
        self._adjustment = adjustment
        self._calls = {name: call_rate(name, price) for name, price in catalogue["tools"].items()}
        self._shown: dict[tuple[str, str], msgspec.Raw] = {}
        """What customers are shown of a model's price in a tier: made once, as lists of models are asked for often."""
        self._models: Mapping[str, Model] = made.models()
        self._services: Mapping[str, Model] = made.services()

    def under(self, plan: PlanPrices) -> "PriceBook":
        """Return these costs as a price plan sells them; its models are made as they are asked for."""
        book = copy.copy(self)
        book._sell_by(plan)  # noqa: SLF001 - a copy of its own
        return book

    def _sell_by(self, plan: PlanPrices) -> None:
        self.plan_id, self._shown = plan.version_id, {}
        self._models = PlannedModels(self._models, plan)
        self._services = PlannedModels(self._services, plan)

    @property
    def origin(self) -> "BookOrigin":
        """The parts that this very book can be made of again."""
        return BookOrigin(self.catalogue_id, self._markup_text, self._rounding, self._adjustment, self.plan_id)

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

    def service(self, name: str) -> Model:
        """Return what stands for a model where none is at work: SEARCH, STORAGE. Only its calls cost, with markup."""
        return self._services[name]

    def customer_price(self, model: Model, tier: str) -> msgspec.Raw:
        """Return what customers pay for a model in a tier, in credits, as JSON for display."""
        shown = self._shown.get((model.name, tier))
        if shown is None:
            sold = model.sale.get(tier)
            card, markup = (model.tier(tier), model.markup) if sold is None else (sold, Fraction(1))
            shown = self._shown[model.name, tier] = customer_price(tier, card.short, card.long, markup)
        return shown

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
        if not more and not model.sale:
            return self._marked_up(card, cost, model.markup)
        due, cards = Fraction(self._due(model, tier, usage, cost)), []
        for line in more:
            other = line.model.tier(line.tier).card(line.usage.input_tokens)
            its_cost = self._cost(other, line.usage)
            cost += its_cost
            due += self._due(line.model, line.tier, line.usage, its_cost)
            cards.append(other)
        return self._charge(card, cost, due, cards)

    def running(self) -> "RunningCharge":
        """Begin a charge that is added up line by line and rounded once at its end."""
        return RunningCharge(self)

    def exact(self, line: ModelUsage) -> tuple[ModelRates, int, Fraction | int]:
        """(card, cost, due) of one model's usage in 10**-15 millicredits, not rounded. Raises UnpricedModel."""
        card = line.model.tier(line.tier).card(line.usage.input_tokens)
        cost = self._cost(card, line.usage)
        return card, cost, self._due(line.model, line.tier, line.usage, cost)

    def rounded(self, cards: Sequence[ModelRates], cost: int, due: Fraction) -> Charge:
        """Round sums of `exact` up, once; the first card gives the tier, all of them the snapshot."""
        return self._charge(cards[0], cost, due, cards[1:])

    def ceiling(self, model: Model, tier: str, bounds: Bounds) -> Charge:
        """Price the most that a request within `bounds` can cost (I2): all at the dearest rate that can apply."""
        rates = model.tier(tier)
        card, cost = rates.card(bounds.input_tokens), self._most(rates, bounds)
        if not bounds.more and not model.sale:
            return self._marked_up(card, cost, model.markup)
        due, cards = Fraction(self._most_due(model, tier, bounds, cost)), []
        for other_model, other_tier, other_bounds in bounds.more:
            its_rates = other_model.tier(other_tier)
            other, its_cost = its_rates.card(other_bounds.input_tokens), self._most(its_rates, other_bounds)
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

    def _marked_up(self, card: ModelRates, cost_scaled: int, markup: Fraction) -> Charge:
        """Charge of one model that is sold at a markup. As integers: a Fraction costs microseconds, and each request
        is priced four times.
        """
        times, parts = markup.as_integer_ratio()
        cost = round_up(cost_scaled, SCALE)
        if times == parts and self._rounding == "exact":
            return Charge(cost, cost, card.tier, card.snapshot)
        return Charge(round_up(cost_scaled * times, SCALE * parts, self._rounding), cost, card.tier, card.snapshot)

    def _charge(self, card: ModelRates, cost_scaled: int, due_scaled: Fraction, more: Sequence[ModelRates]) -> Charge:
        due = round_up(due_scaled.numerator, SCALE * due_scaled.denominator, self._rounding)
        rates = card.snapshot
        if more:
            rates = msgspec.Raw(
                msgspec.json.encode({**msgspec.json.decode(rates), "more": [other.snapshot for other in more]})
            )
        return Charge(due, round_up(cost_scaled, SCALE), card.tier, rates)

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

    def _most(self, rates: Tier, bounds: Bounds) -> int:
        scaled = _dearest(rates, bounds)
        for name, number in bounds.calls:
            scaled += self._call(name) * number
        return scaled

    def _most_due(self, model: Model, tier: str, bounds: Bounds, cost: int) -> Fraction | int:
        explicit = model.sale.get(tier)
        if explicit is None:
            return cost * model.markup
        calls = sum(self._call(name) * number for name, number in bounds.calls)
        return _dearest(explicit, bounds) + calls * model.markup

    def _call(self, name: str) -> int:
        rate = self._calls.get(name)
        if rate is None:
            raise UnpricedModel(name, "has no price per call.")
        return rate


class RunningCharge:
    """Charge of many answers of one kind, each priced by its own card: sums in 10**-15 millicredits, rounded once."""

    def __init__(self, prices: PriceBook) -> None:
        """Start with nothing."""
        self._prices = prices
        self._cost, self._plain, self._due = 0, 0, Fraction(0)
        self._cards: dict[bytes, ModelRates] = {}

    def add(self, line: ModelUsage) -> None:
        """Add the usage of one answer. Raises UnpricedModel."""
        card, cost, due = self._prices.exact(line)
        self._cost, self._due = self._cost + cost, self._due + due
        self._plain += scaled_cost(card, line.usage)  # calls have one price, whatever the card
        self._cards[bytes(card.snapshot)] = card

    def charge(self, total: Usage) -> Charge | None:
        """Round what was added; None when nothing was.

        `total` is what its row says. Where that cannot be priced again, because several cards were used or a report
        contradicted itself, the snapshot has a second card.
        """
        cards = list(self._cards.values())
        if not cards:
            return None
        if len(cards) == 1 and scaled_cost(cards[0], total) != self._plain:
            cards *= 2
        return self._prices.rounded(cards, self._cost, self._due)


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


def _dearest(rates: Tier, bounds: Bounds) -> int:
    """Cost at most of a request that is held for as a long one and may turn out short, whichever is dearer there."""
    most = _scaled_ceiling(rates.card(bounds.input_tokens), bounds)
    if rates.long is not None and bounds.input_tokens > LONG_CONTEXT_TOKENS:
        most = max(most, _scaled_ceiling(rates.short, bounds))
    return most


def _scaled_ceiling(card: ModelRates, bounds: Bounds) -> int:
    dearest_in = max(  # a price list of somebody's may sell what was cached above what was not
        card.input, card.cached_input, card.cache_write_30m, card.image_input, card.cached_image_input
    )
    if bounds.cache_write_12h:
        dearest_in = max(dearest_in, card.cache_write_12h)
    dearest_out = max(card.output, card.image_output)
    if bounds.audio_output:
        dearest_out = max(dearest_out, card.audio_output)
    return (
        dearest_in * (bounds.input_tokens - bounds.audio_input_tokens)
        + max(dearest_in, card.audio_input, card.cached_audio_input) * bounds.audio_input_tokens
        + dearest_out * bounds.output_tokens
        + card.web_search * bounds.web_searches
        + card.millisecond * bounds.milliseconds
        + card.character * bounds.characters
    )


def _refuse_float(text: str) -> NoReturn:
    raise InvariantBroken(f"a price stands as a number, not a string: {text}")
