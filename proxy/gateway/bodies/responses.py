"""Bodies of /v1/responses and its relatives: bounds, hosted tools, and every id that points into the shared account.

Sans I/O.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from proxy.gateway.bodies.image_bounds import INPUT_IMAGE_TOKENS, usual_image_output
from proxy.gateway.bodies.image_tokens import dearest_image_tokens, size_of_data_url
from proxy.gateway.bodies.inventory import (
    COMPACT_FIELDS,
    COUNT_FIELDS,
    HOSTED,
    RESPONSE_FIELDS,
    SHARED,
    SurfaceEntry,
    offered,
)
from proxy.gateway.bodies.json_body import JsonBody, loads, mended, optional_whole, refuse_twins, top_level
from proxy.gateway.bodies.parsed import (
    FRAMING_TOKENS,
    Parsed,
    Reference,
    cap_of,
    carried_tools,
    image_bound,
    moderator_of,
    positive,
    references_to,
    sound_bound,
    tenant_fields,
)
from proxy.gateway.bodies.response_tools import (
    SCHEMA_KEYS,
    find_image_tool,
    most_results,
    tool_definitions,
    tool_types,
)
from proxy.web.rejections import Rejection, invalid

ITEM_REFERENCE, REASONING, TRIGGER = "item_reference", "reasoning", "compaction_trigger"
BARE = frozenset(("id", "type", "status"))
NOTHING: tuple[object, ...] = (None, "", [], {})
"""Values by which an item carries nothing of its own."""
OBJECT_IDS = {"file_id": "file", "file_ids": "file", "vector_store_ids": "vector_store"}
"""Members with ids of objects that their owner may name → their kind."""
STATEFUL_KEYS = {
    "skill_id": "skill",
    "skills": "skill",
    "connector_id": "connector",
    "tunnel_id": "tunnel",
}
OWN_DATA = SCHEMA_KEYS | {"annotations", "operation"}
"""Members in which an id names nothing that upstream would open: data, and citations of an answer that is replayed."""
FOUND = "file_search_call"
SOUND, ENCRYPTED = "input_audio", "encrypted_content"
PICTURES = ("input_image", "computer_screenshot")
"""Parts of content that are pictures, also where they name a file."""
NOT_TEXT = frozenset(("image_url", "file_data", SOUND, ENCRYPTED))
"""Members bounded as what they are. Everything else is counted, whatever it looks like."""
CHARACTERS_PER_TOKEN = 4
"""Of what is encrypted: base64 is longer than what it holds, and a token is longer than a byte."""
DRAWN, DATA_URL, DRAWN_URL = "image_generation_call", "data:", "data:image/png;base64,"
"""Item whose `result` is a picture itself, in base64; how a URL begins that holds what it names, and a picture's."""


class Seen(NamedTuple):
    """Findings of a walk through `input` and `tools`."""

    images: list[tuple[int | None, int]]
    """(tokens at most, characters that are no text) of each."""
    references: list[Reference]
    files: list[int]
    sounds: list[int]
    """Characters of base64 of each."""
    encrypted: list[int]
    """Characters of each that only OpenAI can read."""
    dearest: list[int]
    """Of each image, whatever model reads it."""
    conversation: str = ""

    @property
    def encoded(self) -> int:
        """Characters of the body that are pictures and sound, and no text."""
        return sum(size for _, size in self.images) + sum(self.sounds)

    @property
    def encrypted_tokens(self) -> int:
        """Tokens of what is encrypted."""
        return sum(self.encrypted) // CHARACTERS_PER_TOKEN


