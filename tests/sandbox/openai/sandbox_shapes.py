"""Comparing what the simulator sends with the wire samples."""

import json
from pathlib import Path
from typing import Any

KEY = "sk-sandbox"
SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def skeleton(value: Any) -> Any:
    """Keys, order and types without the values; runs of equal list items count once."""
    if isinstance(value, dict):
        return [(key, skeleton(item)) for key, item in value.items()]
    if isinstance(value, list):
        return shapes(value)
    return type(value).__name__


def shapes(values: list[Any]) -> list[Any]:
    """The skeletons of a list."""
    found: list[Any] = []
    for value in values:
        shape = skeleton(value)
        if not found or found[-1] != shape:
            found.append(shape)
    return found


def sample(name: str) -> Any:
    """A JSON sample."""
    return json.loads((SAMPLES / name).read_text())


def sample_lines(name: str) -> list[Any]:
    """A sample of JSON lines."""
    return [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]


def typed_events(text: str) -> list[tuple[str | None, Any]]:
    """Name and data of each event of a stream."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if fields:
            found.append((fields.get("event"), json.loads(fields["data"])))
    return found


def sample_events(name: str) -> list[tuple[str | None, Any]]:
    """The events of a sample stream."""
    return typed_events((SAMPLES / name).read_text())


def steer(text: str, directive: dict[str, Any] | None) -> str:
    """A text that carries the directive."""
    return f"{text} [[sandbox {json.dumps(directive)}]]" if directive else text
