"""WebSockets as their sessions see them, and the helpers those sessions share."""

from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from sandbox.openai.exchange.answer import Answer, Event, Request
from sandbox.openai.exchange.record import Entry
from sandbox.openai.exchange.simulator import Simulator
from sandbox.openai.requests.errors import ApiError, invalid, status_error
from sandbox.openai.requests.json_text import read_json


class Channel(Protocol):
    """The socket as a session sees it."""

    simulator: Simulator
    request: Request
    """The handshake."""

    def send(self, value: dict[str, Any]) -> None:
        """Send one event outside of any answer."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the reading of messages; it ends with the socket."""

    def open_entry(self, raw: bytes, body: Any) -> Entry:
        """Begin the record of one answer."""

    async def deliver(self, answer: Answer, entry: Entry) -> None:
        """Send an answer made of events."""


def read_message(text: bytes) -> dict[str, Any]:
    """Decode the message. Raises ApiError."""
    try:
        value = read_json(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid("We could not parse the JSON of your message.", None, "invalid_json")
    return value


def error_of(answer: Answer) -> dict[str, Any]:
    """Return the error object of an error answer; pages of the edge have none."""
    try:
        shown = msgspec.json.decode(answer.body)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        shown = None
    return shown if isinstance(shown, dict) else status_error(answer.status)


def as_answer(error: ApiError) -> Answer:
    """Turn an error into an answer."""
    return Answer(error.status, msgspec.json.encode({"error": error.error}))


def only_event(answer: Answer, value: dict[str, Any]) -> Answer:
    """Turn an error answer into the one event that says so."""
    answer.events = iter([Event(msgspec.json.encode(value), counted=False)])
    return answer
