"""POST /v1/responses with its helpers, and the paths of one stored response."""

import time
from typing import Any, Final

import msgspec

from sandbox.openai.chat.choices import chat_choices
from sandbox.openai.exchange.answer import Answer, Event, json_answer, named_event
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call, served_tier
from sandbox.openai.exchange.shelf import Conversation
from sandbox.openai.exchange.store import BackgroundJob, Store, Stored
from sandbox.openai.requests.checks import check_context, check_stream, has_cache_writes
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import (
    ANY,
    ARRAY,
    FLAG,
    OBJECT,
    TEXT,
    Field,
    Fields,
    check_fields,
    one_of,
    wrong_type,
)
from sandbox.openai.responses.client_tools import client_call
from sandbox.openai.responses.events import ResponsePlan, ResponseStream, Wrap
from sandbox.openai.responses.hosted_tools import compaction_call, hosted_calls
from sandbox.openai.responses.input import as_chat, count_input, input_items, output_schema

_TIERS: Final = one_of("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")
_INCLUDABLE: Final = frozenset(
    {
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
        "message.output_text.logprobs",
    }
)
_COMMON: Final[Fields] = {
    "model": Field("string"),
    "input": ANY,
    "instructions": TEXT,
    "previous_response_id": TEXT,
    "prompt_cache_key": TEXT,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "service_tier": _TIERS,
    "image": OBJECT,
}
_COUNTED: Final[Fields] = {
    "conversation": ANY,
    "parallel_tool_calls": FLAG,
    "reasoning": OBJECT,
    "text": OBJECT,
    "tool_choice": ANY,
    "tools": ARRAY,
    "truncation": one_of("auto", "disabled"),
}
_CREATE: Final[Fields] = (
    _COMMON
    | _COUNTED
    | {
        "access_programs": OBJECT,
        "background": FLAG,
        "background_options": OBJECT,
        "betas": ARRAY,
        "client_metadata": OBJECT,
        "context_management": ARRAY,
        "include": ARRAY,
        "max_output_tokens": Field("integer", 16),
        "max_tool_calls": Field("integer", 1),
        "metadata": Field("object", longest=16),
        "moderation": OBJECT,
        "prompt": OBJECT,
        "safety_identifier": Field("string", longest=128),
        "store": FLAG,
        "stream": FLAG,
        "stream_options": OBJECT,
        "temperature": Field("number", 0, 2),
        "top_logprobs": Field("integer", 0, 20),
        "top_p": Field("number", 0, 1),
        "user": TEXT,
    }
)
_COUNT: Final[Fields] = _COUNTED | {
    name: _COMMON[name] for name in ("model", "input", "instructions", "previous_response_id")
}
_COUNT["personality"] = TEXT
_STREAM_OPTIONS: Final[Fields] = {"include_obfuscation": FLAG}
_SUMMARY_TOKENS: Final = 40
_COMPACT_AT: Final = 200_000
_COMPACTION: Final[Fields] = {
    "type": Field("string", choices=("compaction",), required=True),
    "compact_threshold": Field("integer", 1),
}
_MODERATION: Final[Fields] = {"model": Field("string", required=True), "policy": OBJECT}


class OpenedResponse(msgspec.Struct, frozen=True):
    """A response that is ready to be said."""

    plan: ResponsePlan
    bill: Bill
    stream: ResponseStream
    items: list[dict[str, Any]]
    """The request's own input items."""
    conversation: list[dict[str, Any]]
    """Everything that there is, also where a part of it is left out."""
    thread: Conversation | None = None
    """What its items and its output are added to."""


def _check_create(call: Call) -> None:
    body = call.body
    check_fields(body, _CREATE)
    check_stream(body)
    check_fields(body.get("stream_options") or {}, _STREAM_OPTIONS, inside="stream_options.")
    check_fields(body.get("moderation") or {"model": ""}, _MODERATION, inside="moderation.")
    for index, entry in enumerate(body.get("context_management") or ()):
        check_fields(entry, _COMPACTION, inside=f"context_management[{index}].")
    if not any(body.get(name) is not None for name in ("input", "previous_response_id", "prompt", "conversation")):
        message = "One of 'input', 'previous_response_id', 'prompt' or 'conversation' must be provided."
        raise invalid(message, "input", "missing_required_parameter")
    for name in body.get("include") or ():
        if name not in _INCLUDABLE:
            raise invalid(f"Invalid value: '{name}'.", "include[0]", "invalid_value")
    for index, tool in enumerate(body.get("tools") or ()):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise invalid(
                f"Missing required parameter: 'tools[{index}].type'.",
                f"tools[{index}].type",
                "missing_required_parameter",
            )
        if tool["type"] == "function" and not isinstance(tool.get("name"), str):
            raise invalid(
                f"Missing required parameter: 'tools[{index}].name'.",
                f"tools[{index}].name",
                "missing_required_parameter",
            )
    for key, value in (body.get("metadata") or {}).items():
        if not isinstance(value, str):
            raise wrong_type(f"metadata.{key}", "a string", value)
    _check_background(body)
    _check_links(body)


