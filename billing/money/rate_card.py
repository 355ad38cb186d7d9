"""Rate cards as documents: what makes one complete, and how two differ. Pure.

A card is config/prices/catalogue.json's shape, optionally with `prices` (what customers pay):

    {"catalogueId": "acme-2026-12", "effectiveFrom": "2026-12-01", "tools": {...}, "models": {...},
     "prices": {"markup": "1.2", "models": {"gpt-6*": {"markup": "1.5"}, "gpt-5.5": {"rates": {...}}}}}

A model's `ends` is the last day (UTC) on which it is sold; without one, or with null, it is sold until another card.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any

import msgspec

from billing.money.amounts import MoneyError
from billing.money.catalogue.models import is_priced
from billing.money.catalogue.price_plan import BadPricePlan, check_rates
from billing.money.errors import InvariantBroken
from billing.money.pricing import PriceBook, read_catalogue

Price = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,15})?$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,120}$")]
MOST_ID = 80
CARD_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
TIERS = frozenset(("default", "flex", "priority", "ultrafast", "batch"))
NEEDED = {
    "embedding": ({"input"},),
    "moderation": ({"input"},),
    "image_generation": ({"input", "image_output"},),
    "audio_speech": ({"input", "output"}, {"per_character"}),
    "audio_transcription": ({"input", "output"}, {"per_second"}),
    "realtime": ({"input", "output"}, {"per_second"}),
    "video_generation": ({"per_second"},),
}
"""Mode → the sets of parts of which one must be priced; every other mode produces text."""
TEXT = ({"input", "output"},)
SALE_SHAPE = (
    'sale prices are written {"prices": {"markup": "1.2", "models": {"gpt-6*": {"markup": "1.5"}}}}: a markup for all, '
    "then by model or pattern a `markup`, or `rates` of its own; every number in quotes"
)


class BadRateCard(MoneyError):
    """A rate card that must not be used: what is wrong with it, and where."""


class _Row(msgspec.Struct):
    mode: str
    endpoints: list[str]
    reasoning: bool
    contextWindow: int | None  # noqa: N815 - the document's own names
    maxInputTokens: int | None  # noqa: N815
    maxOutputTokens: int | None  # noqa: N815
    rates: dict[str, dict[str, dict[str, Price]]]
    per_call: dict[str, Price] = {}
    per_second: Price | msgspec.UnsetType = msgspec.UNSET
    per_character: Price | msgspec.UnsetType = msgspec.UNSET
    ends: date | None = None
    successor: Name | None = None


class _PriceRule(msgspec.Struct, forbid_unknown_fields=True):
    markup: Price | msgspec.UnsetType = msgspec.UNSET
    rates: dict[str, dict[str, dict[str, Price]]] | msgspec.UnsetType = msgspec.UNSET


class _Sale(msgspec.Struct, forbid_unknown_fields=True):
    markup: Price = "1"
    models: dict[Name, _PriceRule] = {}


class _Card(msgspec.Struct):
    catalogueId: str  # noqa: N815
    effectiveFrom: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]  # noqa: N815
    tools: dict[str, Price]
    models: dict[Name, Any]
    prices: _Sale | msgspec.UnsetType = msgspec.UNSET


def read_card(text: str, *, new: bool = True) -> dict[str, Any]:
    """Return a card's document, checked whole. Raises BadRateCard with the first thing that is wrong.

    Without `new` it was taken before, and its explicit sale prices stay what they were taken for.
    """
    try:
        document = read_catalogue(text)
        card = msgspec.convert(document, _Card)
    except msgspec.ValidationError as error:
        shape = f"; {SALE_SHAPE}" if " - at `$.prices" in str(error) else ""
        raise BadRateCard(f"the rate card is not complete: {error}{shape}") from None
    except (ValueError, InvariantBroken, RecursionError) as error:
        raise BadRateCard(f"the rate card cannot be read: {error}") from None
    if not CARD_ID.match(card.catalogueId):
        raise BadRateCard("catalogueId must be 1 to 80 letters, digits, dots, dashes or underscores")
    for name, raw in card.models.items():
        try:
            row = msgspec.convert(raw, _Row)
        except msgspec.ValidationError as error:
            raise BadRateCard(f"models.{name}: {error}") from None
        _check_row(name, row)
    if new and card.prices is not msgspec.UNSET:
        _check_sale(card.prices)
    try:
        PriceBook(document, "1", "exact")
    except (InvariantBroken, KeyError, ArithmeticError) as error:
        raise BadRateCard(f"the rate card cannot be used: {error}") from None
    return document


def _check_sale(sale: _Sale) -> None:
    """Check that what is sold at prices of its own has all of them, as in a price plan (I7)."""
    for pattern, rule in sale.models.items():
        try:
            check_rates(f"prices.models.{pattern}.rates", {} if rule.rates is msgspec.UNSET else rule.rates)
        except BadPricePlan as error:
            raise BadRateCard(str(error)) from None


def _check_row(name: str, row: _Row) -> None:
    """Check that what the model's kind needs is priced, in every tier that it lists (I7)."""
    told = msgspec.to_builtins(row)  # without the units that it does not name
    if not is_priced(told):
        return  # listed without a price: never sold
    units = {unit for unit in ("per_second", "per_character") if unit in told}
    needed = NEEDED.get(row.mode, TEXT)
    for tier, block in row.rates.items():
        if tier not in TIERS:
            raise BadRateCard(f"models.{name}.rates.{tier}: there is no such service tier")
        if "short" not in block or block.keys() - {"short", "long"}:
            raise BadRateCard(f"models.{name}.rates.{tier} must have `short`, and may have `long`")
        for context, parts in block.items():
            if not any(wanted <= parts.keys() | units for wanted in needed):
                lacks = " or ".join(" and ".join(sorted(wanted)) for wanted in needed)
                raise BadRateCard(f"models.{name}.rates.{tier}.{context} lacks a price: {row.mode} needs {lacks}")
    if not row.rates and not any(wanted <= units for wanted in needed):
        raise BadRateCard(
            f"models.{name} has no token rates, and {row.mode} cannot be sold by the {'/'.join(sorted(units))} alone"
        )
    if row.rates and "default" not in row.rates:
        raise BadRateCard(f"models.{name}.rates has no default tier")


