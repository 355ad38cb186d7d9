"""Hosted tools of the Responses API: which ones the model calls, their output items and events."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from sandbox.openai.exchange.bill import NO_TOOLS, Spent, ToolUse
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.shelf import VectorStore
from sandbox.openai.requests.errors import invalid
from sandbox.openai.responses.input import usable_tools
from sandbox.openai.tokens.count import count_text
from sandbox.openai.tokens.generated_images import PNG_BASE64, drawn_png, generated_image_tokens

_URL: Final = "https://example.com/"
_QUERY: Final = "blue whale mass"
_RESULTS: Final = 20


class _Kind(msgspec.Struct, frozen=True):
    """One kind of call."""

    item: str
    prefix: str
    tool: str
    """First part of the type of the tool that permits the call."""
    fields: dict[str, Any]
    blank: dict[str, Any]
    """Fields that are filled only when the call is done."""
    steps: tuple[str, ...] = ()
    """Events between output_item.added and output_item.done."""
    retrieves: bool = False


def _web(action: dict[str, Any], *steps: str, retrieves: bool = False) -> _Kind:
    return _Kind("web_search_call", "ws", "web_search", {"action": action}, {}, steps, retrieves)


_PROGRAMS: Final = "programmatic_tool_calling"
_SEARCH_STEPS: Final = ("in_progress", "searching", "completed")
_KINDS: Final[dict[str, _Kind]] = {
    "web_search": _web({"type": "search", "query": _QUERY, "queries": [_QUERY]}, *_SEARCH_STEPS, retrieves=True),
    "open_page": _web({"type": "open_page", "url": _URL}),
    "find_in_page": _web({"type": "find_in_page", "pattern": "whale", "url": _URL}),
    "file_search": _Kind(
        "file_search_call",
        "fs",
        "file_search",
        {"queries": ["refund policy"], "results": None},
        {"queries": []},
        _SEARCH_STEPS,
        retrieves=True,
    ),
    "code_interpreter": _Kind(
        "code_interpreter_call",
        "ci",
        "code_interpreter",
        {"code": "print(1)", "container_id": "", "outputs": None},
        {"code": "", "outputs": None},
        ("in_progress", "code.delta", "code.done", "interpreting", "completed"),
    ),
    "image_generation": _Kind(
        "image_generation_call",
        "ig",
        "image_generation",
        {"result": PNG_BASE64},
        {"result": None},
        ("in_progress", "generating", "partial_image", "completed"),
    ),
    "program": _Kind(
        "program",
        "prog",
        _PROGRAMS,
        {"call_id": "call_01", "code": "text(6 * 7)", "fingerprint": "gAAAAA=="},
        {"code": ""},
    ),
    "program_output": _Kind(
        "program_output", "prog_out", _PROGRAMS, {"call_id": "call_01", "result": "42"}, {"result": ""}, retrieves=True
    ),
    "compaction": _Kind("compaction", "cmp", "", {"encrypted_content": "gAAAAA=="}, {"encrypted_content": ""}),
}
_INCLUDED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "file_search": (
        "file_search_call.results",
        {"results": [{"file_id": "file_01", "filename": "a.txt", "score": 0.9, "text": "x"}]},
    ),
    "code_interpreter": ("code_interpreter_call.outputs", {"outputs": [{"type": "logs", "logs": "1\n"}]}),
}


class HostedCall(msgspec.Struct, frozen=True):
    """One call, decided before the answer begins."""

    kind: str
    item: dict[str, Any]
    """The finished output item."""
    started: dict[str, Any]
    """The output item when it is added."""
    spent: Spent
    partial_images: int = 0

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and own fields of the events between added and done."""
        found: list[tuple[str, dict[str, Any]]] = []
        item_type = self.item["type"]
        for step in _KINDS[self.kind].steps if self.kind in _KINDS else ():
            if step == "code.delta":
                found.append((f"response.{item_type}_code.delta", {"delta": self.item["code"]}))
            elif step == "code.done":
                found.append((f"response.{item_type}_code.done", {"code": self.item["code"]}))
            elif step == "partial_image":
                for index in range(self.partial_images):
                    own = {"partial_image_index": index, "partial_image_b64": PNG_BASE64}
                    found.append((f"response.{item_type}.partial_image", own))
            else:
                found.append((f"response.{item_type}.{step}", {}))
        return found