def _check_background(body: dict[str, Any]) -> None:
    if body.get("background") and body.get("store") is False:
        raise invalid("Background mode requires 'store' to be true.", "store", "invalid_value")
    window = (body.get("background_options") or {}).get("completion_window")
    if window in {"2h", "8h"} and (not body.get("background") or body.get("stream")):
        message = f"The completion window '{window}' requires 'background' to be true and 'stream' to be false."
        raise invalid(message, "background_options.completion_window", "invalid_value")


def _compacts(body: dict[str, Any], tokens: int) -> bool:
    """Tell whether the context crosses a threshold of the request."""
    return any(
        tokens > (entry.get("compact_threshold") or _COMPACT_AT) for entry in body.get("context_management") or ()
    )


def _check_links(body: dict[str, Any]) -> None:
    conversation = body.get("conversation")
    if conversation is None:
        return
    if body.get("previous_response_id") is not None:
        message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'."
        raise invalid(message, "previous_response_id", "mutually_exclusive_parameters")


def open_response(call: Call, wrap: Wrap = named_event, *, generate: bool = True) -> OpenedResponse:
    """Check the request and decide its whole answer. Raises ApiError."""
    _check_create(call)
    body = call.body
    thread = _conversation(call)
    earlier = call.store.conversation(body.get("previous_response_id")) if thread is None else thread.items
    items = call.store.shelf.with_items(input_items(body.get("input"), call.new_id))
    conversation = call.store.shelf.with_files(earlier + items)
    whole, prompt = conversation, count_input(call.encoding, call.model, body, conversation)
    if body.get("truncation") == "auto":
        while prompt.total > call.live.context_tokens and len(conversation) > 1:
            conversation = conversation[1:]
            prompt = count_input(call.encoding, call.model, body, conversation)
    check_context(prompt.total, call.live.context_tokens)
    generate = generate and not (body.get("prompt_cache_options") or {}).get("prewarm")
    hosted = hosted_calls(call) if generate else []
    if generate and _compacts(body, prompt.total):
        asked = call.directives.output_tokens
        hosted = [compaction_call(call.new_id, prompt.total, _SUMMARY_TOKENS if asked is None else asked), *hosted]
    script = client_call(call, conversation) if generate else None
    if script is not None:
        hosted += script.hosted
    chat = as_chat(body, conversation)
    if chat["max_completion_tokens"] is not None:
        used = sum(made.spent.tokens for made in hosted if made.kind != "compaction")
        chat["max_completion_tokens"] = max(0, chat["max_completion_tokens"] - used)
    if any(made.spent.tools.web_searches for made in hosted):
        chat["web_search_options"] = {}
    if script is not None:
        chat |= script.chat
    steering = call.directives if script is None else msgspec.structs.replace(call.directives, text=script.text)
    steering = msgspec.structs.replace(steering, tool_calls=[])
    context = msgspec.structs.replace(call, body=chat, schema=output_schema(body), directives=steering)
    choice = chat_choices(context)[0]
    if not generate:
        choice.reasoning = 0
    pictured = bool(hosted) and hosted[-1].kind == "image_generation" and call.directives.text is None
    plan = ResponsePlan(
        call=call,
        id=call.new_id("resp"),
        created=int(time.time()),
        choice=choice,
        hosted=hosted,
        speaks=generate and not pictured and not (script is not None and script.hosted),
        namespace=None if script is None else script.namespace,
        takes_s=sum(_pace(call)) if body.get("background") else 0.0,
    )
    ttl = (body.get("prompt_cache_options") or {}).get("ttl")
    bill = Bill(
        "responses", prompt, call.directives, writes_cache=has_cache_writes(call.model), long_cache=ttl == "12h"
    )
    if not generate:
        # What a prepared prompt is for.
        bill.cache_write = prompt.total
    stream = ResponseStream(plan, bill, wrap)
    opened = OpenedResponse(plan, bill, stream, items, whole, thread)
    if body.get("store") is not False and not plan.background:
        stream.on_end = lambda response: end_response(opened, response, call.store)
    elif thread is not None:
        stream.on_end = lambda response: end_response(opened, response, None)
    return opened


def end_response(opened: OpenedResponse, response: dict[str, Any], store: Store | None) -> None:
    """Keep a response that has ended, where it is stored, and add it to its conversation."""
    if store is not None:
        store_response(store, opened, response)
    if opened.thread is not None:
        opened.thread.items += opened.items + response["output"]