def refreshed(active: Mapping[str, Any], newer: Mapping[str, Any], card_id: str | None = None) -> dict[str, Any]:
    """Return a card with what a newer catalogue says, and what only the active card has: models, tools, sale prices.

    Without `card_id` it has the catalogue's, or one made of both where it says more than the catalogue.
    """
    more: dict[str, Any] = {name: {**active[name], **newer[name]} for name in ("models", "tools")}
    if "prices" in active and "prices" not in newer:
        more["prices"] = active["prices"]
    made = newer["catalogueId"]
    if any(newer.get(name) != value for name, value in more.items()):
        made = f"{made}.{active['catalogueId']}"[:MOST_ID]
    return {**newer, **more, "catalogueId": card_id or made}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Return what changes from one card to another: one row a price or end date, sorted; None where there is none."""
    old, new = dict(_prices(before)), dict(_prices(after))
    return [
        {"price": name, "before": old.get(name), "after": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _prices(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every price and end date of a card by its path."""
    for tool, price in document["tools"].items():
        yield f"tools.{tool}", price
    for name, row in document["models"].items():
        yield from ((f"{name}.{path}", price) for path, price in _rates(row["rates"]))
        yield from ((f"{name}.{unit}", row[unit]) for unit in ("per_second", "per_character") if unit in row)
        yield from ((f"{name}.per_call.{call}", price) for call, price in row.get("per_call", {}).items())
        yield from ((f"{name}.{fact}", row[fact]) for fact in ("ends", "successor") if row.get(fact) is not None)
    sale = document.get("prices", {})
    if "markup" in sale:
        yield "prices.markup", sale["markup"]
    for pattern, rule in sale.get("models", {}).items():
        if "markup" in rule:
            yield f"prices.{pattern}.markup", rule["markup"]
        yield from ((f"prices.{pattern}.{path}", price) for path, price in _rates(rule.get("rates", {})))


def _rates(rates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for tier, block in rates.items():
        for context, parts in block.items():
            for part, price in parts.items():
                yield f"{tier}.{context}.{part}", price
