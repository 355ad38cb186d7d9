"""The client's tool that the `tool_calls` directive has the model call, one an answer."""

from collections.abc import Iterable
from typing import Any

import msgspec

from sandbox.openai.requests.errors import invalid
from sandbox.openai.steering.directives import Directives


def scripted_call(directives: Directives, turns: Iterable[str]) -> dict[str, Any] | None:
    """Return the entry of this answer, if it has one. `turns`: what the model reads, each `user`, `output` or else."""
    done = 0
    for turn in turns:
        done = 0 if turn == "user" else done + (turn == "output")
    return directives.tool_calls[done] if done < len(directives.tool_calls) else None


def scripted_name(entry: dict[str, Any]) -> str:
    """Name of the function or custom tool that is called. Raises ApiError."""
    name = entry.get("name")
    if not isinstance(name, str):
        raise invalid("sandbox directive: an entry of `tool_calls` needs a name", None, "bad_directive")
    return name


def scripted_text(entry: dict[str, Any]) -> str:
    """Words for the tool: a text as it is, anything else as JSON."""
    given = entry.get("arguments", {})
    return given if isinstance(given, str) else msgspec.json.encode(given).decode()
