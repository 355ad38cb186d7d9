"""scripts/build_prices.py: the shipped catalogue is what it builds, and what it refuses to build from."""

from __future__ import annotations

import copy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from scripts.prices.source import plain
from tests.support.price_catalogue import MODELS, PRICES, script


@pytest.fixture
def source() -> dict[str, Any]:
    loaded = script.load_source(script.SOURCE)
    assert isinstance(loaded, dict)
    return loaded


def test_committed_catalogue_is_what_the_script_builds(source: dict[str, Any]) -> None:
    committed = (PRICES / "catalogue.json").read_bytes()
    assert committed == script.render(script.build(source)).encode()
    assert script.main(["--check"]) == 0


def test_check_notices_another_catalogue(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "catalogue.json"
    monkeypatch.setattr(script, "CATALOGUE", other)
    assert script.main(["--check"]) == 1
    assert not other.exists()
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    other.write_text(other.read_text().replace('"0.15"', '"0.16"'))
    assert script.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err


def test_never_below_the_second_source(source: dict[str, Any]) -> None:
    fields = {
        "input_mtok": "input",
        "cache_read_mtok": "cached_input",
        "cache_write_mtok": "cache_write_30m",
        "input_audio_mtok": "audio_input",
        "output_audio_mtok": "audio_output",
        "input_image_mtok": "image_input",
        "output_image_mtok": "image_output",
        "output_mtok": "output",
    }
    compared = 0
    for name, row in source["second_source_genai_prices"].items():
        block = MODELS.get(name, {}).get("rates", {}).get("default", {}).get("short")
        if block is None:
            continue
        for field, part in fields.items():
            price = row.get(field)
            if isinstance(price, dict):
                price = price["base"]
            ours = block.get(part)
            if ours is None and part == "output":
                ours = block.get("image_output")
            if price is not None and ours is not None:
                assert Decimal(ours) >= price, (name, field)
                compared += 1
    assert compared > 150


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_cost_per_token": Decimal("-1e-6")}, "plain decimal"),
        ({"input_cost_per_token": Decimal("1e-20")}, "decimals"),
        ({"input_cost_per_token": Decimal(0)}, "zero"),
        ({"input_cost_per_token": 2.5e-06}, "not an exact number"),
        ({"input_cost_per_token": True}, "not an exact number"),
        ({"cache_read_input_token_cost": Decimal("9e-6")}, "is above input"),
        ({"output_cost_per_token": Decimal(0)}, "missing"),
        ({"input_cost_per_smell": Decimal("1e-6")}, "unknown price field"),
        ({"output_cost_per_token_above_272k_tokens": Decimal("1e-6")}, "below"),
        ({"input_cost_per_token_above_272k_tokens_flex": Decimal(1)}, "no usable"),
        ({"supported_endpoints": ["/v1/embeddings", "/v1/new"]}, "unknown endpoint"),
        ({"deprecation_date": "soon"}, "not a date"),
    ],
)
def test_build_refuses(source: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    broken = copy.deepcopy(source)
    row = broken["models"]["gpt-4o"]
    row["usd_per_1m_tokens"] = {}
    row.update(changes)
    with pytest.raises(script.CatalogueError, match=message):
        script.build(broken)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dates/gpt-99", "2027-01-01", "no row"),
        ("dates/gpt-4o", "2027-02-30", "not a date"),
        ("dates/gpt-4o", "20270114", "not a date such as"),
        ("successors/gpt-99", ["gpt-4o-2*"], "two successors"),
        ("successors/gpt-99", ["tts-1"], "has no price"),
        ("successors/gpt-6-luna", ["tts-1"], "none of its endpoints"),
        ("dates/gpt-6-luna", "2027-01-14", "no later"),
    ],
)
def test_build_refuses_ends(source: dict[str, Any], path: str, value: Any, message: str) -> None:
    broken = copy.deepcopy(source)
    part, name = path.split("/")
    if part == "successors" and name == "gpt-6-luna":
        value = [*broken["ends"][part][name], *value]
    broken["ends"][part][name] = value
    with pytest.raises(script.CatalogueError, match=message):
        script.build(broken)


def test_an_alias_ends_with_its_snapshots_and_a_snapshot_with_its_alias(source: dict[str, Any]) -> None:
    for name in ("gpt-4o", "gpt-4.1"):
        del source["ends"]["dates"][name]
    source["models"]["tts-1"]["deprecation_date"] = "2027-01-07"
    built = script.build(source)["models"]
    assert {name: built[name]["ends"] for name in ("gpt-4o", "gpt-4.1", "tts-1-1106")} == {
        "gpt-4o": "2027-01-14",
        "gpt-4.1": "2027-01-14",
        "tts-1-1106": "2027-01-07",
    }
    source["models"]["gpt-4o-2024-11-20"]["deprecation_date"] = None
    assert script.build(source)["models"]["gpt-4o"]["ends"] is None, "one of its snapshots goes on"


def test_build_refuses_a_wrong_per_million_copy(source: dict[str, Any]) -> None:
    broken = copy.deepcopy(source)
    broken["models"]["gpt-4o"]["usd_per_1m_tokens"]["input_cost_per_token"] = 3
    with pytest.raises(script.CatalogueError, match="per-million copy"):
        script.build(broken)


def test_model_without_an_output_price_is_listed_not_sold(
    source: dict[str, Any],
) -> None:
    broken = copy.deepcopy(source)
    row = broken["models"]["gpt-4o-2024-11-20"]
    row["usd_per_1m_tokens"] = {}
    for field in [f for f in row if f.startswith("output_cost_per_token")]:
        del row[field]
    built = script.build(broken)
    assert "gpt-4o-2024-11-20" not in built["models"]
    assert "gpt-4o-2024-11-20" in built["unpriced"]


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[]"])
def test_source_must_be_clean(tmp_path: Path, text: str) -> None:
    path = tmp_path / "source.json"
    path.write_text(text)
    with pytest.raises(script.CatalogueError):
        script.load_source(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+1", "10"),
        ("2.50", "2.5"),
        ("7.5e-05", "0.000075"),
        ("0.0", "0"),
        ("0E+5", "0"),
        ("100", "100"),
    ],
)
def test_plain(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text
