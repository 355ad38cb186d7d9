"""Streams of a few typed events, of which the last ones carry usage (images, speech, transcripts)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from sandbox.openai.exchange.answer import Event
from sandbox.openai.exchange.bill import Bill, Spent

NOTHING = Spent()


class TypedEvent(msgspec.Struct, frozen=True):
    """One event."""

    fields: dict[str, Any]
    text: str = ""
    spent: Spent = NOTHING
    final: bool = False
    """Usage belongs on this one."""
    bill: Bill | None = None
    """Bill that the usage on it states; None: that of the whole request."""


def typed_stream(bill: Bill, steps: Iterable[TypedEvent], wrap: Callable[[dict[str, Any]], bytes]) -> Iterator[Event]:
    """Yield the events; `bill` is read, not changed. `usage_on` says which ones carry usage."""
    mode = bill.directives.usage_on
    listed = list(steps)
    for index, step in enumerate(listed):
        before_final = index + 1 < len(listed) and listed[index + 1].final
        usage: Any = None
        if {"every": True, "finish": before_final, "last": step.final}[mode]:
            usage = step.bill.sent() if step.bill is not None else bill.with_spent(step.spent).sent()
        fields = step.fields if usage is None else step.fields | {"usage": usage}
        yield Event(wrap(fields), step.text, step.spent, usage=msgspec.UNSET if usage is None else usage)
