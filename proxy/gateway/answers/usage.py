"""OpenAI's usage objects as a Usage. Pure.

None for one that is missing, negative, no whole numbers, or contradicts itself: then what passed is counted.
"""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

from billing.money.usage import MAX_TOKENS, Usage

WRITE_LIFETIMES = ("ttl_30m_tokens", "ttl_12h_tokens")


def read_usage(raw: Any) -> Usage | None:
    """OpenAI's usage object as a Usage; None when it is missing, negative, not integers, or contradicts itself."""
    if not isinstance(raw, dict):
        return None
    prompt, completion = count_of(raw, "prompt_tokens"), count_of(raw, "completion_tokens", 0)
    total = count_of(raw, "total_tokens", (prompt or 0) + (completion or 0))
    if prompt is None or completion is None or total is None or total < max(prompt, completion):
        return None
    if not prompt and not completion:
        return None  # no request is without input: some fakes and local servers send zeros beside a whole answer
    if raw.get("completion_tokens") is None and raw.get("total_tokens") != prompt:
        return None  # only an embedding has no completion, and it says that its total is its prompt
    inside = raw.get("prompt_tokens_details") or {}
    made = raw.get("completion_tokens_details") or {}
    if not isinstance(inside, dict) or not isinstance(made, dict):
        return None
    writes = inside.get("cache_write_tokens_details")
    write_12h = part_of(writes, "ttl_12h_tokens") if isinstance(writes, dict) else 0
    usage = Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cached_tokens=part_of(inside, "cached_tokens"),
        cache_write_30m_tokens=max(0, part_of(inside, "cache_write_tokens") - write_12h),
        cache_write_12h_tokens=write_12h,
        audio_input_tokens=part_of(inside, "audio_tokens"),
        image_input_tokens=part_of(inside, "image_tokens"),
        audio_output_tokens=part_of(made, "audio_tokens"),
        reasoning_tokens=part_of(made, "reasoning_tokens"),
    )
    return usage if usage.is_consistent() else usage.normalised()


def read_tokens(raw: Any) -> Usage | None:
    """Usage as Responses, images, transcription and realtime report it; None when it is missing, negative or
    contradicts itself.
    """
    if not isinstance(raw, dict):
        return None
    tokens_in, tokens_out = count_of(raw, "input_tokens"), count_of(raw, "output_tokens", 0)
    total = count_of(raw, "total_tokens", (tokens_in or 0) + (tokens_out or 0))
    if tokens_in is None or tokens_out is None or total is None or total < max(tokens_in, tokens_out):
        return None
    inside = details(raw, "input_tokens_details", "input_token_details")
    made = details(raw, "output_tokens_details", "output_token_details")
    cached = details(inside, "cached_tokens_details") or details(raw, "cached_tokens_details")
    writes = details(inside, "cache_write_tokens_details")
    write_12h = part_of(writes, "ttl_12h_tokens")
    return Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cached_tokens=part_of(inside, "cached_tokens") or part_of(raw, "cached_tokens"),
        cache_write_30m_tokens=max(0, part_of(inside, "cache_write_tokens") - write_12h),
        cache_write_12h_tokens=write_12h,
        audio_input_tokens=part_of(inside, "audio_tokens"),
        image_input_tokens=part_of(inside, "image_tokens"),
        cached_audio_tokens=part_of(cached, "audio_tokens") or part_of(cached, "cached_audio_tokens"),
        cached_image_tokens=part_of(cached, "image_tokens") or part_of(cached, "cached_image_tokens"),
        audio_output_tokens=part_of(made, "audio_tokens"),
        image_output_tokens=part_of(made, "image_tokens"),
        reasoning_tokens=part_of(made, "reasoning_tokens"),
    ).normalised()


def splits_writes(inside: Any) -> bool:
    """Tell whether details of input tokens say how long what was written to the cache lives."""
    writes = inside.get("cache_write_tokens_details") if isinstance(inside, dict) else None
    return isinstance(writes, dict) and any(count_of(writes, name) is not None for name in WRITE_LIFETIMES)


def milliseconds_of(seconds: Any) -> int | None:
    """Take seconds as JSON has them (9, 8.47, "8.470000267028809"), rounded up to the millisecond."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | str):
        return None
    try:
        value = (Decimal(str(seconds)) * 1_000).to_integral_value(ROUND_CEILING)
    except ArithmeticError:
        return None
    return int(value) if value.is_finite() and 0 <= value <= MAX_TOKENS else None


def details(raw: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """First member of these names that is an object; an empty one when none is."""
    for name in names:
        value = raw.get(name)
        if isinstance(value, dict):
            return value
    return {}


def count_of(raw: dict[str, Any], name: str, default: int | None = None) -> int | None:
    """Count that is a whole number within bounds; None when it is not."""
    value = raw.get(name)
    if value is None:
        value = default
    if type(value) is float and value.is_integer():
        value = int(value)  # JSON has one kind of number, and some write all of them with a point
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def part_of(raw: dict[str, Any], name: str) -> int:
    """Part of a count; 0 when it is missing or makes no sense."""
    value = raw.get(name)
    if not value:
        return 0
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else count_of(raw, name) or 0
