"""JSON of an upstream, read as leniently as its clients do: what they can use must not count as nothing. Pure."""

import json
from typing import Any

import msgspec


def decode_object(data: bytes) -> dict[str, Any] | None:
    """Object in these bytes; None when there is none.

    Taken too, as every SDK does: a byte order mark, lone surrogates, bad UTF-8, NaN and -Infinity, raw control
    characters in strings.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            value = json.loads(data.decode("utf-8-sig", "replace"), strict=False)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