def _conversation(call: Call) -> Conversation | None:
    """Return the conversation that a request adds to. Raises ApiError 404."""
    said = call.body.get("conversation")
    name = said.get("id") if isinstance(said, dict) else said
    return None if name is None else call.store.shelf.conversation(str(name))


def store_response(
    store: Store, opened: OpenedResponse, response: dict[str, Any], job: BackgroundJob | None = None
) -> None:
    """Store a response for later requests."""
    later = opened.plan.call.directives.later
    stored = Stored(response, opened.items, opened.conversation + response["output"], later, job)
    store.put(opened.plan.id, stored)
    store.shelf.put_items([*opened.items, *response["output"]])


def create(call: Call) -> Answer:
    """POST /v1/responses."""
    opened = open_response(call)
    answer = streamed(opened)
    if opened.plan.background:
        _to_background(call, opened, answer)
    elif not call.body.get("stream"):
        _to_json(opened, answer)
    return answer


def streamed(opened: OpenedResponse) -> Answer:
    """Return the answer as a stream of events."""
    plan, directives = opened.plan, opened.plan.call.directives
    served = served_tier(plan.call.body) if directives.service_tier is msgspec.UNSET else directives.service_tier
    return Answer(
        200,
        events=opened.stream.events(),
        bill=opened.bill,
        service_tier=served,
        model=directives.model or plan.call.model,
        error_event=opened.stream.error_event,
        response_id=plan.id,
    )


def _exhaust(opened: OpenedResponse, bill: Bill) -> list[Event]:
    """Return all events, accounted for on the bill their stream reads."""
    events = []
    for event in opened.stream.events():
        bill.add(event.spent)
        events.append(event)
    return events


def _to_json(opened: OpenedResponse, answer: Answer) -> None:
    events = _exhaust(opened, opened.bill)
    answer.events = None
    answer.text = "".join(event.text for event in events)
    answer.usage = opened.stream.response["usage"]
    answer.body = msgspec.json.encode(opened.stream.response)


def _pace(call: Call) -> tuple[float, float]:
    """Seconds a background response is queued, and in progress."""
    directives, live = call.directives, call.live
    queued = live.queued_ms if directives.queued_ms is None else directives.queued_ms
    working = live.background_ms if directives.background_ms is None else directives.background_ms
    return queued / 1000, working / 1000


def _to_background(call: Call, opened: OpenedResponse, answer: Answer) -> None:
    stream = opened.stream
    empty = msgspec.structs.replace(opened.bill)
    events = _exhaust(opened, opened.bill)
    states = {status: stream.state(status) for status in ("queued", "in_progress", "cancelled")}
    queued_s, working_s = _pace(call)
    job = BackgroundJob(events, states | {"final": stream.response}, empty, queued_s=queued_s, working_s=working_s)
    store_response(call.store, opened, stream.response, job)
    answer.job, answer.bill = job, None
    if call.body.get("stream"):
        answer.events = job.follow(-1)
        return
    answer.events = None
    answer.usage = None
    answer.body = msgspec.json.encode(states["queued"])


def compact(call: Call) -> Answer:
    """POST /v1/responses/compact."""
    body = call.body
    check_fields(body, _COMMON)
    if body.get("input") is None and body.get("previous_response_id") is None:
        raise invalid("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    earlier = call.store.conversation(body.get("previous_response_id"))
    items = earlier + call.store.shelf.with_items(input_items(body.get("input"), call.new_id))
    prompt = count_input(call.encoding, call.model, body, items)
    check_context(prompt.total, call.live.context_tokens)
    bill = Bill("compact", prompt, call.directives)
    asked = call.directives.output_tokens
    bill.add(Spent(_SUMMARY_TOKENS if asked is None else asked))
    shown: dict[str, Any] = {
        "id": call.new_id("resp"),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [{"id": call.new_id("cmp"), "type": "compaction", "encrypted_content": "gAAAAA=="}],
    }
    answer = json_answer(shown | ({} if bill.sent() is None else {"usage": bill.sent()}))
    answer.bill, answer.usage, answer.model = bill, bill.sent(), call.model
    answer.service_tier = served_tier(body)
    return answer


def input_tokens(call: Call) -> Answer:
    """POST /v1/responses/input_tokens."""
    body = call.body
    check_fields(body, _COUNT)
    _check_links(body)
    thread = _conversation(call)
    earlier = call.store.conversation(body.get("previous_response_id")) if thread is None else thread.items
    given = call.store.shelf.with_items(input_items(body.get("input"), call.new_id))
    items = call.store.shelf.with_files(earlier + given)
    count = count_input(call.encoding, call.model, body, items)
    return json_answer({"object": "response.input_tokens", "input_tokens": count.total})
