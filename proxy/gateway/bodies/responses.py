"""Bodies of /v1/responses and its relatives: bounds, hosted tools, and every id that points into the shared account.

Sans I/O.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from proxy.gateway.bodies.image_bounds import INPUT_IMAGE_TOKENS, usual_image_output
from proxy.gateway.bodies.image_tokens import dearest_image_tokens, size_of_data_url
from proxy.gateway.bodies.inventory import COMPACT_FIELDS, COUNT_FIELDS, RESPONSE_FIELDS, SHARED, SurfaceEntry, offered
from proxy.gateway.bodies.parsed import (
    FRAMING_TOKENS,
    Parsed,
    Reference,
    cap_of,
    image_bound,
    no_such_file,
    positive,
    tenant_fields,
    top_level,
)
from proxy.gateway.bodies.response_tools import SCHEMA_KEYS, find_image_tool, tool_definitions, tool_types
from proxy.web.rejections import Rejection, invalid

ITEM_REFERENCE, REASONING = "item_reference", "reasoning"
BARE = frozenset(("id", "type", "status"))
STATEFUL_KEYS = {
    "vector_store_ids": "vector store",
    "skill_id": "skill",
    "skills": "skill",
    "connector_id": "connector",
    "tunnel_id": "tunnel",
}
OWN_DATA = SCHEMA_KEYS | {"annotations", "operation"}
"""Members in which an id names nothing that upstream would open: data, and citations of an answer that is replayed."""
NOT_TEXT = frozenset(("image_url", "file_data"))
"""Members bounded as an image or a file. Everything else is counted, whatever it looks like."""


class _Seen(NamedTuple):
    """Findings of a walk through `input` and `tools`."""

    images: list[tuple[int | None, int]]
    references: list[Reference]
    files: list[int]
    dearest: list[int]
    """Of each image, whatever model reads it."""


def parse_response(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/responses body. Raises Rejection."""
    members, verbatim = _members(body, RESPONSE_FIELDS)
    request = _whole(body)
    model = _text(request, "model")
    tools = tool_definitions(request)
    seen = _walk(request, model)
    cap = request.get("max_output_tokens")
    max_calls = request.get("max_tool_calls")
    background = _flag(request, "background")
    if background and _flag(request, "stream"):
        raise invalid(
            "A background response cannot be streamed here: poll GET /v1/responses/{id}.",
            "stream",
            "unsupported_parameter",
        )
    return Parsed(
        model=model,
        members=members,
        source=body,
        verbatim=verbatim,
        stream=_flag(request, "stream"),
        wants_usage=True,
        asked_tier=_optional_text(request, "service_tier"),
        input_bytes_bound=len(body) - sum(size for _, size in seen.images) + FRAMING_TOKENS,
        image_tokens=sum(known or 0 for known, _ in seen.images),
        unbounded=bool(seen.files) or any(known is None for known, _ in seen.images),
        tenant_values=tenant_fields(members),
        explicit_cap=None if cap is None else cap_of(_integer(cap, "max_output_tokens"), "max_output_tokens"),
        cap_field="max_output_tokens",
        cache_write_12h=_writes_12h(request),
        keeps_cache=request.get("prompt_cache_retention") not in (None, "in_memory"),
        store=None if request.get("store") is None else _flag(request, "store"),
        tools=tool_types(tools),
        max_calls=None if max_calls is None else positive(_integer(max_calls, "max_tool_calls"), "max_tool_calls", 128),
        image_tool=find_image_tool(tools, len(body) + len(seen.images) * INPUT_IMAGE_TOKENS),
        picture_tokens=_picture_tokens(tools),
        picture_extra=sum(seen.dearest),
        references=tuple(seen.references),
        background=background,
    )


