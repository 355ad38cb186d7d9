"""The shipped price catalogue: rebuilt byte for byte, and checked against facts.

FACTS, LIMITS and the tables below were written down by hand from the price lists
that docs/openai.md names and not from the catalogue, so a wrong build rule shows up here.
"""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from tests.support.price_catalogue import CATALOGUE, MODELS, ROOT

PLAIN = re.compile(r"(0|[1-9]\d*)(\.\d*[1-9])?")


# model, tier, length, {part: USD per 1M tokens}
FACTS: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "gpt-4o-mini",
        "default",
        "short",
        {"input": "0.15", "cached_input": "0.075", "output": "0.6"},
    ),
    ("gpt-4o-mini", "priority", "short", {"input": "0.25", "output": "1"}),
    ("gpt-4o-mini", "batch", "short", {"input": "0.075", "output": "0.3"}),
    (
        "gpt-4o",
        "default",
        "short",
        {"input": "2.5", "cached_input": "1.25", "output": "10"},
    ),
    ("gpt-4o", "priority", "short", {"input": "4.25", "output": "17"}),
    (
        "gpt-4.1",
        "default",
        "short",
        {"input": "2", "cached_input": "0.5", "output": "8"},
    ),
    ("gpt-4.1", "priority", "short", {"input": "3.5", "output": "14"}),
    ("gpt-4.1-mini", "batch", "short", {"input": "0.2", "output": "0.8"}),
    (
        "gpt-5",
        "default",
        "short",
        {"input": "1.25", "cached_input": "0.125", "output": "10"},
    ),
    ("gpt-5", "flex", "short", {"input": "0.625", "output": "5"}),
    ("gpt-5-mini", "priority", "short", {"input": "0.45", "output": "3.6"}),
    (
        "gpt-5-nano",
        "default",
        "short",
        {"input": "0.05", "cached_input": "0.005", "output": "0.4"},
    ),
    ("gpt-5.2-pro", "default", "short", {"input": "21", "output": "168"}),
    ("gpt-5-pro", "batch", "short", {"input": "7.5", "output": "60"}),
    (
        "gpt-5.4-mini",
        "default",
        "short",
        {"input": "0.75", "cached_input": "0.075", "output": "4.5"},
    ),
    ("gpt-5.4-mini", "flex", "short", {"input": "0.375", "output": "2.25"}),
    ("gpt-5.4-nano", "default", "short", {"input": "0.2", "output": "1.25"}),
    ("gpt-5.4", "default", "long", {"input": "5", "output": "22.5"}),
    ("gpt-5.5", "default", "short", {"input": "5", "output": "30"}),
    ("gpt-5.5", "default", "long", {"input": "10", "output": "45"}),
    ("gpt-5.5", "priority", "short", {"input": "12.5", "output": "75"}),
    ("gpt-5.5-pro", "default", "long", {"input": "60", "output": "270"}),
    (
        "gpt-5.6-terra",
        "default",
        "short",
        {"cached_input": "0.2", "cache_write_30m": "2.5", "output": "12"},
    ),
    ("gpt-5.6-luna", "priority", "short", {"input": "0.4", "output": "2.4"}),
    ("gpt-5.6-cyber", "default", "short", {"cache_write_30m": "15.625"}),
    ("gpt-5.6-cyber", "default", "long", {"input": "25", "output": "112.5"}),
    (
        "gpt-6-astra",
        "default",
        "short",
        {
            "input": "10",
            "cached_input": "1",
            "cache_write_30m": "12.5",
            "cache_write_12h": "25",
            "output": "50",
        },
    ),
    ("gpt-6-astra", "default", "long", {"input": "20", "output": "75"}),
    ("gpt-6-astra", "flex", "short", {"input": "5", "output": "25"}),
    ("gpt-6-astra", "batch", "short", {"input": "5", "output": "25"}),
    ("gpt-6-astra", "priority", "short", {"input": "20", "output": "100"}),
    ("gpt-6-astra", "ultrafast", "short", {"input": "60", "output": "300"}),
    (
        "gpt-6-luna",
        "default",
        "short",
        {
            "input": "0.1",
            "cached_input": "0.01",
            "cache_write_30m": "0.125",
            "output": "0.5",
        },
    ),
    ("gpt-6-luna", "flex", "short", {"input": "0.05", "output": "0.25"}),
    ("gpt-6.1-sol", "ultrafast", "short", {"input": "12", "output": "60"}),
    ("gpt-6.1-terra", "default", "long", {"input": "2", "output": "7.5"}),
    (
        "gpt-6.2-sol",
        "default",
        "short",
        {
            "input": "2",
            "cached_input": "0.1",
            "cache_write_30m": "2.5",
            "cache_write_12h": "5",
            "output": "10",
        },
    ),
    ("gpt-6.2-sol", "default", "long", {"input": "4", "output": "15"}),
    ("gpt-6.2-sol", "priority", "short", {"input": "4", "output": "20"}),
    # x3 until 2027-02-28; a later catalogue has to bring x6.
    ("gpt-6.2-sol", "ultrafast", "short", {"input": "6", "output": "30"}),
    (
        "gpt-6.2-astra",
        "default",
        "short",
        {
            "input": "8",
            "cached_input": "0.4",
            "cache_write_30m": "10",
            "cache_write_12h": "20",
            "output": "40",
        },
    ),
    ("gpt-6-rosalind", "default", "short", {"cache_write_30m": "18.75"}),
    ("o3", "priority", "short", {"input": "3.5", "output": "14"}),
    ("o3-pro", "default", "short", {"input": "20", "output": "80"}),
    ("gpt-3.5-turbo-instruct", "default", "short", {"input": "1.5", "output": "2"}),
    ("text-embedding-3-small", "default", "short", {"input": "0.02"}),
    (
        "gpt-audio-1.5",
        "default",
        "short",
        {"input": "2.5", "output": "10", "audio_input": "32", "audio_output": "64"},
    ),
    (
        "gpt-realtime-2.1-mini",
        "default",
        "short",
        {
            "cached_audio_input": "0.3",
            "image_input": "0.8",
            "cached_image_input": "0.08",
        },
    ),
    (
        "gpt-image-1.5",
        "default",
        "short",
        {"output": "10", "image_input": "8", "image_output": "32"},
    ),
    (
        "gpt-image-2.6-sunburst",
        "default",
        "short",
        {
            "input": "5",
            "cached_input": "1.25",
            "image_input": "8",
            "cached_image_input": "2",
            "image_output": "30",
        },
    ),
    # The sources disagree: the higher one counts.
    ("gpt-4o-transcribe", "default", "short", {"audio_input": "6"}),
    ("gpt-4o-mini-transcribe", "default", "short", {"audio_input": "3"}),
    ("gpt-4o-mini-tts", "default", "short", {"output": "12", "audio_output": "12"}),
    # Not listed, worked out with the published rules.
    (
        "gpt-5.4",
        "priority",
        "long",
        {"input": "10", "cached_input": "1", "output": "45"},
    ),
    ("gpt-5.5", "priority", "long", {"input": "25", "output": "112.5"}),
    ("gpt-6-cyber", "default", "short", {"cache_write_12h": "50"}),
    ("daybreak-blue-latest", "default", "long", {"cache_write_12h": "20"}),
]

