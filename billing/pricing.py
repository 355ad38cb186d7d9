"""Usage → money, exactly. Prices are USD per 1,000,000 tokens, which is millicredits per token.

Every rate becomes an integer of 10**-12 millicredits when the book is built (the catalogue has at most
12 decimals), so a charge is integer sums and one division, rounded up once. Rules and their sources:
openai/README.md 2.1 (formula), 2.2 (tiers), 4 (prices).
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from typing import Any, NamedTuple, NoReturn

import msgspec

from billing.errors import InvariantBroken, UnpricedModel
from billing.money import MILLICREDITS_PER_USD, Millicredits, RoundingMode, round_up
from billing.usage import MAX_TOKENS, Usage

SCALE = 10**12
LONG_CONTEXT_TOKENS = 272_000
"""Above this many input tokens the whole request costs the long rates; exactly this many is still short."""

CACHE_WRITE_30M_FACTOR = Fraction(5, 4)
CACHE_WRITE_12H_FACTOR = Fraction(5, 2)
TIER_OF_ECHO = {"default": "default", "standard": "default", "auto": "default", "fast": "priority"}
DATED = re.compile(r"^(.+)-\d{4}-\d{2}-\d{2}$")


class Card(NamedTuple):
    """The rates of one model, tier and context length, in 10**-12 millicredits per token (or per call)."""

    tier: str
    context: str
    input: int
    cached_input: int
    cache_write_30m: int
    cache_write_12h: int
    output: int
    audio_input: int
    cached_audio_input: int
    audio_output: int
    image_input: int
    web_search: int
    snapshot: msgspec.Raw


class Tier(NamedTuple):
    """One service tier: the usual card, and the one for long context where the model has one."""

    short: Card
    long: Card | None


class Model(NamedTuple):
    """A model that can be sold: what it costs and what bounds it."""

    name: str
    mode: str
    endpoints: frozenset[str]
    reasoning: bool
    context_window: int | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    searches_each_call: bool
    tiers: Mapping[str, Tier]

    def tier(self, name: str) -> Tier:
        """The rates of a service tier. Raises UnpricedModel when this model is not sold in it."""
        found = self.tiers.get(name)
        if found is None:
            raise UnpricedModel(self.name, f"has no price in service tier {name!r}.")
        return found


class Charge(NamedTuple):
    """One request's priced usage: what the customer pays and what OpenAI bills us, in millicredits."""

    amount: Millicredits
    cost: Millicredits
    card: Card


