"""A settled request priced again, from nothing but its own row: the counts and the rates that it was charged by. Pure.

Some rows do not hold all that their price came from. They are passed over, and the report says how many and why:

    bounded        its process died: it was charged its checkpoint, whose counts are upper bounds and not usage
    rest           what was still due after such a checkpoint: the difference of two prices, of which the row has one
    other models   a hosted tool ran another model, whose counts are in no row
    cached media   how much of the cached input was sound or pictures is in no row, and they have prices of their own
    tool price     a tool was called and its price was set apart from its rate card (by the card's own explicit prices)
"""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal

import msgspec

from billing.money.amounts import round_up
from billing.money.errors import InvariantBroken
from billing.money.model_rates import SCALE, ModelRates, call_rate, model_rates, scaled_cost
from billing.money.usage import Usage
from billing.money.usage_record import REST_SUFFIX, UsageRow

Excluded = Literal["bounded", "rest", "other models", "cached media", "tool price"]
NO_RATES = msgspec.Raw(b"{}")


class Priced(msgspec.Struct, frozen=True):
    """Amounts that a row may have: (cost, due) pairs in millicredits.

    Several where the row leaves open which of two rates applied.
    """

    options: frozenset[tuple[int, int]]


def reprice(row: UsageRow, tools: Mapping[str, str]) -> Priced | Excluded:
    """Price a row of `usage` again; `tools`: its rate card's prices per call.

    Raises InvariantBroken when its rates cannot be read.
    """
    if row.usage_source == "bounded":
        return "bounded"
    if row.charge_id.endswith(REST_SUFFIX):
        return "rest"
    rates = _rates_of(row)
    if "more" in rates:
        return "other models"
    cost_card = _card(rates, rates["usdPerMillionTokens"])
    explicit = rates.get("customerUsdPerMillionTokens")
    calls = msgspec.json.decode(row.tool_calls) if row.tool_calls else {}
    if calls and ((explicit is not None and "markup" not in rates) or not calls.keys() <= tools.keys()):
        return "tool price"
    if row.cached_tokens and _media_apart(cost_card, row):
        return "cached media"
    called = sum(call_rate(name, tools[name]) * number for name, number in calls.items())
    options = set()
    for usage in _readings(row):
        cost = scaled_cost(cost_card, usage) + called
        markup = Fraction(Decimal(rates.get("markup", "1")))
        due = cost * markup
        if explicit is not None:  # of a price plan, whose units have prices of their own; of a card they have not
            units = rates.get("customerUsdPerUnit", rates["usdPerUnit"])
            due = scaled_cost(_card({**rates, "usdPerUnit": units}, explicit), usage) + called * markup
        for mode in ("exact", "ceil"):  # which way it was rounded is a setting of its day
            options.add((int(round_up(cost, SCALE)), int(round_up(due.numerator, SCALE * due.denominator, mode))))
    return Priced(frozenset(options))


def _rates_of(row: UsageRow) -> dict[str, Any]:
    try:
        rates: dict[str, Any] = msgspec.json.decode(row.rates, type=dict[str, Any])
    except msgspec.MsgspecError:
        rates = {}
    if not isinstance(rates.get("usdPerMillionTokens"), dict) or not isinstance(rates.get("usdPerUnit"), dict):
        raise InvariantBroken(f"usage row {row.charge_id} has no rates")
    return rates


def _card(rates: dict[str, Any], prices: Mapping[str, str]) -> ModelRates:
    try:
        return model_rates("", "", prices, rates["usdPerUnit"], NO_RATES)  # of which tier they are prices nothing
    except (InvalidOperation, ValueError, TypeError):
        raise InvariantBroken("the rates hold something that is no price") from None


def _media_apart(card: ModelRates, row: UsageRow) -> bool:
    """Tell whether cached sound or pictures, if there were any, had another price than cached text."""
    sound = row.audio_input_tokens and card.audio_input != card.input
    pictures = row.image_input_tokens and card.image_input != card.input
    return bool(sound or pictures)


def _readings(row: UsageRow) -> list[Usage]:
    """Return the row's counts; cache writes as of either lifetime, for the row has their sum alone."""
    written = row.cache_write_tokens
    plain = Usage(
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        cache_write_30m_tokens=written,
        audio_input_tokens=row.audio_input_tokens,
        image_input_tokens=row.image_input_tokens,
        audio_output_tokens=row.audio_output_tokens,
        image_output_tokens=row.image_output_tokens,
        reasoning_tokens=row.reasoning_tokens,
        web_searches=row.web_searches,
        milliseconds=row.audio_milliseconds,
        characters=row.characters,
    )
    if not written:
        return [plain]
    return [plain, msgspec.structs.replace(plain, cache_write_30m_tokens=0, cache_write_12h_tokens=written)]
