"""JSON of clients: half of a surrogate pair is read as U+FFFD, and a whole number may be written 16.0."""

import json
from typing import Any

import msgspec


def read_json(text: bytes) -> Any:
    """Decode it. Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        if b"\\ud" not in text.lower():
            raise
    try:
        loose = json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None
    return msgspec.json.decode(loose.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def as_integer(value: Any) -> Any:
    """Return a whole number as int; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