# model, context window, largest input, largest output
LIMITS: list[tuple[str, int | None, int | None, int | None]] = [
    ("gpt-4o", 128_000, 128_000, 16_384),
    ("gpt-4.1", 1_047_576, 1_047_576, 32_768),
    ("gpt-3.5-turbo-instruct", 8_192, 8_192, 4_096),
    ("o3", 200_000, 200_000, 100_000),
    ("gpt-5", 400_000, 272_000, 128_000),
    ("gpt-5.1-codex", 400_000, 272_000, 128_000),
    ("gpt-5.4-mini", 400_000, 272_000, 128_000),
    ("gpt-5.3-codex", 400_000, 272_000, 128_000),
    ("gpt-5.4", 1_050_000, 922_000, 128_000),
    ("gpt-5.5-pro", 1_050_000, 922_000, 128_000),
    ("gpt-6-astra", 1_050_000, 922_000, 128_000),
    ("gpt-6.2-sol", 1_050_000, 922_000, 128_000),
    ("text-embedding-3-small", 8_192, 8_192, None),
    ("gpt-5.5-cyber", None, None, None),
]


def all_blocks() -> list[tuple[str, dict[str, str]]]:
    return [
        (f"{name}.{tier}.{length}", block)
        for name, entry in MODELS.items()
        for tier, blocks in entry["rates"].items()
        for length, block in blocks.items()
    ]


