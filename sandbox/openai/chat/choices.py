"""Choices of a chat or legacy answer: the model's words, within the request's caps."""

import zlib
from typing import Any, Final, Literal

import msgspec

from sandbox.openai.chat.scripted import scripted_call, scripted_name, scripted_text
from sandbox.openai.exchange.call import Context
from sandbox.openai.requests.checks import is_reasoning
from sandbox.openai.tokens.count import count_text
from sandbox.openai.tokens.output_text import Piece, limit, pseudo_english, split_text

OutputKind = Literal["text", "refusal", "tool", "audio"]
ToolForm = Literal["function", "custom", "legacy"]
"""A call of a function or a custom tool, or one of the `functions` that came before tools."""
_AUDIO_PER_TEXT: Final = 3
_LEGACY_CAP: Final = 16


class Choice(msgspec.Struct, kw_only=True):
    """One candidate answer."""

    index: int
    kind: OutputKind = "text"
    pieces: list[Piece]
    finish: str
    reasoning: int = 0
    logprobs: int = -1
    """-1: not asked for; else how many alternatives per token."""
    tool: str = ""
    form: ToolForm = "function"
    name_tokens: int = 0
    call_id: str = ""
    annotations: list[dict[str, Any]] = msgspec.field(default_factory=list)
    sound_id: str = ""
    sound_gone_at: int = 0
    """Of speech: Unix second at which it is gone."""

    @property
    def text(self) -> str:
        """The whole visible output."""
        return "".join([piece.text for piece in self.pieces])

    @property
    def audio_factor(self) -> int:
        """Audio tokens per transcript token."""
        return _AUDIO_PER_TEXT if self.kind == "audio" else 0

    @property
    def visible(self) -> int:
        """Transcript or text tokens."""
        return sum([piece.tokens for piece in self.pieces])


def chat_choices(context: Context) -> list[Choice]:
    """Return the `n` choices of a chat request."""
    body = context.body
    reasoning, room = _chat_room(context)
    seed = zlib.crc32(msgspec.json.encode(body["messages"])) + int(body.get("seed") or 0)
    script = _scripted(context)
    if script is not None:
        context, body = script, script.body
    tool = forced_tool(body)
    top = body.get("top_logprobs")
    wanted = (top if isinstance(top, int) else 0) if body.get("logprobs") is True else -1
    choices = []
    for index in range(body.get("n") or 1):
        kind = _kind(context, tool)
        choice = Choice(index=index, kind=kind, pieces=[], finish="stop", reasoning=reasoning)
        choice.logprobs = wanted
        if kind == "tool" and tool is not None:
            choice.tool, choice.form = str(tool.get("name", "")), _form(body)
            choice.name_tokens = count_text(context.encoding, choice.tool)
            choice.call_id = f"call_{zlib.crc32(choice.tool.encode(), seed + index):x}"
        natural = _natural(context, choice, tool, seed + index, room)
        choice.pieces = limit(natural, _visible_room(choice, room))
        whole = len(choice.pieces) == len(natural)
        if kind == "tool" and whole:
            choice.finish = "function_call" if choice.form == "legacy" else "tool_calls"
        elif not whole:
            choice.finish = "length"
        choice.finish = context.directives.finish_reason or choice.finish
        _annotate(context, choice)
        choices.append(choice)
    return choices


def _scripted(context: Context) -> Context | None:
    """Return the request that forces the tool of the `tool_calls` directive, and what is said to it, if it has one."""
    body, roles = context.body, {"tool": "output", "function": "output"}
    turns = [str(message.get("role")) for message in body["messages"] if isinstance(message, dict)]
    entry = scripted_call(context.directives, [roles.get(role, role) for role in turns])
    if entry is None:
        return None
    name, text = scripted_name(entry), scripted_text(entry)
    for tool in body.get("tools") or ():
        for kind in ("function", "custom"):
            if isinstance(tool, dict) and isinstance(tool.get(kind), dict) and tool[kind].get("name") == name:
                return msgspec.structs.replace(
                    context,
                    body=body | {"tool_choice": {"type": kind, kind: {"name": name}}},
                    directives=msgspec.structs.replace(context.directives, text=text),
                )
    return None


def _chat_room(context: Context) -> tuple[int, int | None]:
    """Return the reasoning tokens, and the tokens left for the visible output (None: no cap)."""
    body, directives = context.body, context.directives
    reasoning = context.directives.reasoning_tokens
    if reasoning is None:
        thinks = is_reasoning(context.model) and body.get("reasoning_effort") != "none"
        reasoning = context.live.reasoning_tokens if thinks else 0
    if directives.ignore_cap:
        return reasoning, None
    cap = body.get("max_completion_tokens")
    if cap is not None:
        reasoning = min(reasoning, cap)
        return reasoning, cap - reasoning
    room: int | None = body.get("max_tokens")
    return reasoning, room


def _visible_room(choice: Choice, room: int | None) -> int | None:
    if room is None:
        return None
    return max(0, room - choice.name_tokens) // (1 + choice.audio_factor)


def _kind(context: Context, tool: dict[str, Any] | None) -> OutputKind:
    modalities = context.body.get("modalities")
    if context.directives.refusal is not None:
        return "refusal"
    if isinstance(modalities, list) and "audio" in modalities:
        return "audio"
    return "tool" if tool is not None else "text"


