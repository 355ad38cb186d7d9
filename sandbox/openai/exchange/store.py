"""Stored responses, and background responses on their way."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from sandbox.openai.exchange.answer import Event
from sandbox.openai.exchange.bill import NO_TOOLS, Bill
from sandbox.openai.exchange.shelf import Shelf
from sandbox.openai.requests.errors import ApiError, error_object, invalid

_KEEP: Final = 5_000
_POLL_S: Final = 0.01
_STARTED: Final = 2
"""Events (created, queued) that a background response has at once."""


class BackgroundJob:
    """A background response: decided at once, coming to light by the clock."""

    def __init__(
        self, events: list[Event], states: dict[str, dict[str, Any]], bill: Bill, *, queued_s: float, working_s: float
    ) -> None:
        """Take the response objects by status, `final` being the last one, and a `bill` that counts no output yet."""
        self._events, self._states, self._bill = events, states, bill
        self._began = time.monotonic()
        self._queued_s, self._working_s = queued_s, working_s
        self._cancelled_at: int | None = None
        self.on_end: Callable[[], None] | None = None

    @property
    def total_s(self) -> float:
        """Time from creation to the end."""
        return self._queued_s + self._working_s

    def position(self) -> int:
        """Return the number of events that have happened."""
        if self._cancelled_at is not None:
            return self._cancelled_at
        rest = time.monotonic() - self._began - self._queued_s
        if rest < 0:
            return _STARTED
        left = len(self._events) - _STARTED - 1
        done = left if rest >= self._working_s else int(left * rest / self._working_s)
        return _STARTED + 1 + done

    def status(self) -> str:
        """Status of the response object."""
        if self._cancelled_at is not None:
            return "cancelled"
        position = self.position()
        if position == len(self._events):
            return str(self._states["final"]["status"])
        return "queued" if position <= _STARTED else "in_progress"

    def response(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        status = self.status()
        return self._states[status if status in self._states else "final"]

    def running(self) -> bool:
        """Tell whether more is to come."""
        return self.status() in {"queued", "in_progress"}

    def cancel(self) -> None:
        """Stop at the present event."""
        if self.running():
            self._cancelled_at = self.position()
            if self.on_end is not None:
                self.on_end()

    def follow(self, after: int) -> Iterator[Event]:
        """Yield the events with a sequence number above `after`, each when it happens."""
        at = after + 1
        while at < len(self._events):
            if at < self.position():
                yield self._events[at]
                at += 1
            elif self._cancelled_at is None:
                yield Event(b"", counted=False, pause_s=_POLL_S)
            else:
                return

    def charge(self) -> dict[str, Any] | None:
        """Bill a finished job its whole usage, one cancelled at work its output so far, a queued one nothing."""
        position = self.position()
        if self.running() or position <= _STARTED:
            return None
        bill = msgspec.structs.replace(self._bill)
        for event in self._events[:position]:
            bill.add(event.spent)
        return bill.billed(complete=self._cancelled_at is None)

    def tool_use(self) -> dict[str, Any] | None:
        """Return the use of hosted tools so far."""
        bill = msgspec.structs.replace(self._bill)
        for event in self._events[: self.position()]:
            bill.add(event.spent)
        return None if bill.tools is NO_TOOLS else bill.tools.to_record()


class Stored(msgspec.Struct):
    """A response that can be had again."""

    final: dict[str, Any]
    input_items: list[dict[str, Any]]
    conversation: list[dict[str, Any]]
    """All items a response that follows this one starts from."""
    later: dict[str, Any]
    job: BackgroundJob | None = None

    def response(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        return self.final if self.job is None else self.job.response()


class Store:
    """Stored responses by id; `beyond` is asked for those not here (sockets keep their own)."""

    def __init__(self, beyond: "Store | None" = None) -> None:
        """Start empty."""
        self._stored: dict[str, Stored] = {}
        self.shelf: Shelf = Shelf() if beyond is None else beyond.shelf
        self._beyond = beyond

    def put(self, response_id: str, stored: Stored) -> None:
        """Keep a response; the oldest goes when there are too many."""
        self._stored[response_id] = stored
        if len(self._stored) > _KEEP:
            del self._stored[next(iter(self._stored))]

    def find(self, response_id: str) -> Stored | None:
        """Return the response of that id."""
        found = self._stored.get(response_id)
        if found is None and self._beyond is not None:
            found = self._beyond.find(response_id)
        return found

    def get(self, response_id: str) -> Stored:
        """Return the response of that id. Raises ApiError 404."""
        found = self.find(response_id)
        if found is None:
            message = f"Response with id '{response_id}' not found."
            raise ApiError(404, error_object(message, "invalid_request_error"))
        return found

    def conversation(self, response_id: str | None) -> list[dict[str, Any]]:
        """Return the items before a request with that previous_response_id. Raises ApiError 400."""
        if response_id is None:
            return []
        found = self.find(response_id)
        if found is None:
            message = f"Previous response with id '{response_id}' not found."
            raise invalid(message, "previous_response_id", "previous_response_not_found")
        return found.conversation

    def delete(self, response_id: str) -> None:
        """Forget a response. Raises ApiError 404."""
        self.get(response_id)
        self._stored.pop(response_id, None)
