"""Rates of a model: read from either source, made complete by the rules R2 to R7 of scripts/build_prices.py."""

from __future__ import annotations

import re
from decimal import Decimal

from scripts.prices.source import EXACT, LENGTH_SUFFIX, PARTS, TIER_SUFFIX, ZERO, Block, Row, Tier, fail, to_decimal

# R2. Audio and image parts have no published long rule, so they are not listed.
LONG_FACTOR = {
    "input": Decimal(2),
    "cached_input": Decimal(2),
    "cache_write_30m": Decimal(2),
    "cache_write_12h": Decimal(2),
    "output": Decimal("1.5"),
}
WRITE_12H_FACTOR = Decimal("2.5")

SUPPLEMENT_TIERS = {
    "standard": "default",
    "flex": "flex",
    "priority": "priority",
    "ultrafast": "ultrafast",
    "batch": "batch",
}
SUPPLEMENT_LENGTHS = {"short": "short", "long_over_272k_input": "long"}
SUPPLEMENT_IMAGE_PARTS = {
    "text_input": "input",
    "text_cached_input": "cached_input",
    "image_input": "image_input",
    "image_cached_input": "cached_image_input",
    "image_output": "image_output",
}

INPUT_ONLY_MODES = {"embedding", "moderation"}

# R4: field of the second source -> part; image_output stands in for output when
# the first source has no text output.
DISAGREEMENT_PARTS = {
    "input_audio_mtok": ("audio_input", "audio_input"),
    "output_mtok": ("output", "image_output"),
}
SNAPSHOT = r"(-\d{4}-\d{2}-\d{2}|-diarize)?"


def raw_block(name: str, row: Row, tier: str, length: str) -> Block:
    suffix = LENGTH_SUFFIX[length] + TIER_SUFFIX[tier]
    return {
        part: to_decimal(row[field + suffix], f"{name}.{field}{suffix}").scaleb(6)
        for part, field in PARTS.items()
        if field + suffix in row
    }


def raw_rates(name: str, row: Row) -> dict[str, Tier]:
    rates: dict[str, Tier] = {}
    for tier in TIER_SUFFIX:
        blocks = {length: raw_block(name, row, tier, length) for length in LENGTH_SUFFIX}
        rates[tier] = {length: block for length, block in blocks.items() if block}
    return rates


def supplement_block(name: str, prices: Row) -> Block:
    unknown = set(prices) - set(PARTS)
    if unknown:
        fail(name, f"unknown parts {sorted(unknown)}")
    return {part: to_decimal(value, f"{name}.{part}") for part, value in prices.items()}


def supplement_rates(name: str, prices: Row) -> dict[str, Tier]:
    if "standard" in prices:
        return {
            SUPPLEMENT_TIERS[tier]: {
                SUPPLEMENT_LENGTHS[length]: supplement_block(name, block) for length, block in lengths.items()
            }
            for tier, lengths in prices.items()
        }
    renamed = {SUPPLEMENT_IMAGE_PARTS[part]: value for part, value in prices.items()}
    return {"default": {"short": supplement_block(name, renamed)}}


def apply_disagreements(name: str, rates: dict[str, Tier], listed: list[Row]) -> None:
    """Raise the default price to the higher of the two sources (R4)."""
    for item in listed:
        if not re.fullmatch(re.escape(item["model"]) + SNAPSHOT, name):
            continue
        has_first = item["litellm"] is not None
        part = DISAGREEMENT_PARTS[item["field"]][0 if has_first else 1]
        block = rates["default"]["short"]
        if part not in block:
            fail(name, f"disagreement about {part}, which the row does not have")
        other = to_decimal(item["genai_prices"], f"{name}.{item['field']}")
        block[part] = max(block[part], other)


def drop_mislabelled_writes(block: Block) -> None:
    """Drop cache writes cheaper than plain input (R5)."""
    for part in ("cache_write_30m", "cache_write_12h"):
        if part in block and "input" in block and block[part] < block["input"]:
            del block[part]


def fill_12h_write(block: Block) -> None:
    """Add the 12-hour cache write that is missing (R3)."""
    if "cache_write_30m" in block and "cache_write_12h" not in block:
        block["cache_write_12h"] = EXACT.multiply(block["input"], WRITE_12H_FACTOR)


def fill_long(name: str, short: Block, long: Block) -> None:
    """Add the parts of a long request that are missing (R2)."""
    for part, price in short.items():
        if part in long:
            continue
        if part not in LONG_FACTOR:
            fail(name, f"no published long-context rule for {part}")
        long[part] = EXACT.multiply(price, LONG_FACTOR[part])


def required_parts(mode: str) -> set[str]:
    """Name what a tier block must price to be usable at all (R6)."""
    if mode in INPUT_ONLY_MODES:
        return {"input"}
    if mode == "image_generation":
        return {"input", "image_output"}
    return {"input", "output"}


def drop_zero_output(block: Block) -> None:
    """Drop an output price of zero (R7)."""
    if block.get("output") == ZERO:
        del block["output"]


def complete_rates(name: str, mode: str, rates: dict[str, Tier], listed: list[Row]) -> dict[str, Tier]:
    apply_disagreements(name, rates, listed)
    has_long = "long" in rates.get("default", {})
    complete: dict[str, Tier] = {}
    for tier, blocks in rates.items():
        short = blocks.get("short", {})
        if not required_parts(mode) <= set(short):
            if "long" in blocks:
                fail(name, f"{tier} has long rates but no usable short ones")
            continue
        if "long" in blocks and not has_long:
            fail(name, f"{tier} has long rates, the default tier has none")
        drop_mislabelled_writes(short)
        fill_12h_write(short)
        drop_zero_output(short)
        complete[tier] = {"short": short}
        if has_long:
            complete[tier]["long"] = blocks.get("long", {})
            fill_long(name, short, complete[tier]["long"])
    if complete and "default" not in complete:
        fail(name, "tiers without a default tier")
    return complete
