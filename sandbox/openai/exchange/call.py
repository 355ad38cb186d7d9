"""One request on its way to an answer, with all that decides it."""

from collections.abc import Callable
from typing import Any

import msgspec
import tiktoken

from sandbox.openai.exchange.store import Store
from sandbox.openai.requests.forms import Uploads
from sandbox.openai.steering.directives import Directives
from sandbox.openai.steering.settings import Live


class Context(msgspec.Struct, frozen=True):
    """Input of the choices: model, body, directives and settings."""

    encoding: tiktoken.Encoding
    model: str
    body: dict[str, Any]
    directives: Directives
    live: Live
    echo: str
    """Text of the `echo` directive, made by whoever saw the headers; empty without it."""
    schema: Any = None
    """JSON schema that the text has to fit."""


class Call(Context, frozen=True, kw_only=True):
    """One request with all that its answer needs."""

    store: Store
    new_id: Callable[[str], str]
    """Makes an id with the given prefix."""
    new_digits: Callable[[], str]
    """Makes the digits of an id."""
    uploads: Uploads = msgspec.field(default_factory=dict)
    form: bool = False
    """The request was a form, whose values are all texts."""


def served_tier(body: dict[str, Any]) -> str:
    """Return the tier that served a request: `auto` is default here, `fast` is called priority."""
    asked = body.get("service_tier")
    return {"auto": "default", "fast": "priority"}.get(asked, asked) if isinstance(asked, str) else "default"