class PriceBook:
    """All prices that apply now: the catalogue's costs times the operator's markup."""

    def __init__(self, catalogue: Mapping[str, Any], markup: str, rounding: RoundingMode) -> None:
        """`catalogue` as in config/prices/catalogue.json; `markup` a decimal string, "1" sells at cost."""
        self.catalogue_id: str = catalogue["catalogueId"]
        self._markup = Fraction(Decimal(markup))
        self._markup_text = markup
        self._at_cost = self._markup == 1 and rounding == "exact"
        self._rounding: RoundingMode = rounding
        self._models = {name: self._model(name, row) for name, row in catalogue["models"].items() if row["rates"]}

    def names(self) -> list[str]:
        """Every priced model's name, sorted."""
        return sorted(self._models)

    def find(self, name: str) -> Model | None:
        """The model of that name; a dated snapshot falls back to its alias, `ft:` to its base's ft row."""
        model = self._models.get(name)
        if model is None and name.startswith("ft:"):
            base = name.split(":")[1]
            return self._models.get(f"ft:{base}")
        if model is None and (dated := DATED.match(name)):
            return self._models.get(dated[1])
        return model

    def price(self, model: Model, tier: str, usage: Usage) -> Charge:
        """Price a normalised usage by the formula of openai/README.md 2.1, rounded up once.

        Raises UnpricedModel when the model is not sold in `tier`.
        """
        rates = model.tier(tier)
        card = rates.long if rates.long and usage.input_tokens > LONG_CONTEXT_TOKENS else rates.short
        return self._charge(card, _scaled_cost(card, usage))

    def ceiling(self, model: Model, tier: str, bounds: "Bounds") -> Charge:
        """The most that a request within `bounds` can cost: every token at the dearest rate that can apply."""
        rates = model.tier(tier)
        card = rates.long if rates.long and bounds.input_tokens > LONG_CONTEXT_TOKENS else rates.short
        dearest_in = max(card.input, card.cache_write_30m, card.image_input)
        if bounds.cache_write_12h:
            dearest_in = max(dearest_in, card.cache_write_12h)
        dearest_out = card.output
        if bounds.audio_output:
            dearest_out = max(dearest_out, card.audio_output)
        scaled = (
            dearest_in * (bounds.input_tokens - bounds.audio_input_tokens)
            + max(dearest_in, card.audio_input) * bounds.audio_input_tokens
            + dearest_out * bounds.output_tokens
            + card.web_search * bounds.web_searches
        )
        return self._charge(card, scaled)

    def affordable_output(self, model: Model, tier: str, bounds: "Bounds", budget: int) -> int:
        """How many output tokens fit into `budget` millicredits beside the rest of `bounds` (0 when none do)."""
        low, high = 0, MAX_TOKENS
        if not model.tier(tier).short.output or self.ceiling(model, tier, bounds._replace(output_tokens=1)).amount > budget:
            return 0
        while low < high:
            middle = (low + high + 1) // 2
            if self.ceiling(model, tier, bounds._replace(output_tokens=middle)).amount <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def _charge(self, card: Card, scaled: int) -> Charge:
        cost = round_up(scaled, SCALE)
        if self._at_cost:
            return Charge(cost, cost, card)
        markup = self._markup
        return Charge(round_up(scaled * markup.numerator, SCALE * markup.denominator, self._rounding), cost, card)

    def _model(self, name: str, row: Mapping[str, Any]) -> Model:
        per_call = row.get("per_call", {})
        search = _exact(per_call["web_search"], MILLICREDITS_PER_USD * SCALE) if "web_search" in per_call else 0
        tiers = {}
        for tier, block in row["rates"].items():
            short = self._card(tier, "short", block["short"], search)
            long = self._card(tier, "long", block["long"], search) if "long" in block else None
            tiers[tier] = Tier(short, long)
        return Model(
            name=name,
            mode=row["mode"],
            endpoints=frozenset(row["endpoints"]),
            reasoning=row["reasoning"],
            context_window=row["contextWindow"],
            max_input_tokens=row["maxInputTokens"],
            max_output_tokens=row["maxOutputTokens"],
            searches_each_call=row.get("webSearchIncluded", False),
            tiers=tiers,
        )

    def _card(self, tier: str, context: str, rates: Mapping[str, str], search: int) -> Card:
        exact = {part: _exact(price, SCALE) for part, price in rates.items()}
        base = exact["input"]
        output = exact.get("output", 0)
        audio = exact.get("audio_input", base)
        snapshot = {
            "rateCardId": self.catalogue_id,
            "tier": tier,
            "context": context,
            "usdPerMillionTokens": dict(rates),
            "webSearchMillicredits": str(search // SCALE),
            "markup": self._markup_text,
        }
        return Card(
            tier=tier,
            context=context,
            input=base,
            cached_input=exact.get("cached_input", base),
            cache_write_30m=exact.get("cache_write_30m", _times(base, CACHE_WRITE_30M_FACTOR)),
            cache_write_12h=exact.get("cache_write_12h", _times(base, CACHE_WRITE_12H_FACTOR)),
            output=output,
            audio_input=audio,
            cached_audio_input=exact.get("cached_audio_input", audio),
            audio_output=exact.get("audio_output", output),
            image_input=exact.get("image_input", base),
            web_search=search,
            snapshot=msgspec.Raw(msgspec.json.encode(snapshot)),
        )


class Bounds(NamedTuple):
    """Upper bounds of one request, in tokens (audio input is a part of input) and calls."""

    input_tokens: int
    output_tokens: int
    audio_input_tokens: int = 0
    audio_output: bool = False
    cache_write_12h: bool = False
    web_searches: int = 0


def tier_of(echo: str | None, asked: str) -> str:
    """The price tier of an echoed `service_tier`; without an echo, the tier that was asked for."""
    if echo is None:
        return asked
    return TIER_OF_ECHO.get(echo, echo)


def load_catalogue() -> dict[str, Any]:
    """The shipped price catalogue (strings, never floats)."""
    text = files("config").joinpath("prices/catalogue.json").read_text(encoding="utf-8")
    catalogue: dict[str, Any] = json.loads(text, parse_float=_refuse_float)
    return catalogue


def _scaled_cost(card: Card, usage: Usage) -> int:
    """Σ tokens × rate; audio and image are taken out of the text only where they are priced apart."""
    audio = usage.audio_input_tokens if card.audio_input != card.input else 0
    cached_audio = usage.cached_audio_tokens if audio else 0
    image = usage.image_input_tokens if card.image_input != card.input else 0
    cached = usage.cached_tokens - cached_audio
    written = usage.cache_write_30m_tokens + usage.cache_write_12h_tokens
    plain = max(0, usage.input_tokens - audio - image - cached - written)
    audio_out = usage.audio_output_tokens
    return (
        plain * card.input
        + cached * card.cached_input
        + usage.cache_write_30m_tokens * card.cache_write_30m
        + usage.cache_write_12h_tokens * card.cache_write_12h
        + (audio - cached_audio) * card.audio_input
        + cached_audio * card.cached_audio_input
        + image * card.image_input
        + (usage.output_tokens - audio_out) * card.output
        + audio_out * card.audio_output
        + usage.web_searches * card.web_search
    )


def _exact(price: str, scale: int) -> int:
    """A decimal string times `scale` as an integer. Raises InvariantBroken when that loses anything."""
    value = Fraction(Decimal(price)) * scale
    if value.denominator != 1 or value < 0:
        raise InvariantBroken(f"the price {price!r} has more than 12 decimals or is negative")
    return value.numerator


def _times(rate: int, factor: Fraction) -> int:
    product = rate * factor
    return -(-product.numerator // product.denominator)


def _refuse_float(text: str) -> NoReturn:
    raise InvariantBroken(f"a price stands as a number, not a string: {text}")
