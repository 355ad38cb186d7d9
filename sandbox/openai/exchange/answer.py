"""An answer before it meets the wire."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.steering.directives import Directives

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


class Job(Protocol):
    """Work that outlives its request and is charged when it ends."""

    def charge(self) -> dict[str, Any] | None:
        """Return its usage; None while it runs, or when it costs nothing."""

    def status(self) -> str:
        """Its present status."""

    def tool_use(self) -> dict[str, Any] | None:
        """Return the use of hosted tools so far."""


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
    pause_s: float = 0.0
    """Nothing to send yet: come back after that many seconds."""


ErrorEvent = Callable[[dict[str, Any], int], bytes]
"""Makes an error event from the error object and the number of events before it."""


def data_line(value: Any) -> bytes:
    """Return an SSE event without a name."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """Return an SSE event named after its type."""
    return b"event: " + str(value["type"]).encode() + b"\n" + data_line(value)


def plain_error(error: dict[str, Any], _sent: int) -> bytes:
    """Return an error in the middle of a stream of data lines."""
    return data_line({"error": error})


class Answer(msgspec.Struct):
    """Status and body, or status and events; how it is delivered is up to its directives."""

    status: int
    body: bytes = b""
    events: Iterator[Event] | None = None
    content_type: str = ""
    """Empty: JSON, or an event stream when there are events."""
    text: str = ""
    """Output text inside `body`."""
    bill: Bill | None = None
    """None: nothing is charged."""
    usage: Any = msgspec.UNSET
    """The usage value inside `body`."""
    extra_usage: Any = None
    """A second usage object, of another model (`svg_usage`)."""
    service_tier: str | None = None
    model: str = ""
    directives: Directives = NO_DIRECTIVES
    error_event: ErrorEvent | None = plain_error
    """Makes the event of `error_after_chunks`; None: this stream has no errors, it just breaks off."""
    job: Job | None = None
    """The charge comes from here and not from `bill`."""
    response_id: str | None = None
    """Id of the response object this answer creates or shows."""


def json_answer(value: Any, status: int = 200) -> Answer:
    """Return an uncharged JSON answer."""
    return Answer(status, msgspec.json.encode(value))
