"""Upstreams drained by hand: over the file, and never so that nobody serves."""

import pytest

from config.flags import DRAIN, full_name, with_drained
from config.settings import Settings, UpstreamEntry


def settings(**draining: bool) -> Settings:
    entries = (UpstreamEntry(name=name, base_url="http://x/v1", draining=on) for name, on in draining.items())
    return Settings(upstreams=tuple(entries))


@pytest.mark.parametrize(
    ("file", "by_hand", "drained"),
    [
        ({"a": False, "b": False}, ["a"], {"a"}),
        ({"a": False, "b": True}, [], {"b"}),
        ({"a": False, "b": False, "c": True}, ["b"], {"b", "c"}),
        ({"a": False, "b": False}, ["gone"], set()),
        ({"a": False, "b": False}, ["a", "b"], set()),
        ({"a": False, "b": True}, ["a"], {"b"}),
        ({}, ["openai"], set()),
    ],
)
def test_overrides_drain_unless_nobody_would_serve(
    file: dict[str, bool], by_hand: list[str], drained: set[str]
) -> None:
    found = with_drained(settings(**file), {DRAIN + name: True for name in by_hand})
    assert {entry.name for entry in found.upstreams if entry.draining} == drained


def test_the_override_is_called_by_its_place_in_the_file() -> None:
    assert full_name(DRAIN + "eu") == "upstreams.eu.draining"
