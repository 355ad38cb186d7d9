"""scripts/build_prices.py as a module, and the catalogue it made; no number in it is a float."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRICES = ROOT / "config" / "prices"


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "build_prices.py"
    spec = importlib.util.spec_from_file_location("build_prices_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def no_float(text: str) -> None:
    raise AssertionError(f"the catalogue holds the float {text}")


script = load_script()
CATALOGUE: dict[str, Any] = json.loads((PRICES / "catalogue.json").read_text(encoding="utf-8"), parse_float=no_float)
MODELS: dict[str, dict[str, Any]] = CATALOGUE["models"]
