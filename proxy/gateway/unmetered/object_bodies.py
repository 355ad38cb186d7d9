"""Bodies that make or change what is stored upstream: conversations and their items, files, metadata. Pure.

Nothing of them costs tokens now; what a later request reads of it is counted when it is written down, by its texts.
"""

from typing import Any, NamedTuple

from proxy.gateway.bodies.inventory import (
    CONVERSATION_FIELDS,
    CONVERSATION_ITEM_FIELDS,
    FILE_FIELDS,
    HOSTED,
    METADATA_FIELDS,
    SurfaceEntry,
    offered,
)
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.bodies.parsed import Reference, sound_bound
from proxy.gateway.bodies.response_tools import tool_definitions, tool_types
from proxy.gateway.bodies.responses import read_members, texts_of, walk, whole
from proxy.web.rejections import invalid

MOST_ITEMS = 20
"""Items of one request, by the API's reference."""
PURPOSES = ("assistants", "batch", "user_data", "vision")
"""Of files that requests and batches can read. Others are for what is not offered here."""
EXPIRES_AFTER = (3_600, 2_592_000)
"""Seconds that a file may be told to live (openai.types.file_create_params)."""


class ObjectBody(NamedTuple):
    """A body that is passed on. `tokens`: what its items add to what reads them beside their `texts`; None = not known.

    `pictures`: what their pictures may take (see Tenants); `size_bytes`: of a file; `named`: ids that its items carry;
    `chunk_tokens`: of the pieces in which a vector store will hold the files that are put into it.
    """

    source: bytes
    content_type: bytes = b"application/json"
    references: tuple[Reference, ...] = ()
    tokens: int | None = 0
    texts: tuple[str, ...] = ()
    pictures: int = 0
    size_bytes: int = 0
    chunk_tokens: int = 0
    named: frozenset[str] = frozenset()


def parse_conversation(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read what POST /v1/conversations says; no body at all is an empty one. Raises Rejection."""
    return _items(body or b"{}", CONVERSATION_FIELDS)


def parse_conversation_items(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read items to be added to a conversation. Raises Rejection."""
    return _items(body, CONVERSATION_ITEM_FIELDS, required=True)


def parse_metadata(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read new metadata of an object. Raises Rejection."""
    whole(read_members(body, METADATA_FIELDS).text)
    return ObjectBody(body)


def parse_file(body: bytes, content_type: bytes) -> ObjectBody:
    """Read the form that uploads a file. Raises Rejection."""
    form = Form(body, content_type)
    form.check(offered(FILE_FIELDS), frozenset(("file",)), frozenset(("file", "purpose")))
    files = form.files("file")
    if len(files) != 1:
        raise invalid("Send exactly one `file`.", "file", "missing_required_parameter")
    check_purpose(form.text("purpose"))
    seconds = form.text("expires_after[seconds]")
    if seconds is not None:
        check_lifetime(int(seconds[:12]) if seconds.isascii() and seconds.isdigit() else None)
    return ObjectBody(form.body, content_type, size_bytes=files[0].end - files[0].start)


def check_purpose(purpose: object) -> None:
    """Raise Rejection for a purpose whose files nothing here reads."""
    if not isinstance(purpose, str) or not purpose:
        raise invalid("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
    if purpose not in PURPOSES:
        raise invalid(
            f"`purpose` {purpose[:40]!r} is for what is not offered here: send one of {', '.join(PURPOSES)}.",
            "purpose",
            "unsupported_parameter",
        )


def check_lifetime(seconds: object) -> None:
    """Raise Rejection for what is no number of seconds that a file may be told to live."""
    least, most = EXPIRES_AFTER
    if not isinstance(seconds, int) or not least <= seconds <= most:
        raise invalid(f"`expires_after[seconds]` must be between {least} and {most}.", "expires_after")


def _items(body: bytes, fields: dict[str, SurfaceEntry], *, required: bool = False) -> ObjectBody:
    items = whole(read_members(body, fields).text).get("items")
    if required and not items:
        raise invalid("Missing required parameter: 'items'.", "items", "missing_required_parameter")
    if items is not None and (not isinstance(items, list) or len(items) > MOST_ITEMS):
        raise invalid(f"`items` must be a list of at most {MOST_ITEMS} items.", "items", "invalid_type")
    request: dict[str, Any] = {"input": items}
    if hosted := tool_types(tool_definitions(request)) & HOSTED:
        raise invalid(
            f"The tool {min(hosted)!r} runs at OpenAI and cannot be kept in a conversation: send it among the `tools` "
            "of a request.",
            "items",
            "unsupported_tool",
        )
    seen = walk(request, "")
    texts, framing = texts_of(request)
    unseen = seen.encrypted_tokens + sum(map(sound_bound, seen.sounds))
    tokens = None if seen.files else framing + unseen
    references, pictures = tuple(seen.references), sum(seen.dearest)
    named = frozenset(item["id"] for item in items or () if isinstance(item, dict) and isinstance(item.get("id"), str))
    return ObjectBody(body, references=references, tokens=tokens, texts=tuple(texts), pictures=pictures, named=named)