def test_head_of_the_catalogue() -> None:
    assert CATALOGUE["catalogueId"] == "openai-2026-11-29"
    assert CATALOGUE["effectiveFrom"] == "2026-11-29"
    assert CATALOGUE["unit"] == "USD per 1,000,000 tokens unless named otherwise"
    assert "litellm" in CATALOGUE["source"]
    assert CATALOGUE["unpriced"] == ["gpt-6.2-astra-law"]
    assert not [name for name in MODELS if "/" in name]


# --- the prices --------------------------------------------------------------


@pytest.mark.parametrize(("model", "tier", "length", "prices"), FACTS)
def test_fact(model: str, tier: str, length: str, prices: dict[str, str]) -> None:
    block = MODELS[model]["rates"][tier][length]
    assert {part: block[part] for part in prices} == prices


@pytest.mark.parametrize(("model", "window", "max_in", "max_out"), LIMITS)
def test_limits(model: str, window: int | None, max_in: int | None, max_out: int | None) -> None:
    entry = MODELS[model]
    assert (
        entry["contextWindow"],
        entry["maxInputTokens"],
        entry["maxOutputTokens"],
    ) == (window, max_in, max_out)


def test_tools() -> None:
    assert CATALOGUE["tools"] == {
        "web_search": "0.01",
        "web_search_preview_non_reasoning": "0.025",
        "file_search": "0.0025",
        "code_interpreter_1g": "0.03",
        "vector_store_gb_day": "0.1",
    }


@pytest.mark.parametrize(
    ("model", "unit", "price"),
    [
        ("whisper-1", "per_second", "0.0001"),
        ("gpt-4o-mini-transcribe", "per_second", "0.00005"),
        ("gpt-transcribe", "per_second", "0.000075"),
        ("gpt-live-1", "per_second", "0.000833333333333"),
        ("tts-1", "per_character", "0.000015"),
        ("tts-1-hd", "per_character", "0.00003"),
    ],
)
def test_unit_prices(model: str, unit: str, price: str) -> None:
    assert MODELS[model][unit] == price


def test_tts_has_no_price_per_second() -> None:
    # It is billed by tokens; the source's output seconds are only an estimate.
    assert "per_second" not in MODELS["gpt-4o-mini-tts"]


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o-mini", "0.025"),
        ("gpt-4o-search-preview", "0.025"),
        ("gpt-5-search-api", "0.01"),
        ("gpt-6-astra", "0.01"),
    ],
)
def test_web_search_per_call(model: str, price: str) -> None:
    assert MODELS[model]["per_call"] == {"web_search": price}


def test_every_price_is_a_plain_decimal_string() -> None:
    found = [(where, text) for where, block in all_blocks() for text in block.values()]
    for name, entry in MODELS.items():
        units = [entry[u] for u in ("per_second", "per_character") if u in entry]
        found += [(name, t) for t in [*units, *entry.get("per_call", {}).values()]]
    found += list(CATALOGUE["tools"].items())
    assert len(found) > 1000
    bad = [item for item in found if not PLAIN.fullmatch(item[1])]
    assert not bad


def test_only_moderation_is_free() -> None:
    free = {name for name, entry in MODELS.items() if entry.get("free")}
    assert free == {"omni-moderation-2024-09-26", "omni-moderation-latest"}
    for name in free:
        assert MODELS[name]["rates"] == {"default": {"short": {"input": "0"}}}
    zero = {where for where, block in all_blocks() if "0" in block.values()}
    assert zero == {f"{name}.default.short" for name in free}


def test_order_inside_a_block() -> None:
    for where, block in all_blocks():
        price = {part: Decimal(text) for part, text in block.items()}
        assert price.get("cached_input", Decimal(0)) <= price["input"], where
        if "cache_write_30m" in price:
            assert price["input"] < price["cache_write_30m"], where
            assert price["cache_write_12h"] == Decimal("2.5") * price["input"], where


def test_long_is_there_for_every_tier_or_none_and_follows_the_rule() -> None:
    for name, entry in MODELS.items():
        rates = entry["rates"]
        assert len({"long" in blocks for blocks in rates.values()}) <= 1, name
        for tier, blocks in rates.items():
            if "long" not in blocks:
                continue
            short, long = blocks["short"], blocks["long"]
            assert set(short) == set(long), (name, tier)
            for part, text in short.items():
                factor = Decimal("1.5") if part == "output" else Decimal(2)
                # 0.13 is how the source rounds 0.125; its long price is 0.25.
                if (part, text) != ("cached_input", "0.13"):
                    assert Decimal(long[part]) == factor * Decimal(text), (name, part)


