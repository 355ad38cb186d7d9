"""What a handler of the newer endpoints is given."""

from collections.abc import Callable
from typing import Any

import msgspec

from sandbox.openai.chat.choices import Context
from sandbox.openai.exchange.store import Store
from sandbox.openai.requests.forms import Uploads


class Call(Context, frozen=True, kw_only=True):
    """One request with all that its answer needs."""

    store: Store
    new_id: Callable[[str], str]
    """Makes an id with the given prefix."""
    uploads: Uploads = msgspec.field(default_factory=dict)
    form: bool = False
    """The request was a form, whose values are all texts."""


def tier(body: dict[str, Any]) -> str:
    """The tier that served a request: `auto` is default here, `fast` is called priority."""
    asked = body.get("service_tier")
    return {"auto": "default", "fast": "priority"}.get(asked, asked) if isinstance(asked, str) else "default"
