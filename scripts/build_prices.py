"""Build config/prices/catalogue.json and regional.json from config/prices/source.json.

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
R11 A model ends on the date in the source's `ends`, else on its row's deprecation_date.
    An alias without a date ends with the last of its snapshots, where all of them end
    (it would point nowhere); a snapshot without one ends with its alias.
R12 A successor is priced, works at one of the model's endpoints, and ends later.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a file, it finds its steps (hence E402 below)

from scripts.prices.checks import check_catalogue  # noqa: E402
from scripts.prices.ends import add_ends  # noqa: E402
from scripts.prices.models import model_entry  # noqa: E402
from scripts.prices.rates import complete_rates, raw_rates, supplement_rates  # noqa: E402
from scripts.prices.source import CatalogueError, Row, Tier, check_row, fail, is_model, load_source, plain, to_decimal  # noqa: E402

SOURCE = ROOT / "config" / "prices" / "source.json"
CATALOGUE = ROOT / "config" / "prices" / "catalogue.json"

REGIONAL = ROOT / "config" / "prices" / "regional.json"
REGIONS = ("ae", "au", "eu", "in", "jp", "us")
"""Names of OpenAI's regional hosts; the source has the uplift of two of them, and it is the same at each."""
UPLIFTS = ("regional_processing_uplift_multiplier_eu", "regional_processing_uplift_multiplier_us")

CATALOGUE_ID = "openai-2026-11-29"
EFFECTIVE_FROM = "2026-11-29"
UNIT = "USD per 1,000,000 tokens unless named otherwise"

TOOL_FIELDS = {
    "web_search": "web_search_per_call_usd",
    "web_search_preview_non_reasoning": ("web_search_preview_non_reasoning_models_per_call_usd"),
    "file_search": "file_search_call_usd",
    "code_interpreter_1g": "code_interpreter_container_session_usd_1g",
    "vector_store_gb_day": "vector_store_gb_day_usd",
}


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
    add_ends(models, source["ends"])
    return models, sorted(unpriced)


def build_tools(source: Mapping[str, Any]) -> dict[str, str]:
    tools = source["tools"]
    return {tool: plain(to_decimal(tools[field], field)) for tool, field in TOOL_FIELDS.items()}


def describe_source(source: Mapping[str, Any]) -> str:
    origin = source["_source"]
    return (
        f"{origin['primary']} (sha256 {origin['sha256']}); second source: "
        f"{origin['secondary']}; newer models from the supplement, "
        "and end dates from `ends`, in source.json"
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


def regional(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return by what factor models cost more at a regional host."""
    models: dict[str, str] = {}
    for name, row in source["models"].items():
        factors = {plain(to_decimal(row[field], field)) for field in UPLIFTS if field in row}
        if len(factors) > 1:
            fail(name, "costs more in one region than in another")
        models |= dict.fromkeys([name] if is_model(name) else [], *factors) if factors else {}
    return {"regions": list(REGIONS), "models": models}


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
        source = load_source(SOURCE)
        made = {CATALOGUE: render(build(source)), REGIONAL: render(regional(source))}
    except CatalogueError as error:
        sys.stderr.write(f"price catalogue: {error}\n")
        return 1
    if not check_only:
        for path, text in made.items():
            path.write_bytes(text.encode())
        return 0
    if all(path.is_file() and path.read_bytes() == text.encode() for path, text in made.items()):
        return 0
    sys.stderr.write("price catalogue: out of date, run scripts/build_prices.py\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