def _natural(context: Context, choice: Choice, tool: dict[str, Any] | None, seed: int, room: int | None) -> list[Piece]:
    """Return the output of a model without a cap (generated text: at most one piece above the cap)."""
    directives = context.directives
    given = directives.refusal if choice.kind == "refusal" else directives.text
    if context.echo:
        given = context.echo
    if choice.kind == "tool" and tool is not None and given is None:
        given = arguments(tool)
    schema = context.schema or _chat_schema(context.body)
    if given is None and choice.kind == "text" and isinstance(schema, dict):
        given = fitting_json(schema)
    if given is None and _searches(context):
        given = "See example.com."
    if given is not None:
        return split_text(context.encoding, given)
    length = directives.output_tokens
    if length is None:
        length = context.live.output_tokens
        if directives.ignore_cap:
            length = max(length, 2 * cap_of(context.body) + 8)
    return pseudo_english(seed, length if room is None else min(length, room + 1))


def cap_of(body: dict[str, Any]) -> int:
    """Return the cap the request names, 0 without one."""
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)


def forced_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the function or custom tool the model has to call, or None."""
    if _form(body) == "legacy":
        named = [item for item in body["functions"] if item.get("name") == body["function_call"]["name"]]
        return named[0] if named else None
    offered: list[dict[str, Any]] = [
        tool[kind]
        for tool in body.get("tools") or ()
        for kind in ("function", "custom")
        if isinstance(tool, dict) and isinstance(tool.get(kind), dict)
    ]
    choice = body.get("tool_choice")
    if not offered:
        return None
    if choice == "required":
        return offered[0]
    wanted = (choice.get("function") or choice.get("custom")) if isinstance(choice, dict) else None
    if isinstance(wanted, dict):
        return next((item for item in offered if item.get("name") == wanted.get("name")), None)
    return None


def _form(body: dict[str, Any]) -> ToolForm:
    if isinstance(body.get("functions"), list) and isinstance(body.get("function_call"), dict):
        return "legacy"
    choice, tools = body.get("tool_choice"), body.get("tools") or ()
    if isinstance(choice, dict):
        return "custom" if isinstance(choice.get("custom"), dict) else "function"
    first = next((tool for tool in tools if isinstance(tool, dict)), {})
    return "custom" if isinstance(first.get("custom"), dict) else "function"


def arguments(function: dict[str, Any]) -> str:
    """Arguments that fit the function's schema, as compact JSON."""
    return fitting_json(function.get("parameters") or {})


def _chat_schema(body: dict[str, Any]) -> Any:
    """Return the JSON schema that a chat's `response_format` asks for; None for free text."""
    form = body.get("response_format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return None
    inside = form.get("json_schema")
    return inside.get("schema") if isinstance(inside, dict) else None


def fitting_json(schema: dict[str, Any]) -> str:
    """Return an object that fits the schema, as compact JSON."""
    return msgspec.json.encode(_value(schema, "object")).decode()


def _value(schema: Any, kind: str = "string") -> Any:
    if not isinstance(schema, dict):
        return None
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type", kind)
    if kind == "object":
        return {name: _value(prop) for name, prop in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [_value(schema.get("items") or {})]
    scalars: dict[str, Any] = {"integer": 7, "number": 1.5, "boolean": True, "null": None}
    return scalars.get(str(kind), "UTC")


def call_object(choice: Choice, text: str) -> dict[str, Any]:
    """Return the tool call with its arguments, or its input, so far."""
    said = "input" if choice.form == "custom" else "arguments"
    return {
        "id": choice.call_id,
        "type": choice.form,
        choice.form: {"name": choice.tool, said: text},
    }


def said_by_tool(choice: Choice, text: str) -> dict[str, Any]:
    """Return the members of a delta that carry the next piece of a call."""
    if choice.form == "legacy":
        return {"function_call": {"arguments": text}}
    said = "input" if choice.form == "custom" else "arguments"
    return {"tool_calls": [{"index": 0, choice.form: {said: text}}]}


def _searches(context: Context) -> bool:
    return "search" in context.model or isinstance(context.body.get("web_search_options"), dict)


def _annotate(context: Context, choice: Choice) -> None:
    start = choice.text.find("example.com") if choice.kind == "text" else -1
    if start >= 0 and _searches(context):
        citation = {
            "start_index": start,
            "end_index": start + len("example.com"),
            "title": "Example",
            "url": "https://example.com/",
        }
        choice.annotations = [{"type": "url_citation", "url_citation": citation}]


def logprobs(choice: Choice, pieces: list[Piece]) -> dict[str, Any]:
    """Return the logprobs object of some pieces of a choice."""
    rows = []
    for text, _ in pieces:
        row = {"token": text, "logprob": -0.01, "bytes": list(text.encode())}
        rows.append(row | {"top_logprobs": [row] * choice.logprobs})
    refused = choice.kind == "refusal"
    return {"content": None if refused else rows, "refusal": rows if refused else None}


def legacy_choices(context: Context, prompts: list[str | list[int]]) -> list[Choice]:
    """`n` choices per prompt, each within max_tokens (16 when absent)."""
    body, directives = context.body, context.directives
    cap = body.get("max_tokens")
    room = None if directives.ignore_cap else (_LEGACY_CAP if cap is None else cap)
    choices: list[Choice] = []
    for prompt in prompts:
        seed = zlib.crc32(msgspec.json.encode(prompt)) + int(body.get("seed") or 0)
        for number in range(body.get("n") or 1):
            choice = Choice(index=len(choices), pieces=[], finish="stop")
            natural = _natural(context, choice, None, seed + number, room)
            choice.pieces = limit(natural, room)
            if len(choice.pieces) < len(natural):
                choice.finish = "length"
            choice.finish = directives.finish_reason or choice.finish
            choices.append(choice)
    return choices
