"""Build config/prices/catalogue.json from config/prices/source.json.

    python scripts/build_prices.py           write the catalogue
    python scripts/build_prices.py --check   exit 1 when the committed one differs

No float is ever made: JSON numbers become Decimal straight from their text, every
operation runs in a context that traps rounding, and prices are written as plain
decimal strings. Anything in the source this script does not know stops the build,
so a new kind of price cannot be dropped unseen.

Rules for values that are not copied as they stand
--------------------------------------------------
R1  Token prices are per ONE token in the source and x 1,000,000 here.
R2  Input above 272,000 tokens: a part that a model with long rates lists for short
    input only is 2 x (input, cached, cache writes) or 1.5 x (output). This also
    fills tiers that list no long rate at all, so a long request on such a tier is
    never charged at the short price.
R3  A missing 12-hour cache write beside a 30-minute one is 2.5 x input.
R4  Where the two sources disagree the higher price counts, also for the dated
    snapshots of the model and for -diarize (its row copies the disputed one).
    genai-prices has no image-output field on some image models and puts that
    price in output_mtok, so there it is compared with image_output.
R5  A "cache write" cheaper than plain input is a mislabelled value and is dropped;
    the tokens are then charged as input.
R6  A tier is kept only when it prices everything the mode produces.
R7  An output price of zero is left out.
R8  Context limits: see `limits_of`.
R9  per_second is an alternative to the token rates (usage of type "duration"),
    never an addition. output_cost_per_second is ignored: it repeats the input
    seconds (whisper-1) or estimates the output tokens (gpt-4o-mini-tts).
R10 *_decisions rates have no block: /v1/decisions produces no output tokens and
    its input rates equal the default ones (checked).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "config" / "prices" / "source.json"
CATALOGUE = ROOT / "config" / "prices" / "catalogue.json"

CATALOGUE_ID = "openai-2026-11-23"
EFFECTIVE_FROM = "2026-11-23"
UNIT = "USD per 1,000,000 tokens unless named otherwise"

# Inexact is trapped: a price that would need rounding stops the build.
EXACT = Context(prec=60, traps=[Inexact, InvalidOperation, DivisionByZero])
ZERO = Decimal(0)

PER_MILLION_DECIMALS = 12
# The source gives some per-second prices with 15 decimals (1.02 USD/h / 3600).
PER_UNIT_DECIMALS = 15

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

# R2. Audio and image parts have no published long rule, so they are not listed.
LONG_FACTOR = {
    "input": Decimal(2),
    "cached_input": Decimal(2),
    "cache_write_30m": Decimal(2),
    "cache_write_12h": Decimal(2),
    "output": Decimal("1.5"),
}
WRITE_12H_FACTOR = Decimal("2.5")

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

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MODE_ENDPOINTS = {
    "chat": [CHAT, RESPONSES],
    "responses": [RESPONSES],
    "completion": ["/v1/completions"],
    "embedding": ["/v1/embeddings"],
    "moderation": ["/v1/moderations"],
    "image_generation": ["/v1/images/edits", "/v1/images/generations"],
    "audio_speech": ["/v1/audio/speech"],
    "audio_transcription": ["/v1/audio/transcriptions"],
    "realtime": ["/v1/realtime"],
    "video_generation": ["/v1/videos"],
}
# Listed as plain "realtime" without endpoints, but served elsewhere.
MODEL_ENDPOINTS = {
    "gpt-live-1": ["/v1/live/sessions"],
    "gpt-realtime-translate": ["/v1/realtime/translations"],
}
INPUT_ONLY_MODES = {"embedding", "moderation"}

# R4: field of the second source -> part; image_output stands in for output when
# the first source has no text output.
DISAGREEMENT_PARTS = {
    "input_audio_mtok": ("audio_input", "audio_input"),
    "output_mtok": ("output", "image_output"),
}
SNAPSHOT = r"(-\d{4}-\d{2}-\d{2}|-diarize)?"

TOOL_FIELDS = {
    "web_search": "web_search_per_call_usd",
    "web_search_preview_non_reasoning": ("web_search_preview_non_reasoning_models_per_call_usd"),
    "file_search": "file_search_call_usd",
    "code_interpreter_1g": "code_interpreter_container_session_usd_1g",
}

REASONING_FAMILY = re.compile(r"(o[134]|gpt-[56])(?![0-9a-z])")
SEARCH_MODEL = re.compile(r".*-search-(preview|api)(-\d{4}-\d{2}-\d{2})?")

WINDOW_1M = 1_050_000
WINDOW_400K = 400_000
FAMILY_CHAT = re.compile(r"gpt-5(\.\d)?-chat")
FAMILY_400K = re.compile(r"gpt-5(\.[12])?(-|$)|gpt-5\.4-(mini|nano)")
FAMILY_SPLIT_WINDOW = re.compile(r"gpt-[56](?!\d)|(gpt-)?daybreak-|chat-latest$")
EMBEDDING_WINDOW = 8_192


class CatalogueError(Exception):
    """The source or the result breaks a rule; nothing must be written."""


def fail(where: str, what: str) -> NoReturn:
    raise CatalogueError(f"{where}: {what}")


# --- reading -----------------------------------------------------------------


def _no_constant(text: str) -> NoReturn:
    fail("source", f"{text} is not a price")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys; a doubled price must not pass unseen.
    result = dict(pairs)
    if len(result) != len(pairs):
        fail("source", f"doubled key in {sorted(key for key, _ in pairs)}")
    return result


def load_source(path: Path = SOURCE) -> dict[str, Any]:
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


# --- rates of one model ------------------------------------------------------


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
    """R4: raise the default price to the higher of the two sources."""
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
    """R5."""
    for part in ("cache_write_30m", "cache_write_12h"):
        if part in block and "input" in block and block[part] < block["input"]:
            del block[part]


def fill_12h_write(block: Block) -> None:
    """R3."""
    if "cache_write_30m" in block and "cache_write_12h" not in block:
        block["cache_write_12h"] = EXACT.multiply(block["input"], WRITE_12H_FACTOR)


def fill_long(name: str, short: Block, long: Block) -> None:
    """R2."""
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
    """R7."""
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


# --- everything else about one model -----------------------------------------


def endpoints_of(name: str, mode: str, row: Row) -> list[str]:
    listed = row.get("supported_endpoints")
    if listed is None:
        listed = MODEL_ENDPOINTS.get(name, MODE_ENDPOINTS.get(mode))
    if not listed:
        fail(name, f"no endpoints for mode {mode!r}")
    # Batch is a way to send the request, not a place that answers it.
    return sorted(set(listed) - {"/v1/batch"})


def is_reasoning(name: str, row: Row) -> bool:
    if row.get("supports_reasoning") is True:
        return True
    return REASONING_FAMILY.match(name) is not None and "chat" not in name


def limits_of(name: str, mode: str, row: Row) -> dict[str, int | None]:
    """R8: context window, largest input, largest output.

    The source knows only "max input", and that is sometimes the whole window:
    1,050,000 listed      -> window 1,050,000, input 922,000 (5.4, 5.5 and -pro)
    gpt-5..5.2, 5.4-mini/-nano (not chat) -> window 400,000, input 272,000
    gpt-5*-chat*          -> the listed input is the window
    other gpt-5/6 names, daybreak, chat-latest -> window = input + output
    embeddings            -> 8,192 (the endpoint's limit; the rows say 8,191)
    older models          -> the listed input is the window
    """
    window: int | None = row.get("context_window")
    max_in: int | None = row.get("max_input_tokens")
    max_out: int | None = row.get("max_output_tokens")
    if mode == "embedding":
        window = max_in = EMBEDDING_WINDOW
    elif window is None and max_in is not None:
        if max_in == WINDOW_1M:
            window, max_in = WINDOW_1M, WINDOW_1M - (max_out or 0)
        elif FAMILY_CHAT.match(name):
            window = max_in
        elif FAMILY_400K.match(name):
            window, max_in = WINDOW_400K, 272_000
        elif FAMILY_SPLIT_WINDOW.match(name):
            window = max_in + (max_out or 0)
        else:
            window = max_in
    return {
        "contextWindow": window,
        "maxInputTokens": max_in,
        "maxOutputTokens": max_out,
    }


def per_call_of(name: str, row: Row) -> dict[str, str]:
    costs = row.get(SEARCH_FIELD)
    if not costs:
        return {}
    # The request's search_context_size picks one; the dearest can never be too low.
    return {"web_search": plain(max(to_decimal(v, name) for v in costs.values()))}


def unit_prices_of(name: str, row: Row) -> dict[str, str]:
    prices: dict[str, str] = {}
    for field in PER_SECOND_FIELDS:
        if field in row:
            prices["per_second"] = plain(to_decimal(row[field], f"{name}.{field}"))
    if PER_CHARACTER_FIELD in row:
        value = to_decimal(row[PER_CHARACTER_FIELD], f"{name}.{PER_CHARACTER_FIELD}")
        prices["per_character"] = plain(value)
    return prices


def model_entry(name: str, row: Row, rates: dict[str, Tier]) -> dict[str, Any] | None:
    """Give the catalogue entry, or None when the model has no usable price."""
    mode = row["mode"]
    unit_prices = unit_prices_of(name, row)
    if not rates and not unit_prices:
        return None
    entry: dict[str, Any] = {
        "mode": mode,
        "endpoints": endpoints_of(name, mode, row),
        "reasoning": is_reasoning(name, row),
        **limits_of(name, mode, row),
        "ends": row.get("deprecation_date"),
        "webSearchIncluded": SEARCH_MODEL.fullmatch(name) is not None,
        "rates": {
            tier: {length: {part: plain(price) for part, price in block.items()} for length, block in blocks.items()}
            for tier, blocks in rates.items()
        },
        **unit_prices,
    }
    if mode == "moderation":
        entry["free"] = True
    if per_call := per_call_of(name, row):
        entry["per_call"] = per_call
    return entry


# --- checks on the source ----------------------------------------------------


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


# --- checks on the result ----------------------------------------------------


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
    if endpoint in {"/v1/live/sessions", "/v1/videos"}:
        return "per_second" in entry
    fail(endpoint, "unknown endpoint")


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
    ends = entry["ends"]
    if ends is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", ends):
        fail(name, f"{ends!r} is not a date")


def check_catalogue(catalogue: Mapping[str, Any]) -> None:
    check_no_float(catalogue)
    for name, entry in catalogue["models"].items():
        check_model(name, entry)
    for tool, text in catalogue["tools"].items():
        check_price(tool, text, PER_UNIT_DECIMALS)


# --- the whole catalogue -----------------------------------------------------


def supplement_row(name: str, row: Row) -> dict[str, Any]:
    """Supplement rows name no mode; they are either image or text models."""
    mode = "image_generation" if name.startswith("gpt-image-") else "chat"
    return {**row, "mode": mode}


def build_models(
    source: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    listed = source["disagreements"]
    priced: dict[str, tuple[Row, dict[str, Tier]]] = {}
    for name, row in source["models"].items():
        if is_model(name):
            check_row(name, row)
            priced[name] = row, raw_rates(name, row)
    for name, row in source["supplement_not_in_litellm"].items():
        if name in priced:
            fail(name, "both in the first source and in the supplement")
        prices = row.get("usd_per_1m_tokens", {})
        rates = supplement_rates(name, prices) if prices else {}
        priced[name] = supplement_row(name, row), rates
    models: dict[str, dict[str, Any]] = {}
    unpriced: list[str] = []
    for name, (row, rates) in priced.items():
        complete = complete_rates(name, row["mode"], rates, listed)
        entry = model_entry(name, row, complete)
        if entry is None:
            unpriced.append(name)
        else:
            models[name] = entry
    return models, sorted(unpriced)


def build_tools(source: Mapping[str, Any]) -> dict[str, str]:
    tools = source["tools"]
    return {tool: plain(to_decimal(tools[field], field)) for tool, field in TOOL_FIELDS.items()}


def describe_source(source: Mapping[str, Any]) -> str:
    origin = source["_source"]
    return (
        f"{origin['primary']} (sha256 {origin['sha256']}); second source: "
        f"{origin['secondary']}; newer models from the supplement in source.json"
    )


def build(source: Mapping[str, Any]) -> dict[str, Any]:
    models, unpriced = build_models(source)
    catalogue = {
        "catalogueId": CATALOGUE_ID,
        "effectiveFrom": EFFECTIVE_FROM,
        "unit": UNIT,
        "source": describe_source(source),
        "models": models,
        "tools": build_tools(source),
        "unpriced": unpriced,
    }
    check_catalogue(catalogue)
    return catalogue


def render(catalogue: Mapping[str, Any]) -> str:
    return json.dumps(catalogue, indent=1, sort_keys=True, allow_nan=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the shipped price catalogue.")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 when the committed catalogue differs",
    )
    check_only: bool = parser.parse_args(argv).check
    try:
        text = render(build(load_source()))
    except CatalogueError as error:
        sys.stderr.write(f"price catalogue: {error}\n")
        return 1
    if not check_only:
        CATALOGUE.write_bytes(text.encode())
        return 0
    if CATALOGUE.is_file() and CATALOGUE.read_bytes() == text.encode():
        return 0
    sys.stderr.write("price catalogue: out of date, run scripts/build_prices.py\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
