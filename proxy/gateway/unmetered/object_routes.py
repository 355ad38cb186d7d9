"""The table of paths under which what is stored upstream is made, read, changed and deleted by its owner, as data.

A place in a path that is called by a kind of object is checked for its owner; any other is an id inside such an object.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from proxy.gateway.unmetered.object_bodies import (
    ObjectBody,
    parse_conversation,
    parse_conversation_items,
    parse_file,
    parse_metadata,
)
from proxy.gateway.unmetered.store_bodies import (
    parse_attributes,
    parse_store,
    parse_store_batch,
    parse_store_changes,
    parse_store_file,
)
from proxy.gateway.unmetered.upload_bodies import parse_complete, parse_part, parse_upload

OWNED_KINDS = frozenset(
    ("response", "conversation", "chat_completion", "file", "batch", "upload", "vector_store", "file_batch")
)
PAGE = frozenset(("after", "limit", "order"))
INCLUDE = frozenset(("include", "include[]"))
BOTH_WAYS = PAGE | {"before"}
STORE_FILES = BOTH_WAYS | {"filter"}
PREFIXES = (
    b"/v1/responses/",
    b"/v1/chat/completions",
    b"/v1/conversations",
    b"/v1/files",
    b"/v1/batches",
    b"/v1/uploads",
    b"/v1/vector_stores",
)
"""Beginnings of these paths: others need not be looked for."""


class ObjectRoute(NamedTuple):
    """One method on one path. `query`: parameters that pass; `read`: its body, where it has one.

    `makes`: the kind that the answer is, which gets its owner; `lists`: the kind whose own objects are listed;
    `filters`: members of the listed that the query may ask for; `limits`: how many OpenAI lists without a limit, and at
    most. `deletes`: success ends the object; `grows`: it gets items that are read with it; `own_bytes`: the answer is
    what its owner once sent, or paid for, and passes as it is.

    `made_in`: the member of the answer that is what was made, where it is not all of it; `fills`: files are put into a
    vector store; `empties`: a vector store takes less behind it.
    """

    method: str
    path: str
    query: frozenset[str] = frozenset()
    read: Callable[[bytes, bytes], ObjectBody] | None = None
    makes: str = ""
    lists: str = ""
    filters: frozenset[str] = frozenset()
    limits: tuple[int, int] = (20, 100)
    deletes: bool = False
    grows: bool = False
    own_bytes: bool = False
    made_in: str = ""
    fills: bool = False
    empties: bool = False


STORE = "/v1/vector_stores/{vector_store}"
OBJECT_ROUTES = (
    ObjectRoute(
        "GET",
        "/v1/responses/{response}",
        INCLUDE | {"stream", "starting_after", "include_obfuscation"},
    ),
    ObjectRoute("DELETE", "/v1/responses/{response}", deletes=True),
    ObjectRoute("POST", "/v1/responses/{response}/cancel"),
    ObjectRoute("GET", "/v1/responses/{response}/input_items", INCLUDE | PAGE),
    ObjectRoute("GET", "/v1/chat/completions", PAGE, lists="chat_completion", filters=frozenset(("model", "metadata"))),
    ObjectRoute("GET", "/v1/chat/completions/{chat_completion}"),
    ObjectRoute("POST", "/v1/chat/completions/{chat_completion}", read=parse_metadata),
    ObjectRoute("DELETE", "/v1/chat/completions/{chat_completion}", deletes=True),
    ObjectRoute("GET", "/v1/chat/completions/{chat_completion}/messages", PAGE),
    ObjectRoute("POST", "/v1/conversations", read=parse_conversation, makes="conversation"),
    ObjectRoute("GET", "/v1/conversations/{conversation}"),
    ObjectRoute("POST", "/v1/conversations/{conversation}", read=parse_metadata),
    ObjectRoute("DELETE", "/v1/conversations/{conversation}", deletes=True),
    ObjectRoute("GET", "/v1/conversations/{conversation}/items", INCLUDE | PAGE),
    ObjectRoute("POST", "/v1/conversations/{conversation}/items", INCLUDE, parse_conversation_items, grows=True),
    ObjectRoute("GET", "/v1/conversations/{conversation}/items/{item}", INCLUDE),
    ObjectRoute("DELETE", "/v1/conversations/{conversation}/items/{item}"),
    ObjectRoute("GET", "/v1/files", PAGE, lists="file", filters=frozenset(("purpose",)), limits=(10_000, 10_000)),
    ObjectRoute("POST", "/v1/files", read=parse_file, makes="file"),
    ObjectRoute("GET", "/v1/files/{file}"),
    ObjectRoute("DELETE", "/v1/files/{file}", deletes=True),
    ObjectRoute("GET", "/v1/files/{file}/content", own_bytes=True),
    ObjectRoute("POST", "/v1/uploads", read=parse_upload, makes="upload"),
    ObjectRoute("POST", "/v1/uploads/{upload}/parts", read=parse_part, makes="upload_part"),
    ObjectRoute("POST", "/v1/uploads/{upload}/complete", read=parse_complete, makes="file", made_in="file"),
    ObjectRoute("POST", "/v1/uploads/{upload}/cancel", deletes=True),
    ObjectRoute("POST", "/v1/batches", makes="batch"),
    ObjectRoute("GET", "/v1/batches", PAGE, lists="batch", filters=frozenset(("metadata",))),
    ObjectRoute("GET", "/v1/batches/{batch}"),
    ObjectRoute("POST", "/v1/batches/{batch}/cancel"),
    ObjectRoute("POST", "/v1/vector_stores", read=parse_store, makes="vector_store", fills=True),
    ObjectRoute("GET", "/v1/vector_stores", BOTH_WAYS, lists="vector_store"),
    ObjectRoute("GET", STORE),
    ObjectRoute("POST", STORE, read=parse_store_changes),
    ObjectRoute("DELETE", STORE, deletes=True, empties=True),
    ObjectRoute("POST", f"{STORE}/search"),
    ObjectRoute("POST", f"{STORE}/files", read=parse_store_file, fills=True),
    ObjectRoute("GET", f"{STORE}/files", STORE_FILES),
    ObjectRoute("GET", f"{STORE}/files/{{file}}"),
    ObjectRoute("POST", f"{STORE}/files/{{file}}", read=parse_attributes),
    ObjectRoute("DELETE", f"{STORE}/files/{{file}}", empties=True),
    ObjectRoute("GET", f"{STORE}/files/{{file}}/content", own_bytes=True),
    ObjectRoute("POST", f"{STORE}/file_batches", read=parse_store_batch, makes="file_batch", fills=True),
    ObjectRoute("GET", f"{STORE}/file_batches/{{file_batch}}"),
    ObjectRoute("POST", f"{STORE}/file_batches/{{file_batch}}/cancel"),
    ObjectRoute("GET", f"{STORE}/file_batches/{{file_batch}}/files", STORE_FILES),
)
"""POST /v1/batches and searches of vector stores are held for and charged: see batches/, vector_stores/."""


def routes_of(raw_path: bytes) -> tuple[dict[str, ObjectRoute], dict[str, str]]:
    """Find (method → route, ids by the names of their places) of a path; empty for one that is none of these."""
    for pattern, routes in _patterns():
        if found := pattern.fullmatch(raw_path):
            return routes, {name: value.decode() for name, value in found.groupdict().items()}
    return {}, {}


@cache
def _patterns() -> list[tuple[re.Pattern[bytes], dict[str, ObjectRoute]]]:
    found: dict[str, dict[str, ObjectRoute]] = {}
    for route in OBJECT_ROUTES:
        found.setdefault(route.path, {})[route.method] = route
    return [
        (re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[A-Za-z0-9_-]{1,110})", re.escape(path)).encode()), routes)
        for path, routes in found.items()
    ]
