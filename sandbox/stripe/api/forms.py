"""Stripe's form encoding: `line_items[0][price]=x&expand[]=y` into nested dicts."""

import re
from typing import Any, Final
from urllib.parse import parse_qsl

from sandbox.stripe.account.errors import invalid

Tree = dict[str, Any]
_NAME: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART: Final = re.compile(r"\[([^\[\]]*)\]")
_MAX_DEPTH: Final = 12


def decode(text: str) -> Tree:
    """Return the parameters as nested dicts; an array is a dict whose keys are its indices."""
    tree: Tree = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        match = _NAME.fullmatch(key)
        if match is None:
            raise invalid(f"Invalid parameter name: {key}", param=key).not_started()
        parts = [match[1], *_PART.findall(match[2])]
        if len(parts) > _MAX_DEPTH:
            raise invalid(f"Parameter nested too deeply: {key}", param=key).not_started()
        _put(tree, parts, value, key)
    return tree


def _put(tree: Tree, parts: list[str], value: str, key: str) -> None:
    place = tree
    for position, part in enumerate(parts[:-1]):
        name = part or _index(place, parts[position + 1 :])
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise invalid(f"Invalid object: {key}", param=key).not_started()
        place = inner
    place[parts[-1] or str(len(place))] = value


def _index(place: Tree, rest: list[str]) -> str:
    """Return the element that `[]` means: the last one, unless that has the rest already (as Rack reads it)."""
    last = str(len(place) - 1)
    element: Any = place.get(last)
    for part in rest:
        if not isinstance(element, dict) or part not in element:
            return last if isinstance(place.get(last), dict) else str(len(place))
        element = element[part]
    return str(len(place))


def array(value: Any) -> list[Any] | None:
    """Return the elements, or None when the tree is no array."""
    if not isinstance(value, dict) or not all(name.isdecimal() for name in value):
        return None
    return [value[name] for name in sorted(value, key=int)]