# --- endpoints and flags -----------------------------------------------------


@pytest.mark.parametrize(
    ("model", "endpoints"),
    [
        ("gpt-5.4-mini", ["/v1/chat/completions", "/v1/responses"]),
        ("gpt-4o-mini", ["/v1/chat/completions", "/v1/responses"]),
        ("gpt-5.2-pro", ["/v1/responses"]),
        ("gpt-6-luna", ["/v1/chat/completions", "/v1/decisions", "/v1/responses"]),
        ("gpt-3.5-turbo-instruct", ["/v1/completions"]),
        ("text-embedding-3-small", ["/v1/embeddings"]),
        ("omni-moderation-latest", ["/v1/moderations"]),
        ("gpt-image-2.6-flare", ["/v1/images/edits", "/v1/images/generations"]),
        ("gpt-live-1", ["/v1/live/sessions"]),
    ],
)
def test_endpoints(model: str, endpoints: list[str]) -> None:
    assert MODELS[model]["endpoints"] == endpoints


@pytest.mark.parametrize(
    ("model", "reasoning"),
    [
        ("gpt-4o", False),
        ("gpt-4.1", False),
        ("gpt-audio-1.5", False),
        ("omni-moderation-latest", False),
        ("o3", True),
        ("gpt-5", True),
        ("gpt-6-cyber", True),
        ("gpt-6.2-sol", True),
        ("daybreak-red-latest", True),
    ],
)
def test_reasoning(model: str, reasoning: bool) -> None:
    assert MODELS[model]["reasoning"] is reasoning


def test_models_that_always_search() -> None:
    assert {name for name, entry in MODELS.items() if entry["webSearchIncluded"]} == {
        "gpt-4o-mini-search-preview",
        "gpt-4o-mini-search-preview-2025-03-11",
        "gpt-4o-search-preview",
        "gpt-4o-search-preview-2025-03-11",
        "gpt-5-search-api",
        "gpt-5-search-api-2025-10-14",
    }


@pytest.mark.parametrize(
    ("models", "last", "successor"),
    [
        ("chatgpt-image-latest gpt-image-1.5 gpt-image-1-mini", "2026-12-01", "gpt-image-2.6-sunburst"),
        ("gpt-5 gpt-5-pro o3 gpt-5-2025-08-07 o3-pro", "2026-12-11", "gpt-6.1-sol"),
        ("gpt-5-mini", "2026-12-11", "gpt-6.1-terra"),
        ("gpt-5-nano", "2026-12-11", "gpt-6-luna"),
        ("tts-1 tts-1-hd gpt-4o-mini-tts tts-1-1106 tts-1-hd-1106", "2027-01-06", None),
        ("gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini ft:gpt-4o-mini-2024-07-18", "2027-01-14", "gpt-6-luna"),
        ("gpt-audio", "2027-01-20", "gpt-audio-1.5"),
        ("gpt-realtime", "2027-01-20", "gpt-realtime-2.1"),
        ("whisper-1 gpt-4o-transcribe", "2027-02-26", "gpt-transcribe"),
        ("gpt-5.1", "2027-04-01", "gpt-6.1-sol"),
        ("gpt-4 gpt-4-0613 o1", "2026-10-23", "gpt-5.6-sol"),
        ("gpt-4o-search-preview gpt-4o-mini-search-preview", "2026-07-23", "gpt-5-search-api"),
        ("gpt-3.5-turbo-instruct gpt-3.5-turbo-instruct-0914 babbage-002", "2026-09-28", None),
    ],
)
def test_end_dates(models: str, last: str, successor: str | None) -> None:
    assert {(MODELS[name]["ends"], MODELS[name]["successor"]) for name in models.split()} == {(last, successor)}


def test_what_examples_use_has_no_end() -> None:
    """README, `make run`, `smoke` and the documents: what they show can be tried for as long as this version is used."""
    shown = [path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if path.name != "openai.md"]
    shown += [ROOT / "proxy.toml", ROOT / "proxy/cli/quickstart.py", ROOT / "proxy/cli/smoke/command.py"]
    used = {
        (path.name, name)
        for path in shown
        for name in re.findall(r"\bmodel\W{1,5}([a-z0-9][a-z0-9.-]+)", path.read_text())
        if name in MODELS
    }
    assert {path for path, _ in used} >= {"README.md", "quickstart.py", "sandbox.md"}
    assert {(path, name) for path, name in used if MODELS[name]["ends"] is not None} == set()