def parse_response(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/responses body. Raises Rejection."""
    members, verbatim, text = read_members(body, RESPONSE_FIELDS)
    request = whole(text)
    model = _text(request, "model")
    tools = tool_definitions(request)
    seen = walk(request, model)
    cap = request.get("max_output_tokens")
    max_calls = request.get("max_tool_calls")
    return Parsed(
        model=model,
        members=members,
        source=body,
        verbatim=verbatim,
        stream=_flag(request, "stream"),
        wants_usage=True,
        asked_tier=_optional_text(request, "service_tier"),
        input_bytes_bound=len(body) - seen.encoded + FRAMING_TOKENS,
        audio_tokens=sum(map(sound_bound, seen.sounds)),
        encrypted_tokens=seen.encrypted_tokens,
        image_tokens=sum(known or 0 for known, _ in seen.images),
        unbounded=bool(seen.files) or any(known is None for known, _ in seen.images),
        tenant_values=tenant_fields(members),
        explicit_cap=None if cap is None else cap_of(cap, "max_output_tokens"),
        cap_field="max_output_tokens",
        cache_write_12h=_writes_12h(request),
        keeps_cache=request.get("prompt_cache_retention") not in (None, "in_memory"),
        store=None if request.get("store") is None else _flag(request, "store"),
        tools=tool_types(tools),
        max_calls=None if max_calls is None else positive(max_calls, "max_tool_calls", 128),
        image_tool=find_image_tool(tools, len(body) + len(seen.images) * INPUT_IMAGE_TOKENS),
        picture_tokens=_picture_tokens(tools),
        search_results=most_results(tools),
        picture_extra=sum(seen.dearest),
        references=tuple(seen.references),
        conversation=seen.conversation,
        carried=_carried(request),
        background=_flag(request, "background"),
        moderator=moderator_of(request.get("moderation")),
        compact_at=_compact_at(request),
        truncates=request.get("truncation") not in (None, "disabled"),
    )


def parse_compact(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/responses/compact body. Raises Rejection. Its output is never larger than what it compacts."""
    members, verbatim, text = read_members(body, COMPACT_FIELDS)
    request = whole(text)
    tools = tool_definitions(request)
    seen = walk(request, _text(request, "model"))
    bound = len(body) - seen.encoded + FRAMING_TOKENS
    return Parsed(
        model=_text(request, "model"),
        members=members,
        source=body,
        verbatim=verbatim,
        asked_tier=_optional_text(request, "service_tier"),
        input_bytes_bound=bound,
        audio_tokens=sum(map(sound_bound, seen.sounds)),
        encrypted_tokens=seen.encrypted_tokens,
        image_tokens=sum(known or 0 for known, _ in seen.images),
        unbounded=bool(seen.files) or any(known is None for known, _ in seen.images),
        tenant_values=tenant_fields(members),
        # what it stands for may be larger than what it says: then only the model's own maximum bounds the summary
        output_bound=None if seen.references or seen.files or seen.encoded or seen.images else bound + FRAMING_TOKENS,
        cache_write_12h=_writes_12h(request),
        keeps_cache=request.get("prompt_cache_retention") not in (None, "in_memory"),
        tools=tool_types(tools),
        image_tool=find_image_tool(tools, len(body) + len(seen.images) * INPUT_IMAGE_TOKENS),
        picture_tokens=_picture_tokens(tools),
        references=tuple(seen.references),
    )


def parse_input_tokens(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/responses/input_tokens body. Raises Rejection."""
    members, verbatim, text = read_members(body, COUNT_FIELDS)
    request = whole(text)
    if request.get("model") is None:
        message = "Name the `model`: tokens are counted for one, and which OpenAI takes without it is not known."
        raise invalid(message, "model", "missing_required_parameter")
    tools = tool_definitions(request)
    seen = walk(request, _text(request, "model"))
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
    return texts_of(loads(mended(body), dict))


def texts_of(request: dict[str, Any]) -> tuple[list[str], int]:
    """Texts of a request that is read already; see response_texts."""
    texts: list[str] = []
    framing = 3
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
        drawn = isinstance(item, dict) and item.get("type") == DRAWN
        for key, text in _strings(item):
            if not (key in NOT_TEXT or (drawn and key == "result") or _is_data(key, text)):
                texts.append(text)
    return texts, framing


def _is_data(key: str, text: str) -> bool:
    return key == "url" and text.startswith(DATA_URL)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string inside a JSON value with the name it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, SOUND if key == SOUND and name == "data" else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def read_members(body: bytes, fields: dict[str, SurfaceEntry]) -> JsonBody:
    """As top_level, but what we refuse by name gets its own sentence."""
    found = top_level(body, frozenset(fields))
    for name in found.members.keys() - offered(fields):
        if bytes(found.members[name]) == b"null":
            continue
        why = fields[name].why
        if name in SHARED:
            raise Rejection(404, f"{name}_not_found", f"No such {why}.", param=name)
        raise invalid(f"`{name}` {why}.", name, "unsupported_parameter")
    return found


def whole(body: bytes) -> dict[str, Any]:
    """Body as objects; a member given twice anywhere is refused."""
    request: dict[str, Any] = refuse_twins(body)
    return request


def _carried(request: dict[str, Any]) -> frozenset[str]:
    """Hosted tools in items of the input, as they are remembered with what is stored."""
    tools = tool_definitions({"input": request.get("input")})
    return carried_tools(tool_types(tools) & HOSTED, find_image_tool(tools, 0), _picture_tokens(tools))


def _picture_tokens(tools: list[dict[str, Any]]) -> int:
    """Tokens of one picture of the image tool, as it usually is; 0 without one."""
    tool = next((one for one in tools if one["type"] == "image_generation"), None)
    return 0 if tool is None else usual_image_output(tool.get("size"), tool.get("quality"))


def walk(request: dict[str, Any], model: str) -> Seen:
    """Images, files and references, wherever they stand in `input` and `tools`."""
    seen = Seen([], [], [], [], [], [])
    for name in ("previous_response_id",):
        if request.get(name) is not None:
            seen.references.append(Reference("response", _text(request, name), name))
    options = request.get("prompt_cache_options")
    if isinstance(options, dict) and options.get("comparison_response_id") is not None:
        seen.references.append(Reference("response", str(options["comparison_response_id"]), "prompt_cache_options"))
    conversation = request.get("conversation")
    if conversation is not None:
        said = conversation.get("id") if isinstance(conversation, dict) else conversation
        if not isinstance(said, str) or not said:
            raise invalid("`conversation` must be an id, or an object with one.", "conversation", "invalid_type")
        seen.references.append(Reference("conversation", said, "conversation"))
        seen = seen._replace(conversation=said)
    value = request.get("input")
    if not isinstance(value, str | list | None):
        raise invalid("`input` must be a string or a list of items.", "input", "invalid_type")
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and isinstance(item.get("id"), str) and _is_reference(item):
            seen.references.append(Reference("item", item["id"], "input"))
    for name in ("input", "tools", "tool_choice"):
        _look(request.get(name), name, model, seen)
    return seen


def _is_reference(item: dict[str, Any]) -> bool:
    """Tell whether an item points to a stored one though its type is another: it carries nothing that could be read.

    What is of that type points to one wherever it stands, whatever else it carries (see `_look`).
    """
    if item.get("type") == ITEM_REFERENCE:
        return False
    if item.get("type") == REASONING and not item.get("encrypted_content"):
        return True
    return not any(value not in NOTHING for name, value in item.items() if name not in BARE)


def _look(value: Any, param: str, model: str, seen: Seen) -> None:
    if isinstance(value, list):
        for inner in value:
            _look(inner, param, model, seen)
    if not isinstance(value, dict):
        return
    if value.get("type") == FOUND:
        return  # what an earlier search found is text by now, whatever became of the files that it names
    _see_typed(value, param, seen)
    for name, inner in value.items():
        if name in OWN_DATA or not inner:
            continue
        if name in OBJECT_IDS:
            _name_objects(value, name, inner, param, model, seen)
        elif name in STATEFUL_KEYS:
            raise Rejection(404, "not_found", f"No such {STATEFUL_KEYS[name]}: {str(inner)[:100]}.", param=param)
        elif name in ("container", "container_id") and isinstance(inner, str):
            seen.references.append(Reference("container", inner, param))
        elif not _see(value, name, inner, model, seen):
            _look(inner, param, model, seen)


def _see(part: dict[str, Any], name: str, inner: Any, model: str, seen: Seen) -> bool:
    """Take a member that is a picture, sound, a file or encrypted; False for any other."""
    if name == "image_url":
        detail = part.get("detail") if isinstance(part.get("detail"), str) else None
        _see_picture(str(inner.get("url") if isinstance(inner, dict) else inner), detail, model, seen)
    elif name == "result" and part.get("type") == DRAWN and isinstance(inner, str):
        _see_picture(f"{DRAWN_URL}{inner}", None, model, seen, len(inner))
    elif isinstance(inner, str) and _is_data(name, inner):
        _see_picture(inner, None, model, seen)
    elif name == SOUND and isinstance(inner, dict) and isinstance(inner.get("data"), str):
        seen.sounds.append(len(inner["data"]))
    elif name in ("file_data", "file_url"):
        seen.files.append(1)
    elif name == ENCRYPTED and isinstance(inner, str):
        seen.encrypted.append(len(inner))
    else:
        return False
    return True


def _see_picture(url: str, detail: str | None, model: str, seen: Seen, size: int | None = None) -> None:
    """`size`: bytes of it in the body, where that has not the whole URL."""
    tokens, length = image_bound(model, url, detail)
    seen.images.append((tokens, length if size is None else size))
    seen.dearest.append(dearest_image_tokens(size_of_data_url(url), detail))


def _see_typed(value: dict[str, Any], param: str, seen: Seen) -> None:
    """Take note of what its type makes a reference, wherever it stands."""
    name = value.get("id")
    if value.get("type") == ITEM_REFERENCE and isinstance(name, str):
        seen.references.append(Reference("item", name, param))


def _name_objects(part: dict[str, Any], name: str, ids: Any, param: str, model: str, seen: Seen) -> None:
    """Take note of files and vector stores that a part names. Raises Rejection for what is no id."""
    seen.references.extend(references_to(OBJECT_IDS[name], ids, param))
    if name != "file_id":
        return  # a tool opens those in a container or a store: what it may add is bounded by its calls
    if part.get("type") in PICTURES:
        seen.images.append(image_bound(model, "", None))
        seen.dearest.append(dearest_image_tokens(None, None))
    else:
        seen.files.append(1)


def _compact_at(request: dict[str, Any]) -> int | None:
    """Input tokens from which on the context is compacted; None for never. Raises Rejection."""
    items, given = request.get("input"), request.get("context_management")
    asked = isinstance(items, list) and any(isinstance(item, dict) and item.get("type") == TRIGGER for item in items)
    thresholds = [0] if asked else []
    for entry in [] if given is None else given if isinstance(given, list) else [given]:
        if not isinstance(entry, dict) or entry.get("type") != "compaction":
            raise invalid(
                "`context_management` must be a list of objects of type compaction: others have no price here.",
                "context_management",
            )
        # without a threshold it is OpenAI's own, which is not known
        thresholds.append(optional_whole(entry.get("compact_threshold"), "context_management") or 0)
    return min(thresholds, default=None)


def _writes_12h(request: dict[str, Any]) -> bool:
    options = request.get("prompt_cache_options")
    ttl = options.get("ttl") if isinstance(options, dict) else None
    return ttl == "12h"


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if value is None:
        raise invalid(f"Missing required parameter: {name!r}.", name, "missing_required_parameter")
    if not isinstance(value, str) or not value:
        raise invalid(f"`{name}` must be a string that is not empty.", name, "invalid_type")
    return value


def _optional_text(request: dict[str, Any], name: str) -> str | None:
    return None if request.get(name) is None else _text(request, name)


def _flag(request: dict[str, Any], name: str) -> bool:
    value = request.get(name)
    if value not in (None, True, False):
        raise invalid(f"`{name}` must be true or false.", name, "invalid_type")
    return bool(value)
