"""Rates of one model as exact integers, and what a usage costs by them: sums of products, not yet rounded."""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from billing.money.amounts import MILLICREDITS_PER_CREDIT, MILLICREDITS_PER_USD
from billing.money.errors import InvariantBroken
from billing.money.usage import Usage, Value

SCALE = 10**15
"""Rates are multiples of 10**-15 millicredits: prices have at most 12 decimals a million tokens and 15 a second."""
PER_UNIT = SCALE * MILLICREDITS_PER_USD
"""Factor from USD per call, character or second to a rate."""
STORAGE_PRICE = "vector_store_gb_day"
"""Price of storage among those of tools; what is counted under its name are bytes that were kept for a day."""
BYTES_PER_GB = 10**9
"""OpenAI does not say which GB it means: by the smaller one nobody is billed less than it costs."""
CACHE_WRITE_30M_FACTOR = Fraction(5, 4)
CACHE_WRITE_12H_FACTOR = Fraction(5, 2)


ABOVE_LONG = "per_million_tokens_above_272k_input"


class Adjustment(NamedTuple):
    """Difference of an upstream's prices from the rate card.

    Everything costs `factor` times as much, and OpenAI's uplift comes on top in its regions ("" = in none).
    """

    factor: str = "1"
    region: str = ""

    def of(self, model: str) -> Decimal:
        """Return the factor of a model's prices there."""
        uplift = regional_uplifts(self.region).get(model, "1") if self.region else "1"
        return Decimal(self.factor) * Decimal(uplift)


AS_LISTED = Adjustment()
OUTPUTS = frozenset(("output", "image_output"))
"""Of these each stands for the other where there is no price."""
ALL_OUTPUTS = ("output", "image_output", "audio_output")
_encode_exact = msgspec.json.Encoder(decimal_format="number").encode


class ModelRates(Value, frozen=True):
    """The rates of one model, tier and context length, in 10**-15 millicredits per token, call, millisecond or
    character.
    """

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
    cached_image_input: int
    image_output: int
    web_search: int
    millisecond: int
    character: int
    snapshot: msgspec.Raw


class _CardPrices(msgspec.Struct):
    """Prices of a snapshot, as the card has them."""

    usdPerMillionTokens: dict[str, str]  # noqa: N815 - the snapshot's own names
    usdPerUnit: dict[str, str]  # noqa: N815

    @classmethod
    def of(cls, card: ModelRates) -> "_CardPrices":
        return msgspec.json.decode(card.snapshot, type=cls)


@cache
def regional_uplifts(region: str) -> Mapping[str, str]:
    """Return model → factor at OpenAI's host of that region; empty for a region that it has no host in."""
    found: dict[str, Any] = json.loads(files("config").joinpath("prices/regional.json").read_text(encoding="utf-8"))
    models: dict[str, str] = found["models"]
    return models if region in found["regions"] else {}


def adjusted(prices: Mapping[str, str], factor: Decimal | int) -> dict[str, str]:
    """Return decimal prices times a factor, exactly."""
    return dict(prices) if factor == 1 else {name: _plain(Decimal(price) * factor) for name, price in prices.items()}


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")


def model_rates(
    tier: str, context: str, rates: Mapping[str, str], units: Mapping[str, str], snapshot: msgspec.Raw
) -> ModelRates:
    """Return the rates of decimal prices: USD per million tokens by part, and per unit.

    Raises InvariantBroken when one cannot be exact.
    """
    exact = {part: exact_rate(price, SCALE) for part, price in rates.items()}
    base = exact.get("input", 0)
    image_output = exact.get("image_output", exact.get("output", 0))
    output = exact.get("output", image_output)
    audio = exact.get("audio_input", base)
    image = exact.get("image_input", base)
    cached = exact.get("cached_input", base)
    second = exact_rate(units.get("per_second", "0"), PER_UNIT)
    if second % 1_000:
        raise InvariantBroken(f"the price of a second {units['per_second']!r} has more than 15 decimals")
    return ModelRates(
        tier=tier,
        context=context,
        input=base,
        cached_input=cached,
        cache_write_30m=exact.get("cache_write_30m", _times(base, CACHE_WRITE_30M_FACTOR)),
        cache_write_12h=exact.get("cache_write_12h", _times(base, CACHE_WRITE_12H_FACTOR)),
        output=output,
        audio_input=audio,
        cached_audio_input=exact.get("cached_audio_input", audio),
        audio_output=exact.get("audio_output", output),
        image_input=image,
        cached_image_input=exact.get("cached_image_input", image),
        image_output=image_output,
        web_search=exact_rate(units.get("web_search", "0"), PER_UNIT),
        millisecond=second // 1_000,
        character=exact_rate(units.get("per_character", "0"), PER_UNIT),
        snapshot=snapshot,
    )


