"""Bodies that make or change vector stores and what is in them. Pure.

What a store holds costs by the day, and what a search finds in it costs as tokens of whoever reads it: so files are
counted as they are put in, and so is the size of the pieces that they are cut into.
"""

from typing import Any

from proxy.gateway.bodies.inventory import (
    ATTRIBUTE_FIELDS,
    STORE_BATCH_FIELDS,
    STORE_CHANGES,
    STORE_FIELDS,
    STORE_FILE_FIELDS,
)
from proxy.gateway.bodies.json_body import whole_number
from proxy.gateway.bodies.parsed import Reference, references_to
from proxy.gateway.bodies.response_tools import LARGEST_CHUNK
from proxy.gateway.bodies.responses import read_members, whole
from proxy.gateway.unmetered.object_bodies import ObjectBody
from proxy.web.rejections import invalid

MOST_FILES, MOST_IN_BATCH = 500, 2_000
"""Files of a new store, and of a batch (openai.types: vector_store_create_params, file_batch_create_params)."""
AUTO_CHUNK = 800
CHUNK = (100, LARGEST_CHUNK)
"""Tokens of a piece of a file: by themselves, and as they may be set (static_file_chunking_strategy_param)."""


def parse_store(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read what POST /v1/vector_stores says; no body at all is an empty store. Raises Rejection."""
    body = body or b"{}"
    asked = whole(read_members(body, STORE_FIELDS).text)
    files = _files(asked.get("file_ids"), MOST_FILES, "file_ids")
    return ObjectBody(body, references=files, chunk_tokens=_chunk_tokens(asked.get("chunking_strategy")))


def parse_store_changes(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read new facts of a vector store. Raises Rejection."""
    whole(read_members(body, STORE_CHANGES).text)
    return ObjectBody(body)


def parse_store_file(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read which file is put into a vector store. Raises Rejection."""
    return _put([whole(read_members(body, STORE_FILE_FIELDS).text)], body)


def parse_store_batch(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read which files are put into a vector store together. Raises Rejection."""
    asked = whole(read_members(body, STORE_BATCH_FIELDS).text)
    named, each = asked.get("file_ids"), asked.get("files")
    if bool(named) == bool(each):
        raise invalid("Send either `file_ids` or `files`.", "file_ids", "missing_required_parameter")
    if named:
        files = _files(named, MOST_IN_BATCH, "file_ids")
        return ObjectBody(body, references=files, chunk_tokens=_chunk_tokens(asked.get("chunking_strategy")))
    if not isinstance(each, list) or len(each) > MOST_IN_BATCH or not all(isinstance(one, dict) for one in each):
        raise invalid(f"`files` must be a list of at most {MOST_IN_BATCH} objects.", "files", "invalid_type")
    for one in each:
        if unknown := one.keys() - STORE_FILE_FIELDS.keys():
            name = f"files[].{min(unknown)[:40]}"
            raise invalid(f"Unrecognized request argument supplied: {name}. Remove it.", name, "unknown_parameter")
    return _put(each, body, "files")


def parse_attributes(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read new attributes of a file in a vector store. Raises Rejection."""
    whole(read_members(body, ATTRIBUTE_FIELDS).text)
    return ObjectBody(body)


def _put(each: list[dict[str, Any]], body: bytes, param: str = "file_id") -> ObjectBody:
    for one in each:
        if not isinstance(one.get("file_id"), str):
            raise invalid("Missing required parameter: 'file_id'.", param, "missing_required_parameter")
    files = _files([one["file_id"] for one in each], MOST_IN_BATCH, param)
    chunk = max(_chunk_tokens(one.get("chunking_strategy")) for one in each)
    return ObjectBody(body, references=files, chunk_tokens=chunk)


def _files(ids: Any, most: int, param: str) -> tuple[Reference, ...]:
    if ids is None:
        return ()
    if not isinstance(ids, list) or len(ids) > most:
        raise invalid(f"`{param}` must be a list of at most {most} ids.", param, "invalid_type")
    return tuple(references_to("file", ids, param))


def _chunk_tokens(strategy: Any) -> int:
    """Tokens of the largest piece that a strategy cuts. Raises Rejection for one that is not known."""
    kind = strategy.get("type") if isinstance(strategy, dict) else strategy
    if kind is None and not strategy:
        return AUTO_CHUNK
    if kind == "auto":
        return AUTO_CHUNK
    sizes = strategy.get("static") if kind == "static" else None
    if not isinstance(sizes, dict) or sizes.get("max_chunk_size_tokens") is None:
        raise invalid(
            "`chunking_strategy` must be an object of type auto, or of type static with its sizes.",
            "chunking_strategy",
        )
    tokens = whole_number(sizes["max_chunk_size_tokens"], "chunking_strategy.static.max_chunk_size_tokens")
    if not CHUNK[0] <= tokens <= CHUNK[1]:
        raise invalid(f"`max_chunk_size_tokens` must be between {CHUNK[0]} and {CHUNK[1]}.", "chunking_strategy")
    return tokens
