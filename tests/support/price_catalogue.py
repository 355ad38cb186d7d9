"""scripts/build_prices.py as a module, and the catalogue it made; no number in it is a float."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts import build_prices as script

__all__ = ["CATALOGUE", "MODELS", "PRICES", "script"]

ROOT = Path(__file__).resolve().parents[2]
PRICES = ROOT / "config" / "prices"


def no_float(text: str) -> None:
    raise AssertionError(f"the catalogue holds the float {text}")


CATALOGUE: dict[str, Any] = json.loads((PRICES / "catalogue.json").read_text(encoding="utf-8"), parse_float=no_float)
MODELS: dict[str, dict[str, Any]] = CATALOGUE["models"]
