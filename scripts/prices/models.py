"""Entry of one model in the catalogue: endpoints, limits, prices."""

from __future__ import annotations

import re
from typing import Any

from scripts.prices.source import (
    PER_CHARACTER_FIELD,
    PER_SECOND_FIELDS,
    SEARCH_FIELD,
    Row,
    Tier,
    fail,
    plain,
    to_decimal,
)

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

REASONING_FAMILY = re.compile(r"(o[134]|gpt-[56])(?![0-9a-z])")
SEARCH_MODEL = re.compile(r".*-search-(preview|api)(-\d{4}-\d{2}-\d{2})?")

WINDOW_1M = 1_050_000
WINDOW_400K = 400_000
FAMILY_CHAT = re.compile(r"gpt-5(\.\d)?-chat")
FAMILY_400K = re.compile(r"gpt-5(\.[12])?(-|$)|gpt-5\.4-(mini|nano)")
FAMILY_SPLIT_WINDOW = re.compile(r"gpt-[56](?!\d)|(gpt-)?daybreak-|chat-latest$")
EMBEDDING_WINDOW = 8_192


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
    """Return context window, largest input, largest output (R8).

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
