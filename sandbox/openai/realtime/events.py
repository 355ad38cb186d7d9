"""One realtime response as its events."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from sandbox.openai.chat.choices import Choice
from sandbox.openai.exchange.answer import Event
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.steering.directives import Directives, Failure
from sandbox.openai.tokens.output_text import Piece

_AUDIO: Final = "AAAA"
_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class RealtimePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that are fixed before a response begins."""

    id: str
    item_id: str
    call_id: str
    conversation_id: str | None
    """None: out of band, the answer does not become part of the conversation."""
    modalities: list[str]
    max_output_tokens: Any
    metadata: Any
    previous_item_id: str | None
    choice: Choice
    directives: Directives


class RealtimeStream:
    """The events from response.created to response.done."""

    def __init__(
        self,
        plan: RealtimePlan,
        bill: Bill,
        event_id: Callable[[], str],
        on_item: Callable[[dict[str, Any], Bill], None],
    ) -> None:
        """Read `bill` without changing it. `on_item` gets the finished item before response.done leaves."""
        self._plan, self._bill, self._event_id, self._on_item = plan, bill, event_id, on_item
        self._mode = plan.directives.usage_on
        self._sent = 0
        self._said: list[Piece] = []
        self.cancelled: str | None = None
        """Set from outside: the reason to stop at the next event."""

    def events(self) -> Iterator[Event]:
        """Yield all events; a cancelled response stops its output and says so in response.done."""
        yield self._emit("response.created", {"response": self._response("in_progress", None, [], None)})
        yield self._emit("rate_limits.updated", {"rate_limits": _limits()})
        failure = self._failure()
        if failure is None:
            yield from self._call() if self._plan.choice.kind == "tool" else self._message()
        yield self._done(failure)

    def error_event(self, error: dict[str, Any], _sent: int) -> bytes:
        """Return an error in the middle of a response."""
        return msgspec.json.encode(error_frame(error, self._event_id()))

    def _failure(self) -> Failure | None:
        wanted = self._plan.directives.failed
        return Failure() if wanted is True else wanted or None

    def _emit(self, kind: str, fields: dict[str, Any], text: str = "", spent: Spent = Spent()) -> Event:  # noqa: B008 - frozen
        usage: Any = msgspec.UNSET
        if self._mode == "every":
            usage = self._bill.with_spent(spent).sent()
            fields.get("response", fields)["usage"] = usage
        self._sent += 1
        limit = self._plan.directives.cancel_after_chunks
        if limit is not None and self._sent >= limit:
            self.cancelled = self.cancelled or "turn_detected"
        data = msgspec.json.encode({"type": kind, "event_id": self._event_id(), **fields})
        return Event(data, text, spent, usage=msgspec.UNSET if usage is None else usage)

    def _response(self, status: str, details: Any, output: list[Any], usage: Any) -> dict[str, Any]:
        plan = self._plan
        return {
            "object": "realtime.response",
            "id": plan.id,
            "status": status,
            "status_details": details,
            "output": output,
            "conversation_id": plan.conversation_id,
            "output_modalities": plan.modalities,
            "max_output_tokens": plan.max_output_tokens,
            "usage": usage,
            "metadata": plan.metadata,
        }

    @property
    def _at(self) -> dict[str, Any]:
        plan = self._plan
        return {"response_id": plan.id, "item_id": plan.item_id, "output_index": 0}

    def _item(self, kind: str, status: str, **fields: Any) -> dict[str, Any]:
        return {"id": self._plan.item_id, "object": "realtime.item", "type": kind, "status": status, **fields}

    def _own(self, status: str, text: str) -> dict[str, Any]:
        """Return the output item with its content."""
        choice = self._plan.choice
        if choice.kind == "tool":
            head = {"name": choice.tool, "call_id": self._plan.call_id}
            return self._item("function_call", status, **head, arguments=text)
        kind, name = ("output_audio", "transcript") if choice.kind == "audio" else ("output_text", "text")
        return self._item("message", status, role="assistant", content=[{"type": kind, name: text}])

    def _opened(self, item: dict[str, Any]) -> Iterator[Event]:
        plan = self._plan
        yield self._emit("response.output_item.added", {"response_id": plan.id, "output_index": 0, "item": item})
        if plan.conversation_id is not None:
            yield self._emit("conversation.item.added", {"previous_item_id": plan.previous_item_id, "item": item})

    def _closed(self, item: dict[str, Any]) -> Iterator[Event]:
        plan = self._plan
        if plan.conversation_id is not None:
            yield self._emit("conversation.item.done", {"previous_item_id": plan.previous_item_id, "item": item})
        fields: dict[str, Any] = {"response_id": plan.id, "output_index": 0, "item": item}
        if self._mode == "finish":
            fields["usage"] = self._bill.sent()
        event = self._emit("response.output_item.done", fields)
        sent = fields.get("usage")
        yield event if sent is None else msgspec.structs.replace(event, usage=sent)

    def _message(self) -> Iterator[Event]:
        choice = self._plan.choice
        audio = choice.kind == "audio"
        kind = "output_audio_transcript" if audio else "output_text"
        yield from self._opened(self._item("message", "in_progress", role="assistant", content=[]))
        at = self._at | {"content_index": 0}
        part = {"type": "audio", "transcript": ""} if audio else {"type": "text", "text": ""}
        yield self._emit("response.content_part.added", at | {"part": part})
        for piece in choice.pieces:
            if self.cancelled:
                break
            self._said.append(piece)
            voice = piece.tokens * choice.audio_factor
            # The transcript comes first; its audio is charged with the audio's own event.
            yield self._emit(f"response.{kind}.delta", at | {"delta": piece.text}, piece.text, Spent(piece.tokens))
            if audio:
                yield self._emit("response.output_audio.delta", at | {"delta": _AUDIO}, spent=Spent(voice, 0, voice))
        text = "".join(piece.text for piece in self._said)
        if audio:
            yield self._emit("response.output_audio.done", at)
        yield self._emit(f"response.{kind}.done", at | {"transcript" if audio else "text": text})
        yield self._emit("response.content_part.done", at | {"part": part | {"transcript" if audio else "text": text}})
        yield from self._closed(self._own(self._item_status(), text))

    def _call(self) -> Iterator[Event]:
        choice, plan = self._plan.choice, self._plan
        yield from self._opened(self._own("in_progress", ""))
        at = self._at | {"call_id": plan.call_id}
        spent = Spent(choice.name_tokens)
        for piece in choice.pieces:
            if self.cancelled:
                break
            self._said.append(piece)
            cost = Spent(piece.tokens + spent.tokens)
            yield self._emit("response.function_call_arguments.delta", at | {"delta": piece.text}, piece.text, cost)
            spent = Spent()
        text = "".join(piece.text for piece in self._said)
        done = at | {"name": choice.tool, "arguments": text}
        yield self._emit("response.function_call_arguments.done", done, spent=spent)
        yield from self._closed(self._own(self._item_status(), text))

    def _item_status(self) -> str:
        return "incomplete" if self.cancelled or self._plan.choice.finish in _REASONS else "completed"

    def _done(self, failure: Failure | None) -> Event:
        status, details = self._outcome(failure)
        usage: Any = self._bill.sent()
        if (failure is not None and not failure.usage) or self._mode == "finish":
            usage = None
        said = "".join(piece.text for piece in self._said)
        output = [] if failure is not None else [self._own(self._item_status(), said)]
        if output:
            self._on_item(output[0], self._bill)
        event = self._emit("response.done", {"response": self._response(status, details, output, usage)})
        return event if usage is None else msgspec.structs.replace(event, usage=usage)

    def _outcome(self, failure: Failure | None) -> tuple[str, dict[str, Any] | None]:
        if failure is not None:
            return "failed", {
                "type": "failed",
                "error": {"type": failure.code, "code": failure.code, "message": failure.message},
            }
        if self.cancelled is not None:
            return "cancelled", {"type": "cancelled", "reason": self.cancelled}
        reason = _REASONS.get(self._plan.choice.finish)
        if reason is not None:
            return "incomplete", {"type": "incomplete", "reason": reason}
        return "completed", None


def error_frame(error: dict[str, Any], event_id: str, cause: Any = None) -> dict[str, Any]:
    """Return an error event; `cause` is the event_id of the client's message."""
    shown = {name: error.get(name) for name in ("type", "code", "message", "param")}
    return {"type": "error", "event_id": event_id, "error": shown | {"event_id": cause}}


def _limits() -> list[dict[str, Any]]:
    return [
        {"name": "requests", "limit": 1000, "remaining": 999, "reset_seconds": 0.06},
        {"name": "tokens", "limit": 50000, "remaining": 49950, "reset_seconds": 0.06},
    ]