def scaled_cost(card: ModelRates, usage: Usage) -> int:
    """Σ tokens × rate in 10**-15 millicredits.

    Audio and image are taken out of the text only where they are priced apart. A token that was read from
    the cache is priced once, whatever kind it was of.
    """
    audio = usage.audio_input_tokens if card.audio_input != card.input else 0
    cached_audio = usage.cached_audio_tokens if audio else 0
    image = usage.image_input_tokens if card.image_input != card.input else 0
    cached_image = usage.cached_image_tokens if image else 0
    text = usage.input_tokens - audio - image
    cached = usage.cached_tokens - cached_audio - cached_image
    if cached > text:
        # more was cached than there is text: the rest was sound, else pictures, whatever the split says
        cached_audio = min(audio, cached_audio + cached - text)
        cached_image = min(image, usage.cached_tokens - text - cached_audio)
        cached = text
    # written and cached are disjoint; where a report says more than there is, each is charged as it says
    plain = max(0, text - cached - usage.cache_write_30m_tokens - usage.cache_write_12h_tokens)
    audio_out, image_out = usage.audio_output_tokens, usage.image_output_tokens
    return (
        plain * card.input
        + cached * card.cached_input
        + usage.cache_write_30m_tokens * card.cache_write_30m
        + usage.cache_write_12h_tokens * card.cache_write_12h
        + (audio - cached_audio) * card.audio_input
        + cached_audio * card.cached_audio_input
        + (image - cached_image) * card.image_input
        + cached_image * card.cached_image_input
        + (usage.output_tokens - audio_out - image_out) * card.output
        + audio_out * card.audio_output
        + image_out * card.image_output
        + usage.web_searches * card.web_search
        + usage.milliseconds * card.millisecond
        + usage.characters * card.character
    )


def customer_price(tier: str, short: ModelRates, long: ModelRates | None, markup: Fraction) -> msgspec.Raw:
    """Return what a customer pays, as JSON for display: credits per million tokens by part, and per unit."""
    first = _CardPrices.of(short)
    price: dict[str, object] = {
        "unit": "credits",
        "service_tier": tier,
        "per_million_tokens": _in_credits(first.usdPerMillionTokens, markup),
        **_in_credits(first.usdPerUnit, markup),
    }
    if long is not None:
        price[ABOVE_LONG] = _in_credits(_CardPrices.of(long).usdPerMillionTokens, markup)
    return msgspec.Raw(_encode_exact(price))


def _in_credits(usd: Mapping[str, str], markup: Fraction) -> dict[str, Decimal]:
    times = Decimal(markup.numerator) / markup.denominator * (MILLICREDITS_PER_USD // MILLICREDITS_PER_CREDIT)
    return {name: Decimal(format((Decimal(price) * times).normalize(), "f")) for name, price in usd.items()}


@lru_cache(maxsize=8_192)  # a card says few prices many times
def exact_rate(price: str, scale: int) -> int:
    """Return a decimal string times `scale` as an integer. Raises InvariantBroken when not exact, or negative."""
    value = Fraction(Decimal(price)) * scale
    if value.denominator != 1 or value < 0:
        raise InvariantBroken(f"the price {price!r} has too many decimals or is negative")
    return value.numerator


def complete_prices(prices: Mapping[str, str], cost: Mapping[str, str], markup: Fraction) -> dict[str, str]:
    """Return explicit sale prices, with the input or the outputs that they leave out at a markup on the cost, rounded
    up.

    Patterns name embeddings and chats alike, so prices of input alone are right; what costs us something and has no
    price would be free (I7).
    """
    missing = [*(("input",) if "input" not in prices else ()), *(() if prices.keys() & OUTPUTS else ALL_OUTPUTS)]
    return {**{name: _marked_up(cost[name], markup) for name in missing if name in cost}, **prices}


def _marked_up(price: str, markup: Fraction) -> str:
    parts = Fraction(Decimal(price)) * markup * SCALE
    return _plain(Decimal(-(-parts.numerator // parts.denominator)) / SCALE)


def call_rate(name: str, price: str) -> int:
    """Return a tool's price as the rate of what is counted under its name: a call, or a byte kept for a day.

    Raises InvariantBroken when it cannot be exact.
    """
    return exact_rate(price, PER_UNIT // BYTES_PER_GB if name == STORAGE_PRICE else PER_UNIT)


def _times(rate: int, factor: Fraction) -> int:
    return -(-rate * factor.numerator // factor.denominator)


def fits_any(model: str, globs: Iterable[str]) -> bool:
    """Tell whether a model's name fits one of these globs: `gpt-6*` names every model that begins like that."""
    return any(glob == "*" or fnmatchcase(model, glob) for glob in globs)
