"""Tool definitions in a Responses request, wherever one can stand: judged there as at the top. Pure."""

from collections.abc import Iterator
from typing import Any

from proxy.gateway.bodies.image_bounds import DEFAULT_IMAGE_MODEL, image_output_bound
from proxy.gateway.bodies.inventory import DATA_ITEMS, RUNS_AT_CLIENT, TOOLS
from proxy.gateway.bodies.json_body import whole_number
from proxy.gateway.bodies.parsed import FRAMING_TOKENS, ImageTool, Parsed, StoredContext
from proxy.web.rejections import invalid

FREE_CONTAINER_SIZES = (None, "1g")
SCHEMA_KEYS = frozenset(("parameters", "schema", "input_schema", "output_schema", "arguments", "metadata"))
"""Members with the client's own data, not ours to read."""
FILE_SEARCH, MOST_RESULTS = "file_search", 50
LARGEST_CHUNK = 4_096
"""Tokens of a piece of a file in a vector store at most."""
MOST_DEPTH = 64
"""Levels of nesting that are looked into; what is deeper is refused."""


def tool_definitions(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Every tool definition of a request: its own, those in items of its input, those inside other tools.

    Raises Rejection for `tools` that are no list of objects with a `type`.
    """
    found = list(_definitions(request.get("tools"), "tools"))
    items = request.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and str(item.get("type")) not in DATA_ITEMS:
            found += _inside(item, "input", 0)
    return found


def _definitions(tools: Any, param: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    if tools is None:
        return
    if not isinstance(tools, list) or not all(
        isinstance(tool, dict) and isinstance(tool.get("type"), str) for tool in tools
    ):
        raise invalid("`tools` must be a list of objects with a `type`.", param, "invalid_type")
    for tool in tools:
        yield tool
        yield from _inside(tool, param, depth + 1)


def _inside(value: Any, param: str, depth: int) -> Iterator[dict[str, Any]]:
    """Definitions in any member called `tools`, at any depth, but for data of the client's own."""
    if depth > MOST_DEPTH:
        raise invalid("The request is nested too deeply.", param)
    if isinstance(value, list):
        for inner in value:
            yield from _inside(inner, param, depth + 1)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name == "tools":
                yield from _definitions(inner, param, depth)
            elif name not in SCHEMA_KEYS and isinstance(inner, dict | list):
                yield from _inside(inner, param, depth + 1)


def tool_types(tools: list[dict[str, Any]]) -> frozenset[str]:
    """Types of these tools. Raises Rejection for one that is not known here, or that has no price."""
    for tool in tools:
        name, param = tool["type"], "tools"
        entry = TOOLS.get(name)
        if entry is None:
            raise invalid(f"Tool type {name[:60]!r} is not available here.", param, "unsupported_tool")
        if entry.meaning == "refused" or (name in RUNS_AT_CLIENT and not _runs_at_client(tool)):
            raise invalid(f"Tool type {name!r} is not available here: {entry.why}.", param, "unsupported_tool")
        container = tool.get("container")
        if isinstance(container, dict) and container.get("memory_limit") not in FREE_CONTAINER_SIZES:
            raise invalid(
                "Only 1g containers have a price here: leave `memory_limit` out.", param, "unsupported_parameter"
            )
    return frozenset(tool["type"] for tool in tools)


def most_results(tools: list[dict[str, Any]]) -> int:
    """Pieces of files that one call of a file search may find; 0 without one. Raises Rejection.

    How many OpenAI takes where a tool does not say is not published: then the most that it may say.
    """
    found = [tool.get("max_num_results") for tool in tools if tool["type"] == FILE_SEARCH]
    numbers = [MOST_RESULTS if one is None else whole_number(one, "tools[].max_num_results") for one in found]
    if any(not 1 <= number <= MOST_RESULTS for number in numbers):
        raise invalid(f"`max_num_results` must be between 1 and {MOST_RESULTS}.", "tools")
    return max(numbers, default=0)


def found_tokens(parsed: Parsed, stored: StoredContext) -> int:
    """Tokens that one call of a file search may find at most: pieces of the stores that it looks through.

    Which stores a tool in earlier items looks through is not known here: their pieces may be the largest there are.
    """
    named = parsed.search_results * stored.chunk_tokens
    return max(named, MOST_RESULTS * LARGEST_CHUNK) if FILE_SEARCH in stored.tools else named


def _runs_at_client(tool: dict[str, Any]) -> bool:
    member, side = RUNS_AT_CLIENT[tool["type"]]
    said = tool.get(member)
    return (said.get("type") if isinstance(said, dict) else said) == side


def find_image_tool(tools: list[dict[str, Any]], input_tokens: int) -> ImageTool | None:
    """Most that one call of the image generation tool can use. Raises Rejection for a second one."""
    found = [tool for tool in tools if tool["type"] == "image_generation"]
    if not found:
        return None
    if len(found) > 1:
        raise invalid("Send the image_generation tool once.", "tools")
    (tool,) = found
    model = tool.get("model") or DEFAULT_IMAGE_MODEL
    if not isinstance(model, str):
        raise invalid("`tools[].model` must be a string.", "tools", "invalid_type")
    if tool.get("svg") is not None or tool.get("output_format") == "svg":
        raise invalid("SVG output of the image tool is not available here: use /v1/images/generations.", "tools")
    output = image_output_bound(tool.get("size"), tool.get("quality"), tool.get("partial_images"))
    return ImageTool(model, input_tokens + FRAMING_TOKENS, output)
