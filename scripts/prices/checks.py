"""Checks of the finished catalogue: exact strings, no gift, no endpoint without the price it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from scripts.prices.ends import check_successor
from scripts.prices.models import CHAT, RESPONSES
from scripts.prices.rates import required_parts
from scripts.prices.source import ZERO, Block, fail

PER_MILLION_DECIMALS = 12
# The source gives some per-second prices with 15 decimals (1.02 USD/h / 3600).
PER_UNIT_DECIMALS = 15


def walk(node: object) -> Iterator[object]:
    yield node
    if isinstance(node, Mapping):
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child)


def check_no_float(data: object) -> None:
    for node in walk(data):
        if isinstance(node, float | Decimal):
            fail("catalogue", f"{node!r} is a number, prices must be strings")


def check_price(where: str, text: str, decimals: int) -> Decimal:
    if not re.fullmatch(r"(0|[1-9]\d*)(\.\d*[1-9])?", text):
        fail(where, f"{text!r} is not a plain decimal string")
    value = Decimal(text)
    if value.scaleb(decimals) != value.scaleb(decimals).to_integral_value():
        fail(where, f"{text} has more than {decimals} decimals")
    return value


def check_order(where: str, block: Mapping[str, Decimal]) -> None:
    """Refuse a cached price above the fresh one and a cache write below it."""
    pairs = [
        ("cached_input", "input"),
        ("cached_audio_input", "audio_input"),
        ("cached_image_input", "image_input"),
        ("input", "cache_write_30m"),
        ("cache_write_30m", "cache_write_12h"),
    ]
    for low, high in pairs:
        if low in block and high in block and block[low] > block[high]:
            fail(where, f"{low} {block[low]} is above {high} {block[high]}")


def check_tier(where: str, mode: str, tier: Mapping[str, Mapping[str, str]]) -> None:
    blocks: dict[str, Block] = {}
    for length, block in tier.items():
        blocks[length] = {
            part: check_price(f"{where}.{length}.{part}", text, PER_MILLION_DECIMALS) for part, text in block.items()
        }
        # A zero that slipped in would give tokens away.
        if mode != "moderation" and ZERO in blocks[length].values():
            fail(f"{where}.{length}", "a price of zero on a model that is not free")
        check_order(f"{where}.{length}", blocks[length])
        missing = required_parts(mode) - set(block)
        if missing:
            fail(f"{where}.{length}", f"missing {sorted(missing)}")
    for part, price in blocks.get("long", {}).items():
        if price < blocks["short"].get(part, ZERO):
            fail(where, f"long {part} is below the short price")


def endpoint_is_priced(endpoint: str, entry: Mapping[str, Any]) -> bool:
    parts = set(entry["rates"].get("default", {}).get("short", {}))
    tokens = {"input", "output"} <= parts
    if endpoint in {CHAT, RESPONSES, "/v1/completions"}:
        return tokens
    if endpoint in {"/v1/embeddings", "/v1/decisions", "/v1/moderations"}:
        return "input" in parts
    if endpoint.startswith("/v1/images/"):
        return {"input", "image_output"} <= parts
    if endpoint == "/v1/audio/speech":
        return "per_character" in entry or (tokens and "audio_output" in parts)
    if endpoint == "/v1/audio/transcriptions" or endpoint.startswith("/v1/realtime"):
        return "per_second" in entry or tokens
    if endpoint not in {"/v1/live/sessions", "/v1/videos"}:
        fail(endpoint, "unknown endpoint")
    return "per_second" in entry


def check_model(name: str, entry: Mapping[str, Any]) -> None:
    for tier, blocks in entry["rates"].items():
        check_tier(f"{name}.{tier}", entry["mode"], blocks)
    for endpoint in entry["endpoints"]:
        if not endpoint_is_priced(endpoint, entry):
            fail(name, f"lacks a price that {endpoint} needs")
    for unit in ("per_second", "per_character"):
        if unit in entry:
            check_price(f"{name}.{unit}", entry[unit], PER_UNIT_DECIMALS)
    for call, text in entry.get("per_call", {}).items():
        check_price(f"{name}.{call}", text, PER_UNIT_DECIMALS)


def check_catalogue(catalogue: Mapping[str, Any]) -> None:
    check_no_float(catalogue)
    for name, entry in catalogue["models"].items():
        check_model(name, entry)
        check_successor(name, entry, catalogue["models"])
    for tool, text in catalogue["tools"].items():
        check_price(tool, text, PER_UNIT_DECIMALS)
