"""One answer of the Responses API as its typed events; the JSON answer is what the last event says."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from sandbox.openai.chat.choices import Choice, logprobs
from sandbox.openai.exchange.answer import Event, named_event
from sandbox.openai.exchange.bill import NO_TOOLS, Bill, Spent
from sandbox.openai.exchange.call import Call, served_tier
from sandbox.openai.requests.checks import is_reasoning
from sandbox.openai.responses.hosted_tools import HostedCall
from sandbox.openai.responses.input import text_format, tools_of
from sandbox.openai.steering.directives import Failure
from sandbox.openai.tokens.output_text import Piece

_SEALED: Final = "gAAAAA=="
_SUMMARY: Final = "Thinking about it."
_INCOMPLETE: Final = {"length": "max_output_tokens"}
_REASONS: Final = frozenset({"max_output_tokens", "max_messages", "content_filter", "steered"})
Wrap = Callable[[dict[str, Any]], bytes]


class ResponsePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Whole answer, before any of it is said."""

    call: Call
    id: str
    created: int
    choice: Choice
    hosted: list[HostedCall]
    speaks: bool
    """There is a message or a function call at the end."""
    namespace: str | None = None
    """Namespace of the function that is called."""
    takes_s: float = 0.0
    """Duration of a background response."""

    @property
    def background(self) -> bool:
        """True where the response goes on without its request."""
        return self.call.body.get("background") is True

    @property
    def reason(self) -> str | None:
        """Reason of an incomplete response; None when it is complete."""
        finish = _INCOMPLETE.get(self.choice.finish, self.choice.finish)
        return finish if finish in _REASONS else None

    @property
    def failure(self) -> Failure | None:
        """Failure of the response, if it has one."""
        wanted = self.call.directives.failed
        return Failure() if wanted is True else wanted or None


def _echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"type": "function", "description": None, "name": "", "parameters": None, "strict": True} | tool


def _reasoning(model: str, body: dict[str, Any]) -> dict[str, Any]:
    asked = body.get("reasoning") or {}
    default = "medium" if is_reasoning(model) else None
    return {"effort": asked.get("effort") or default, "summary": asked.get("summary")}