def parse_compact(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/responses/compact body. Raises Rejection. Its output is never larger than what it compacts."""
    members, verbatim = _members(body, COMPACT_FIELDS)
    request = _whole(body)
    tools = tool_definitions(request)
    seen = _walk(request, _text(request, "model"))
    bound = len(body) - sum(size for _, size in seen.images) + FRAMING_TOKENS
    return Parsed(
        model=_text(request, "model"),
        members=members,
        source=body,
        verbatim=verbatim,
        asked_tier=_optional_text(request, "service_tier"),
        input_bytes_bound=bound,
        image_tokens=sum(known or 0 for known, _ in seen.images),
        unbounded=bool(seen.files) or any(known is None for known, _ in seen.images),
        tenant_values=tenant_fields(members),
        # what it stands for may be larger than what it says: then only the model's own maximum bounds the summary
        output_bound=None if seen.references or seen.files or seen.images else bound + FRAMING_TOKENS,
        cache_write_12h=_writes_12h(request),
        keeps_cache=request.get("prompt_cache_retention") not in (None, "in_memory"),
        tools=tool_types(tools),
        image_tool=find_image_tool(tools, len(body) + len(seen.images) * INPUT_IMAGE_TOKENS),
        picture_tokens=_picture_tokens(tools),
        references=tuple(seen.references),
    )


def parse_input_tokens(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/responses/input_tokens body. Raises Rejection."""
    members, verbatim = _members(body, COUNT_FIELDS)
    request = _whole(body)
    tools = tool_definitions(request)
    seen = _walk(request, _text(request, "model"))
    return Parsed(
        model=_text(request, "model"),
        members=members,
        source=body,
        verbatim=verbatim,
        choices=0,
        explicit_cap=0,
        tools=tool_types(tools),
        image_tool=find_image_tool(tools, len(body)),
        references=tuple(seen.references),
    )


def response_texts(body: bytes) -> tuple[list[str], int]:
    """Texts of a request that its model reads, and framing tokens around them (docs/openai.md#counting-text)."""
    request = msgspec.json.decode(body)
    texts, framing = [], 3
    for name in ("tools", "text", "tool_choice"):
        if request.get(name):
            raw = json.dumps(request[name], ensure_ascii=False)
            texts.append(raw)
            framing += 16 + raw.count('"type"') * 8
    if isinstance(request.get("instructions"), str):
        texts.append(request["instructions"])
        framing += 4
    items = request.get("input")
    if isinstance(items, str):
        return [*texts, items], framing + 4
    for item in items or ():
        framing += 8
        texts += [text for key, text in _strings(item) if key not in NOT_TEXT]
    return texts, framing


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string inside a JSON value with the name it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _members(body: bytes, fields: dict[str, SurfaceEntry]) -> tuple[dict[str, msgspec.Raw], bool]:
    """As top_level, but what we refuse by name gets its own sentence."""
    members, verbatim = top_level(body, frozenset(fields))
    for name in members.keys() - offered(fields):
        if bytes(members[name]) == b"null":
            continue
        why = fields[name].why
        if name in SHARED:
            raise Rejection(404, f"{name}_not_found", f"No such {why}.", param=name)
        raise invalid(f"`{name}` {why}.", name, "unsupported_parameter")
    return members, verbatim


def _whole(body: bytes) -> dict[str, Any]:
    """Body as objects; a member given twice anywhere is refused: two parsers could see two requests."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise invalid("A member of the request is given twice: send it once.", code="duplicate_parameter")
        return found

    try:
        request: dict[str, Any] = json.loads(body, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise invalid("The request body is not valid JSON: send one JSON object.", code="invalid_json") from None
    return request


def _picture_tokens(tools: list[dict[str, Any]]) -> int:
    """Tokens of one picture of the image tool, as it usually is; 0 without one."""
    tool = next((one for one in tools if one["type"] == "image_generation"), None)
    return 0 if tool is None else usual_image_output(tool.get("size"), tool.get("quality"))


def _walk(request: dict[str, Any], model: str) -> _Seen:
    """Images, files and references, wherever they stand in `input` and `tools`."""
    seen = _Seen([], [], [], [])
    for name in ("previous_response_id",):
        if request.get(name) is not None:
            seen.references.append(Reference("response", _text(request, name), name))
    options = request.get("prompt_cache_options")
    if isinstance(options, dict) and options.get("comparison_response_id") is not None:
        seen.references.append(Reference("response", str(options["comparison_response_id"]), "prompt_cache_options"))
    value = request.get("input")
    if not isinstance(value, str | list | None):
        raise invalid("`input` must be a string or a list of items.", "input", "invalid_type")
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and isinstance(item.get("id"), str) and _is_reference(item):
            seen.references.append(Reference("item", item["id"], "input"))
    _look(value, "input", model, seen)
    _look(request.get("tools"), "tools", model, seen)
    return seen


def _is_reference(item: dict[str, Any]) -> bool:
    """Tell whether an item points to a stored one: its type says so whatever else it carries, or it carries nothing."""
    kind = item.get("type")
    if kind == ITEM_REFERENCE or (kind == REASONING and not item.get("encrypted_content")):
        return True
    return not item.keys() - BARE


def _look(value: Any, param: str, model: str, seen: _Seen) -> None:
    if isinstance(value, list):
        for inner in value:
            _look(inner, param, model, seen)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name in OWN_DATA:
            continue
        if inner and (name in ("file_id", "file_ids")):
            raise no_such_file(str(inner), param)
        if inner and name in STATEFUL_KEYS:
            raise Rejection(404, "not_found", f"No such {STATEFUL_KEYS[name]}: {str(inner)[:100]}.", param=param)
        if inner and name in ("container", "container_id") and isinstance(inner, str):
            seen.references.append(Reference("container", inner, param))
        elif inner and name == "image_url":
            url = inner.get("url") if isinstance(inner, dict) else inner
            detail = value.get("detail") if isinstance(value.get("detail"), str) else None
            seen.images.append(image_bound(model, str(url), detail))
            seen.dearest.append(dearest_image_tokens(size_of_data_url(str(url)), detail))
        elif inner and name in ("file_data", "file_url"):
            seen.files.append(1)
        else:
            _look(inner, param, model, seen)


def _writes_12h(request: dict[str, Any]) -> bool:
    options = request.get("prompt_cache_options")
    ttl = options.get("ttl") if isinstance(options, dict) else None
    return ttl == "12h"


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if value is None:
        raise invalid(f"Missing required parameter: {name!r}.", name, "missing_required_parameter")
    if not isinstance(value, str) or not value:
        raise invalid(f"`{name}` must be a string.", name, "invalid_type")
    return value


def _optional_text(request: dict[str, Any], name: str) -> str | None:
    return None if request.get(name) is None else _text(request, name)


def _flag(request: dict[str, Any], name: str) -> bool:
    value = request.get(name)
    if value not in (None, True, False):
        raise invalid(f"`{name}` must be true or false.", name, "invalid_type")
    return bool(value)


def _integer(value: Any, name: str) -> int:
    if type(value) is not int:
        raise invalid(f"`{name}` must be a whole number.", name, "invalid_type")
    return value
