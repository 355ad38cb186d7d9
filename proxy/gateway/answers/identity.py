"""Names that must not be seen: ids of our own organisation and project, keys, credentials, ids of what nobody owns; and
members that only Azure sends, which tell who served.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.sse import event_data, split_events

NAMES = re.compile(rb"\b(org-|proj_|sk-)[A-Za-z0-9_*-]{4,}")
CREDENTIALS = re.compile(rb"(?i)\b(bearer|basic)(\s+)(?=[\w.~+/=*-]*[\d*])[\w.~+/=*-]{8,}")

OF_AZURE = frozenset(
    (
        *("prompt_filter_results", "content_filter_results", "content_filter_result"),
        *("content_filter_offsets", "content_filters"),
    )
)
"""Members that Azure adds to answers, their choices, pictures and events."""
MARK_OF_AZURE = re.compile(rb'"(?:prompt|content)_filter(?:_results?|_offsets|s)"')
WORDS_OF_AZURE = re.compile(rb"(?i)azure|microsoft|innererror")
MOST_LEVELS = 8
"""Levels of an answer at which such members are looked for: they stand in choices, pictures and parts of a message."""
REFUSED_BY_FILTER = "The prompt was refused by the content policy of the model's provider. Change it, and try again."
REFUSED = "The model's provider refused this request."


def redact_names(data: bytes) -> bytes:
    """Return the bytes with such names blanked."""
    return CREDENTIALS.sub(rb"\1\2***", NAMES.sub(rb"\1***", data))


def without_ids(body: bytes, ids: Iterable[str]) -> bytes:
    """Return JSON with made-up ids in the place of these: they name nothing, and clients need one all the same."""
    for one in ids:
        prefix = re.match(r"[a-z]*[_-]?", one)
        made_up = (prefix[0] if prefix else "") + os.urandom(16).hex()
        body = body.replace(b'"%b"' % one.encode(), b'"%b"' % made_up.encode())
    return body


def without_filters(body: bytes) -> bytes:
    """Return JSON without what only Azure says in it; the very bytes where there is nothing of it."""
    found = decode_object(body) if MARK_OF_AZURE.search(body) else None
    return body if found is None or not _strip(found) else msgspec.json.encode(found)


def events_without_filters(data: bytes) -> bytes:
    """Return whole events without what only Azure says in them; one that says nothing else is left out."""
    if not MARK_OF_AZURE.search(data):
        return data
    return b"".join(map(_event_without_filters, split_events(data)))


def azures_refusal(body: bytes) -> bytes:
    """Return an error that is the client's own in words of ours where Azure's tell of it; its code and member stay."""
    found = decode_object(body)
    error = found.get("error") if found is not None else None
    if not isinstance(error, dict) or not WORDS_OF_AZURE.search(body):
        return body
    message = REFUSED_BY_FILTER if error.get("code") == "content_filter" else REFUSED
    said = {"message": message, "type": "invalid_request_error", "param": error.get("param"), "code": error.get("code")}
    return msgspec.json.encode({"error": said})


def _event_without_filters(event: bytes) -> bytes:
    payload = event_data(event)
    found = decode_object(payload) if MARK_OF_AZURE.search(payload) else None
    if found is None or not _strip(found):
        return event
    if found.get("choices") == [] and not found.get("usage"):
        return b""
    return event[: event.index(b"data:")] + b"data: " + msgspec.json.encode(found) + b"\n\n"


def _strip(value: Any, levels: int = MOST_LEVELS) -> bool:
    """Take those members out, so many levels deep; tell whether there were any."""
    if isinstance(value, list) and levels:
        return sum(_strip(one, levels - 1) for one in value) > 0
    if not isinstance(value, dict) or not levels:
        return False
    here = value.keys() & OF_AZURE
    for name in here:
        del value[name]
    return sum(_strip(one, levels - 1) for one in value.values()) + len(here) > 0
