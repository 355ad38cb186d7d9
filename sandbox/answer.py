"""An answer before it meets the wire."""

from collections.abc import Iterator
from typing import Any

import msgspec

from sandbox.directives import Directives
from sandbox.usage import Bill, Spent

NO_DIRECTIVES = Directives()
NOTHING = Spent()


class Request(msgspec.Struct, frozen=True):
    """One HTTP request as received."""

    method: str
    path: str
    """Decoded path without the query."""
    query: str
    headers: dict[str, str]
    """Names in lower case; repeated headers joined by a comma."""
    body: bytes
    keep_alive: bool
    http10: bool


class Event(msgspec.Struct, frozen=True):
    """One SSE event, with what it carries of the output."""

    data: bytes
    """The exact bytes, separator included."""
    text: str = ""
    spent: Spent = NOTHING
    counted: bool = True
    """False for `[DONE]` and error events, which are no chunks."""
    usage: Any = msgspec.UNSET
    """The usage value on this event, when it has one that is not null."""


class Answer(msgspec.Struct):
    """Status and body, or status and events; how it is delivered is up to its directives."""

    status: int
    body: bytes = b""
    events: Iterator[Event] | None = None
    content_type: str = "application/json"
    text: str = ""
    """Output text inside `body`."""
    bill: Bill | None = None
    """None: nothing is charged."""
    usage: Any = msgspec.UNSET
    """The usage value inside `body`."""
    service_tier: str | None = None
    model: str = ""
    directives: Directives = NO_DIRECTIVES


def json_answer(value: Any, status: int = 200) -> Answer:
    """An uncharged JSON answer."""
    return Answer(status, msgspec.json.encode(value))
