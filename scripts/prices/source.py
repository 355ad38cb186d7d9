"""Source of prices: its fields, read exactly, and what is refused in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn

# Inexact is trapped: a price that would need rounding stops the build.
EXACT = Context(prec=60, traps=[Inexact, InvalidOperation, DivisionByZero])
ZERO = Decimal(0)

Row = Mapping[str, Any]
Block = dict[str, Decimal]
Tier = dict[str, Block]

# Part name -> field of the source, without the long and tier suffixes.
PARTS = {
    "input": "input_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write_30m": "cache_creation_input_token_cost",
    "cache_write_12h": "cache_creation_input_token_cost_above_12hr",
    "output": "output_cost_per_token",
    "audio_input": "input_cost_per_audio_token",
    "cached_audio_input": "cache_read_input_audio_token_cost",
    "audio_output": "output_cost_per_audio_token",
    "image_input": "input_cost_per_image_token",
    "cached_image_input": "cache_read_input_image_token_cost",
    "image_output": "output_cost_per_image_token",
}
TIER_SUFFIX = {
    "default": "",
    "flex": "_flex",
    "priority": "_priority",
    "ultrafast": "_ultrafast",
    "batch": "_batches",
}
LENGTH_SUFFIX = {"short": "", "long": "_above_272k_tokens"}

PER_SECOND_FIELDS = ("input_cost_per_second", "output_cost_per_video_per_second")
PER_CHARACTER_FIELD = "input_cost_per_character"
SEARCH_FIELD = "search_context_cost_per_query"

# Price fields left out on purpose; any other unknown price field is an error.
IGNORED_FIELDS = {
    "output_cost_per_second",  # R9
    # Sits beside (and equals) the cached-audio price on realtime rows; audio cache
    # writes are not reported by the API.
    "cache_creation_input_audio_token_cost",
    "usd_per_1m_tokens",  # the same numbers times 1e6 (checked)
}


class CatalogueError(Exception):
    """Broken rule in the source or the result; nothing must be written."""


def fail(where: str, what: str) -> NoReturn:
    raise CatalogueError(f"{where}: {what}")


def _no_constant(text: str) -> NoReturn:
    fail("source", f"{text} is not a price")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys; a doubled price must not pass unseen.
    result = dict(pairs)
    if len(result) != len(pairs):
        fail("source", f"doubled key in {sorted(key for key, _ in pairs)}")
    return result


def load_source(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as stream:
        data = json.load(
            stream,
            parse_float=Decimal,
            parse_constant=_no_constant,
            object_pairs_hook=_unique_keys,
        )
    if not isinstance(data, dict):
        fail("source", "not an object")
    return data


def to_decimal(value: object, where: str) -> Decimal:
    # bool is an int in Python, and a float must never get this far.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        fail(where, f"{value!r} ({type(value).__name__}) is not an exact number")
    return Decimal(value)


def plain(value: Decimal) -> str:
    """Decimal string without an exponent and without trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def is_price_field(field: str) -> bool:
    return "cost" in field


def known_fields() -> set[str]:
    token_fields = {
        field + length + tier
        for field in PARTS.values()
        for length in LENGTH_SUFFIX.values()
        for tier in TIER_SUFFIX.values()
    }
    others = {*PER_SECOND_FIELDS, PER_CHARACTER_FIELD, SEARCH_FIELD}
    return token_fields | others | IGNORED_FIELDS


def check_row(name: str, row: Row) -> None:
    known = known_fields()
    for field, value in row.items():
        if not is_price_field(field) or field in known:
            continue
        if not field.endswith("_decisions"):
            fail(name, f"unknown price field {field}")
        # R10: the default rate must cover it.
        default = row[field.removesuffix("_decisions")]
        if to_decimal(value, name) > to_decimal(default, name):
            fail(name, f"{field} is above the default rate")
    for field, value in row["usd_per_1m_tokens"].items():
        if to_decimal(row[field], name).scaleb(6) != to_decimal(value, name):
            fail(name, f"{field} differs from its per-million copy")


def is_model(name: str) -> bool:
    """Tell model ids from other rows ("low/1024-x-1024/...", "openai/...").

    A "/" is the only mark they share; no OpenAI model id has one.
    """
    return "/" not in name