class ResponseStream:
    """Events of one response. `response` is its object as of the last event."""

    def __init__(self, plan: ResponsePlan, bill: Bill, wrap: Wrap = named_event) -> None:
        """Read `bill` without changing it: whoever sends the events accounts for them."""
        self._plan, self._bill, self._wrap = plan, bill, wrap
        call = plan.call
        self._mode = call.directives.usage_on
        options = call.body.get("stream_options") or {}
        self._padding: dict[str, Any] = {} if options.get("include_obfuscation") is False else {"obfuscation": "xY"}
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self.on_end: Callable[[dict[str, Any]], None] | None = None
        """Called with the response object before its last event leaves."""
        self.response: dict[str, Any] = {}
        self.steered = False
        """Set from outside: stop at the next piece and end as incomplete."""
        self._said: list[Piece] = []

    def state(self, status: str, **changes: Any) -> dict[str, Any]:
        """Return the response object in a status, without output and usage unless given."""
        plan, body = self._plan, self._plan.call.body
        cache = body.get("prompt_cache_options") or {}
        text = body.get("text") or {}
        asked_tier = body.get("service_tier") or "auto"
        return {
            "id": plan.id,
            "object": "response",
            "created_at": plan.created,
            "status": status,
            "background": plan.background,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "max_tool_calls": body.get("max_tool_calls"),
            "model": plan.call.directives.model or plan.call.model,
            "output": [],
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": body.get("previous_response_id"),
            "prompt_cache_key": body.get("prompt_cache_key"),
            "prompt_cache_options": {"mode": cache.get("mode") or "implicit", "ttl": cache.get("ttl") or "30m"},
            "prompt_cache_retention": body.get("prompt_cache_retention"),
            "reasoning": _reasoning(plan.call.model, body),
            "safety_identifier": body.get("safety_identifier"),
            "service_tier": asked_tier,
            "store": body.get("store") is not False,
            "temperature": _given(body, "temperature", 1.0),
            "text": {"format": text_format(body), "verbosity": text.get("verbosity") or "medium"},
            "tool_choice": _given(body, "tool_choice", "auto"),
            "tools": [_echoed_tool(tool) for tool in tools_of(body)],
            "top_logprobs": _given(body, "top_logprobs", 0),
            "top_p": _given(body, "top_p", 1.0),
            "truncation": _given(body, "truncation", "disabled"),
            "usage": None,
            "user": body.get("user"),
            "metadata": body.get("metadata") or {},
        } | changes

    def events(self) -> Iterator[Event]:
        """Yield from response.created to exactly one of completed, incomplete and failed."""
        plan = self._plan
        first = "queued" if plan.background else "in_progress"
        yield self._lifecycle("response.created", self.state(first))
        if plan.background:
            yield self._lifecycle("response.queued", self.state(first))
        yield self._lifecycle("response.in_progress", self.state("in_progress"))
        if plan.choice.reasoning:
            yield from self._reasoning()
        if plan.failure is None:
            for call in plan.hosted:
                yield from self._hosted(call)
            if plan.speaks:
                yield from self._function() if plan.choice.kind == "tool" else self._message()
        yield self._last()

    def error_event(self, error: dict[str, Any], sent: int) -> bytes:
        """Return the bare error event that ends a stream instead of a terminal one."""
        shown = {"type": "error", "code": error.get("code") or error.get("type"), "message": error.get("message")}
        return self._wrap(shown | {"param": error.get("param"), "sequence_number": sent})

    def next_number(self) -> int:
        """Take the next sequence number, for an event outside of the answer."""
        self._number += 1
        return self._number - 1

    # -- parts of the stream ---------------------------------------------------------------------

    def _emit(self, kind: str, fields: dict[str, Any], text: str = "", spent: Spent = Spent()) -> Event:  # noqa: B008 - frozen
        usage: Any = msgspec.UNSET
        if self._mode == "every":
            usage = self._bill.with_spent(spent).sent()
            place = fields.get("response", fields)
            place["usage"] = usage
        body = {"type": kind, **fields, "sequence_number": self._number}
        self._number += 1
        return Event(self._wrap(body), text, spent, usage=msgspec.UNSET if usage is None else usage)

    def _lifecycle(self, kind: str, response: dict[str, Any]) -> Event:
        self.response = response
        return self._emit(kind, {"response": response})

    def _added(self, item: dict[str, Any]) -> Event:
        return self._emit("response.output_item.added", {"output_index": len(self._output), "item": item})

    def _done(self, item: dict[str, Any], spent: Spent = Spent(), *, last: bool = False) -> Event:  # noqa: B008 - frozen
        fields: dict[str, Any] = {"output_index": len(self._output), "item": item}
        self._output.append(item)
        if last and self._mode == "finish":
            fields["usage"] = self._bill.with_spent(spent).sent()
        event = self._emit("response.output_item.done", fields, spent=spent)
        sent = fields.get("usage")
        return event if sent is None else msgspec.structs.replace(event, usage=sent)

    def _reasoning(self) -> Iterator[Event]:
        plan = self._plan
        item: dict[str, Any] = {
            "id": plan.call.new_id("rs"),
            "type": "reasoning",
            "summary": [],
            "encrypted_content": "",
        }
        yield self._added(item)
        summary = []
        if (plan.call.body.get("reasoning") or {}).get("summary"):
            at = {"item_id": item["id"], "output_index": len(self._output), "summary_index": 0}
            part = {"type": "summary_text", "text": _SUMMARY}
            yield self._emit("response.reasoning_summary_part.added", at | {"part": part | {"text": ""}})
            yield self._emit("response.reasoning_summary_text.delta", at | {"delta": _SUMMARY} | self._padding)
            yield self._emit("response.reasoning_summary_text.done", at | {"text": _SUMMARY})
            yield self._emit("response.reasoning_summary_part.done", at | {"part": part})
            summary = [part]
        reasoning = plan.choice.reasoning
        yield self._done(item | {"summary": summary, "encrypted_content": _SEALED}, Spent(reasoning, reasoning))

    def _hosted(self, call: HostedCall) -> Iterator[Event]:
        yield self._added(call.started)
        at = {"output_index": len(self._output), "item_id": call.item["id"]}
        for kind, own in call.events:
            yield self._emit(kind, at | own)
        yield self._done(call.item, call.spent, last=not self._plan.speaks and call is self._plan.hosted[-1])

    def _function(self) -> Iterator[Event]:
        plan, choice = self._plan, self._plan.choice
        kind, prefix, said = "function_call", "fc", "arguments"
        if choice.form == "custom":
            kind, prefix, said = "custom_tool_call", "ctc", "input"
        item = {"id": plan.call.new_id(prefix), "type": kind, "status": "in_progress", said: ""}
        item |= {"call_id": plan.call.new_id("call"), "name": choice.tool}
        item |= {} if plan.namespace is None else {"namespace": plan.namespace}
        at = {"item_id": item["id"], "output_index": len(self._output)}
        yield self._added(item)
        spent = Spent(choice.name_tokens)
        for text, tokens in choice.pieces:
            fields = at | {"delta": text} | self._padding
            # The name came before the first of the arguments.
            yield self._emit(f"response.{kind}_{said}.delta", fields, text, Spent(tokens + spent.tokens))
            spent = Spent()
        yield self._emit(f"response.{kind}_{said}.done", at | {said: choice.text}, spent=spent)
        yield self._done(item | {"status": self._item_status(), said: choice.text}, last=True)

    def _message(self) -> Iterator[Event]:
        plan, choice = self._plan, self._plan.choice
        item: dict[str, Any] = {
            "id": plan.call.new_id("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
        }
        item |= {"phase": "final_answer", "content": []}
        at: dict[str, Any] = {"item_id": item["id"], "output_index": len(self._output), "content_index": 0}
        refused = choice.kind == "refusal"
        yield self._added(item)
        yield self._emit("response.content_part.added", at | {"part": self._part("", [], [])})
        kind = "response.refusal.delta" if refused else "response.output_text.delta"
        for piece in choice.pieces:
            if self.steered:
                break
            self._said.append(piece)
            own: dict[str, Any] = {} if refused else {"logprobs": self._logprobs([piece])}
            fields = at | {"delta": piece.text} | own | self._padding
            yield self._emit(kind, fields, piece.text, Spent(piece.tokens))
        text = "".join(piece.text for piece in self._said)
        notes = [{"type": "url_citation", **note["url_citation"]} for note in choice.annotations]
        for index, note in enumerate(notes):
            yield self._emit(
                "response.output_text.annotation.added", at | {"annotation_index": index, "annotation": note}
            )
        if refused:
            yield self._emit("response.refusal.done", at | {"refusal": text})
        else:
            yield self._emit("response.output_text.done", at | {"text": text, "logprobs": self._logprobs(self._said)})
        part = self._part(text, notes, self._logprobs(self._said))
        yield self._emit("response.content_part.done", at | {"part": part})
        yield self._done(item | {"status": self._item_status(), "content": [part]}, last=True)

    def _item_status(self) -> str:
        return "incomplete" if self._why_incomplete() else "completed"

    def _why_incomplete(self) -> str | None:
        return "steered" if self.steered else self._plan.reason

    def _part(self, text: str, notes: list[Any], probabilities: list[Any]) -> dict[str, Any]:
        if self._plan.choice.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": notes, "logprobs": probabilities}

    def _logprobs(self, pieces: list[Piece]) -> list[Any]:
        choice = self._plan.choice
        rows: list[Any] = logprobs(choice, pieces)["content"] or [] if choice.logprobs >= 0 else []
        return rows

    def _last(self) -> Event:
        plan, directives = self._plan, self._plan.call.directives
        failure = plan.failure
        usage: Any = self._bill.sent()
        if (failure is not None and not failure.usage) or self._mode == "finish":
            usage = None
        served = served_tier(plan.call.body) if directives.service_tier is msgspec.UNSET else directives.service_tier
        changes: dict[str, Any] = {"output": self._output, "service_tier": served, "usage": usage}
        if failure is not None:
            status = "failed"
            changes |= {"error": {"code": failure.code, "message": failure.message}, "output": []}
            changes["service_tier"] = plan.call.body.get("service_tier") or "auto"
        elif self._why_incomplete() is not None:
            status = "incomplete"
            changes["incomplete_details"] = {"reason": self._why_incomplete()}
        else:
            status = "completed"
            changes["completed_at"] = int(time.time() + plan.takes_s)
        response = self.state(status, **changes)
        if served is None:
            del response["service_tier"]
        tools = self._bill.tools.to_wire() if directives.tool_usage is msgspec.UNSET else directives.tool_usage
        if tools is not None and (failure is None or self._bill.tools is not NO_TOOLS):
            response["tool_usage"] = tools
        event = self._lifecycle(f"response.{status}", response)
        if self.on_end is not None:
            self.on_end(response)
        return event if usage is None else msgspec.structs.replace(event, usage=usage)


def _given(body: dict[str, Any], name: str, default: Any) -> Any:
    value = body.get(name)
    return default if value is None else value
