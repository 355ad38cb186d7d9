"""Tools of the client that a directive has the model call: functions, custom tools, shells and patches."""

from typing import Any

import msgspec

from sandbox.openai.chat.scripted import scripted_call, scripted_name, scripted_text
from sandbox.openai.exchange.bill import Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.responses.hosted_tools import HostedCall
from sandbox.openai.responses.input import usable_tools
from sandbox.openai.tokens.count import count_text


class ClientCall(msgspec.Struct, frozen=True):
    """One call: a tool with a name is said as a chat says it, any other is an item of its own."""

    chat: dict[str, Any] = msgspec.field(default_factory=dict)
    """Members of the chat request that force the tool."""
    text: str | None = None
    namespace: str | None = None
    hosted: list[HostedCall] = msgspec.field(default_factory=list)


def client_call(call: Call, conversation: list[dict[str, Any]]) -> ClientCall | None:
    """Return the call that the directive names for this answer, if the tools allow it. Raises ApiError."""
    entry = scripted_call(call.directives, map(_turn, conversation))
    if entry is None:
        return None
    tools = usable_tools(call.body, conversation)
    if isinstance(entry.get("type"), str):
        return _item(call, entry, tools)
    name = scripted_name(entry)
    for tool in tools:
        kind = tool.get("type")
        if tool.get("name") == name and kind in {"function", "custom"}:
            forced = {"tools": [{"type": kind, kind: tool}], "tool_choice": {"type": kind, kind: {"name": name}}}
            return ClientCall(forced, scripted_text(entry), tool.get("namespace"))
    return None


def _turn(item: dict[str, Any]) -> str:
    if item.get("role") == "user":
        return "user"
    return "output" if str(item.get("type")).endswith("_output") else "other"


def _item(call: Call, entry: dict[str, Any], tools: list[dict[str, Any]]) -> ClientCall | None:
    kind = str(entry["type"])
    if not any(str(tool.get("type")).startswith(kind.removesuffix("_call")) for tool in tools):
        return None
    item = {"id": call.new_id("item"), "call_id": call.new_id("call"), "status": "completed"} | entry
    spent = Spent(count_text(call.encoding, msgspec.json.encode(entry).decode()))
    return ClientCall(hosted=[HostedCall(kind, item, item | {"status": "in_progress"}, spent)])
