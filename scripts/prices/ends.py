"""When models end, and what to use then (R11, R12 of scripts/build_prices.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

from scripts.prices.source import fail

SNAPSHOT_OF = re.compile(r"(.+)-(\d{4}-\d{2}-\d{2}|\d{4})")


def add_ends(models: dict[str, dict[str, Any]], listed: Mapping[str, Any]) -> None:
    """Set each model's end and successor; fail for a date that is none, or of no model."""
    for name in listed["dates"]:
        if name not in models:
            fail(name, "has an end date and no row")
    for name, text in [*listed["dates"].items(), *((name, entry["ends"]) for name, entry in models.items())]:
        if text is not None:
            check_date(name, text)
    ends = {name: listed["dates"].get(name, entry["ends"]) for name, entry in models.items()}
    snapshots: dict[str, list[str]] = {}
    for name in models:
        match = SNAPSHOT_OF.fullmatch(name)
        if match and match[1] in models:
            snapshots.setdefault(match[1], []).append(name)
    for alias, names in snapshots.items():
        dates = [ends[name] for name in names if ends[name] is not None]
        if ends[alias] is None and len(dates) == len(names):
            ends[alias] = max(dates)
        for name in names:
            ends[name] = ends[name] or ends[alias]
    for name, entry in models.items():
        entry["ends"] = ends[name]
        if ends[name] is not None:
            entry["successor"] = successor_of(name, listed["successors"])


def check_date(name: str, text: str) -> None:
    try:
        date.fromisoformat(text)
    except ValueError:
        fail(name, f"{text!r} is not a date")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        fail(name, f"{text!r} is not a date such as 2026-12-01")


def successor_of(name: str, successors: Mapping[str, list[str]]) -> str | None:
    found = [successor for successor, globs in successors.items() if any(fnmatchcase(name, glob) for glob in globs)]
    if len(found) > 1:
        fail(name, f"has two successors: {sorted(found)}")
    return found[0] if found else None


def check_successor(name: str, entry: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a successor that is not priced, not used at the same endpoint, or gone no later than the model."""
    successor = entry.get("successor")
    if successor is None:
        return
    other = models.get(successor)
    if other is None:
        fail(name, f"its successor {successor!r} has no price")
    if not set(other["endpoints"]) & set(entry["endpoints"]):
        fail(name, f"its successor {successor!r} works at none of its endpoints")
    if other["ends"] is not None and other["ends"] <= entry["ends"]:
        fail(name, f"its successor {successor!r} ends on {other['ends']}, no later")