def hosted_calls(call: Call) -> list[HostedCall]:
    """Return the calls the directive names, or the one that tool_choice forces, as far as the tools allow."""
    tools = usable_tools(call.body)
    fresh = call.new_id("cntr")
    for offered in tools:
        _stores(call, offered)
    made = []
    for wanted in call.directives.calls or _forced(call.body, tools):
        given = {"type": wanted} if isinstance(wanted, str) else dict(wanted)
        name = str(given.pop("type", ""))
        kind = _KINDS.get(name)
        if kind is None:
            raise invalid(f"sandbox directive: no hosted call {name!r}", None, "bad_directive")
        tool = next((tool for tool in tools if str(tool.get("type")).startswith(kind.tool)), None)
        if tool is not None:
            made.append(_make(call, name, tool, given, fresh))
    allowed = call.body.get("max_tool_calls")
    return made if allowed is None else made[:allowed]


def compaction_call(new_id: Callable[[str], str], context: int, summary: int) -> HostedCall:
    """Return the compaction of a context of that many tokens: it is read once more, and a summary written."""
    head = {"id": new_id("cmp"), "type": "compaction"}
    item = head | _KINDS["compaction"].fields
    return HostedCall("compaction", item, head | {"encrypted_content": ""}, Spent(summary, retrieved=context))


def _forced(body: dict[str, Any], tools: list[dict[str, Any]]) -> list[str]:
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        name = str(choice.get("type", "")).partition("_preview")[0]
        if name == _PROGRAMS:
            return ["program", "program_output"]
        return [name] if name in _KINDS else []
    if choice == "required" and tools and all(tool.get("type") != "function" for tool in tools):
        return [name for name in _KINDS if str(tools[0].get("type")).startswith(name)][:1]
    return []


def _make(call: Call, name: str, tool: dict[str, Any], given: dict[str, Any], container: str) -> HostedCall:
    kind = _KINDS[name]
    fields = dict(kind.fields)
    if name == "code_interpreter":
        named = tool.get("container")
        fields["container_id"] = named if isinstance(named, str) else container
    if name == "image_generation":
        fields["result"] = drawn_png(tool)
    wanted, extra = _INCLUDED.get(name, ("", {}))
    include = call.body.get("include") or ()
    if wanted in include:
        fields |= extra
    if name == "web_search" and "web_search_call.action.sources" in include:
        fields["action"] = fields["action"] | {"sources": [{"type": "url", "url": _URL}]}
    head = {"id": call.new_id(kind.prefix), "type": kind.item}
    item = head | {"status": "completed"} | fields | given
    started = head | {"status": "in_progress"} | {key: kind.blank.get(key, item[key]) for key in fields}
    partial = int(tool.get("partial_images") or 0)
    said = " ".join(item.get("queries") or item.get("action", {}).get("queries") or ()) or item.get("code") or ""
    retrieved = 0
    if kind.retrieves:
        wanted_tokens = call.directives.retrieved_tokens
        retrieved = call.live.retrieved_tokens if wanted_tokens is None else wanted_tokens
    if name == "file_search" and tool.get("vector_store_ids"):
        results = _search(call, tool)
        if call.directives.retrieved_tokens is None:
            retrieved = sum(count_text(call.encoding, row["text"]) for row in results)
        if wanted in include:
            item = {**item, "results": results} | given
    spent = Spent(count_text(call.encoding, said), retrieved=retrieved, tools=_use(call, name, item, tool))
    return HostedCall(name, item, started, spent, partial)


def _stores(call: Call, tool: dict[str, Any]) -> list[VectorStore]:
    """Return the stores that a file search looks through. Raises ApiError."""
    return [call.store.shelf.store(name) for name in tool.get("vector_store_ids") or ()]


def _search(call: Call, tool: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the call finds in its stores: the words of the request are its query."""
    given = call.body.get("input")
    query = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    found = [row for store in _stores(call, tool) for row in store.search(query)]
    rows = sorted(found, key=lambda row: -float(row["score"]))[: tool.get("max_num_results") or _RESULTS]
    return [{**row, "text": row["content"][0]["text"]} for row in rows]


def _use(call: Call, name: str, item: dict[str, Any], tool: dict[str, Any]) -> ToolUse:
    if name == "web_search":
        return ToolUse(web_searches=1)
    if name == "file_search":
        return ToolUse(file_searches=1)
    if name == "code_interpreter":
        return ToolUse(containers=(str(item["container_id"]),))
    if name == "image_generation":
        prompt = call.body.get("input")
        text = prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
        return ToolUse(image_text=count_text(call.encoding, text), image_output=generated_image_tokens(tool))
    return NO_TOOLS
