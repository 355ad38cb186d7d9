"""The input of a Responses request: checked, as stored items, and counted.

OpenAI publishes no counting rule for this API. Here a request counts like the chat request that says
the same; hosted tools count as the tokens of their JSON.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

import msgspec
import tiktoken

from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.tokens.count import PromptCount, count_chat, count_text
from sandbox.openai.tokens.prompt_media import image_tokens

_ROLES: Final = frozenset({"user", "assistant", "system", "developer"})
_FILE_TOKENS: Final = 1_000
_BYTES_PER_TOKEN: Final = 4
_DRAWN: Final = "image_generation_call"
_SILENT: Final = frozenset({"reasoning", _DRAWN})
"""Items that add no text: reasoning is dropped between turns, images hold none."""
_ADDING: Final = frozenset({"additional_tools", "tool_search_output"})
"""Items that bring tools."""


def input_items(value: Any, new_id: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return the `input` as a list of complete items. Raises ApiError."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise invalid(
            "Invalid type for 'input': expected one of a string or array of objects.", "input", "invalid_type"
        )
    return [_item(item, f"input[{index}]", new_id) for index, item in enumerate(value)]


def _item(item: Any, where: str, new_id: Callable[[str], str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise wrong_type(where, "an object", item)
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise wrong_type(f"{where}.type", "a string", kind)
    if kind != "message":
        return {"id": new_id("item")} | item
    role, content = item.get("role"), item.get("content")
    if role is None:
        raise missing(f"{where}.role")
    if role not in _ROLES:
        raise invalid(f"Invalid value: '{role}'.", f"{where}.role", "invalid_value")
    if content is None:
        raise missing(f"{where}.content")
    if isinstance(content, str):
        part: dict[str, Any] = {"type": "output_text" if role == "assistant" else "input_text", "text": content}
        content = [part | {"annotations": []} if role == "assistant" else part]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong_type(f"{where}.content", "one of an array of objects or string", content)
    shown = {"id": new_id("msg"), "type": "message", "status": "completed", "role": role, "content": content}
    return shown | {"id": item["id"]} if isinstance(item.get("id"), str) else shown


def as_chat(body: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the chat request that says the same."""
    messages = [_message(item) for item in items if item.get("type") not in _SILENT]
    instructions = body.get("instructions")
    if isinstance(instructions, str):
        messages.insert(0, {"role": "system", "content": instructions})
    reasoning, choice = body.get("reasoning") or {}, body.get("tool_choice")
    chat: dict[str, Any] = {
        "messages": messages,
        "max_completion_tokens": body.get("max_output_tokens"),
        "reasoning_effort": reasoning.get("effort"),
        "tools": [{"type": "function", "function": tool} for tool in tools_of(body, "function")],
        "tool_choice": {"function": choice} if isinstance(choice, dict) and "name" in choice else choice,
    }
    if "message.output_text.logprobs" in (body.get("include") or ()):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    form = text_format(body)
    if form.get("type") == "json_schema":
        chat["response_format"] = {"json_schema": {key: value for key, value in form.items() if key != "type"}}
    return chat


def text_format(body: dict[str, Any]) -> dict[str, Any]:
    """Return the `text.format` of a request."""
    form = (body.get("text") or {}).get("format")
    return form if isinstance(form, dict) else {"type": "text"}


def output_schema(body: dict[str, Any]) -> Any:
    """Return the JSON schema the output has to fit; None for free text."""
    form = text_format(body)
    if form.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return form.get("schema") if form.get("type") == "json_schema" else None


def tools_of(body: dict[str, Any], kind: str | None = None) -> list[dict[str, Any]]:
    """Return the tools of one type, or of all."""
    tools = [tool for tool in body.get("tools") or () if isinstance(tool, dict)]
    return tools if kind is None else [tool for tool in tools if tool.get("type") == kind]


def usable_tools(body: dict[str, Any], items: Any = None) -> list[dict[str, Any]]:
    """Return every tool the model may call: those of the request, of items that add some, and inside namespaces.

    `items` is what the model reads; without it, the request's own input. A tool inside a namespace says whose it is.
    """
    found: list[dict[str, Any]] = []
    items = body.get("input") if items is None else items
    adding = [
        item
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and item.get("type") in _ADDING
    ]
    pending = [body, *adding]
    while pending:
        outer = pending.pop(0)
        inside = tools_of(outer)
        if outer.get("type") == "namespace":
            inside = [tool | {"namespace": outer.get("name")} for tool in inside]
        found += inside
        pending += inside
    return found


def _message(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type")
    if kind == "message":
        return {"role": item["role"], "content": [_part(part) for part in item["content"]]}
    if kind in {"function_call", "custom_tool_call"}:
        given = item.get("arguments", item.get("input", ""))
        return {"role": "assistant", "tool_calls": [{"function": {"name": item.get("name", ""), "arguments": given}}]}
    if kind in {"function_call_output", "custom_tool_call_output"}:
        output = item.get("output")
        parts = [_part(part) for part in output if isinstance(part, dict)] if isinstance(output, list) else None
        return {"role": "tool", "content": str(output or "") if parts is None else parts}
    return {"role": "assistant", "content": msgspec.json.encode(item).decode()}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url") or "", "detail": part.get("detail")}}
    if kind in {"input_file", "refusal", "input_audio"}:
        return part
    return {"type": "text", "text": str(part.get("text", ""))}


def count_input(
    encoding: tiktoken.Encoding, model: str, body: dict[str, Any], items: list[dict[str, Any]]
) -> PromptCount:
    """Input tokens of a request whose whole conversation is `items`."""
    count = count_chat(encoding, model, as_chat(body, items))
    for tool in tools_of(body):
        if tool.get("type") != "function":
            count.text += count_text(encoding, msgspec.json.encode(tool).decode())
    for item in items:
        if item.get("type") == _DRAWN and item.get("result"):
            count.image += image_tokens(model, {"url": f"data:image/png;base64,{item['result']}"})
        content = item.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "input_file":
                count.text += _file_tokens(part)
    return count


def _file_tokens(part: dict[str, Any]) -> int:
    """Count a quarter of an inline file's bytes; a file behind an id or URL counts as one of 1,000 tokens."""
    data = part.get("file_data")
    if not isinstance(data, str):
        return _FILE_TOKENS
    try:
        return max(1, len(base64.b64decode(data.partition(",")[2] or data)) // _BYTES_PER_TOKEN)
    except (binascii.Error, ValueError):
        return _FILE_TOKENS
