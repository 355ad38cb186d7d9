"""Vector stores: files that can be searched, what they take, and the batches by which they come."""

import time
from typing import Any, Final

from sandbox.openai.exchange.answer import Answer, json_answer
from sandbox.openai.exchange.bill import Bill, ToolUse
from sandbox.openai.exchange.shelf import StoreFile, VectorStore, counted
from sandbox.openai.objects.call import ObjectCall, page, route
from sandbox.openai.requests.errors import ApiError, error_object, invalid
from sandbox.openai.requests.fields import (
    ANY,
    FLAG,
    OBJECT,
    TEXT,
    Field,
    Fields,
    check_fields,
    missing,
    one_of,
)
from sandbox.openai.steering.directives import Directives
from sandbox.openai.tokens.count import PromptCount

_CREATE: Final[Fields] = {
    "name": TEXT,
    "description": TEXT,
    "expires_after": OBJECT,
    "file_ids": Field("array", longest=500),
    "chunking_strategy": OBJECT,
    "metadata": OBJECT,
}
_UPDATE: Final[Fields] = {"name": TEXT, "expires_after": OBJECT, "metadata": OBJECT}
_ATTACH: Final[Fields] = {"file_id": Field("string", required=True), "attributes": OBJECT, "chunking_strategy": OBJECT}
_BATCH: Final[Fields] = {
    "file_ids": Field("array", longest=2_000),
    "files": Field("array", longest=2_000),
    "attributes": OBJECT,
    "chunking_strategy": OBJECT,
}
_ATTRIBUTES: Final[Fields] = {"attributes": OBJECT}
_SEARCH: Final[Fields] = {
    "query": ANY,
    "filters": OBJECT,
    "max_num_results": Field("integer", 1, 50),
    "ranking_options": OBJECT,
    "rewrite_query": FLAG,
}
_EXPIRES: Final[Fields] = {"anchor": one_of("last_active_at"), "days": Field("integer", 1, 365, required=True)}
_STATIC: Final[Fields] = {
    "max_chunk_size_tokens": Field("integer", 100, 4096, required=True),
    "chunk_overlap_tokens": Field("integer", 0, required=True),
}
_CHUNK, _OVERLAP = 800, 400
_RESULTS: Final = 10


def _create(call: ObjectCall) -> Answer:
    check_fields(call.body, _CREATE)
    _check_expiry(call.body)
    strategy = _strategy(call.body)
    files = [call.shelf.file(name) for name in call.body.get("file_ids") or []]
    name, now = call.new_id("vs"), time.time()
    shown = {
        "id": name,
        "object": "vector_store",
        "created_at": int(now),
        "name": call.body.get("name") or "",
        "metadata": call.body.get("metadata") or {},
        "expires_after": call.body.get("expires_after"),
        "expires_at": None,
    }
    if call.body.get("description"):
        shown["description"] = call.body["description"]
    store = call.shelf.stores[name] = VectorStore(shown, {}, {}, now)
    for file in files:
        _put(call, store, file.shown["id"], None, strategy)
    return json_answer(store.object())


def _check_expiry(body: dict[str, Any]) -> None:
    if body.get("expires_after") is not None:
        check_fields(body["expires_after"], _EXPIRES, inside="expires_after.")


def _strategy(body: dict[str, Any]) -> dict[str, Any]:
    """Return how files are cut. Raises ApiError."""
    given = body.get("chunking_strategy") or {"type": "auto"}
    if given.get("type") == "auto":
        sizes = {"max_chunk_size_tokens": _CHUNK, "chunk_overlap_tokens": _OVERLAP}
    elif given.get("type") == "static":
        sizes = given.get("static") or {}
        check_fields(sizes, _STATIC, inside="chunking_strategy.static.")
        if sizes["chunk_overlap_tokens"] * 2 > sizes["max_chunk_size_tokens"]:
            raise invalid("Invalid 'chunk_overlap_tokens': more than half.", "chunking_strategy", "invalid_value")
    else:
        raise invalid("Invalid value for 'chunking_strategy.type'.", "chunking_strategy", "invalid_value")
    return {"type": "static", "static": sizes}


def _put(
    call: ObjectCall, store: VectorStore, name: str, attributes: dict[str, Any] | None, strategy: dict[str, Any]
) -> StoreFile:
    """Take a file into a store."""
    file, now = call.shelf.file(name), time.time()
    shown = {
        "id": name,
        "object": "vector_store.file",
        "created_at": int(now),
        "status": "in_progress",
        "usage_bytes": 0,
        "vector_store_id": store.shown["id"],
        "attributes": attributes or {},
        "chunking_strategy": strategy,
        "last_error": None,
    }
    taken = call.live.store_file_bytes or len(file.data) * 3 // 2
    text = file.data.decode("utf-8", "replace")
    made = StoreFile(shown, file.shown["filename"], text, taken, now + call.live.store_ms / 1_000)
    store.files[name] = made
    store.touched_at = now
    return made


def _list(call: ObjectCall) -> Answer:
    return page(call, [store.object() for store in call.shelf.stores.values()])


def _show(call: ObjectCall) -> Answer:
    return json_answer(call.shelf.store(call.ids[0]).object())


def _update(call: ObjectCall) -> Answer:
    check_fields(call.body, _UPDATE)
    _check_expiry(call.body)
    store = call.shelf.store(call.ids[0])
    store.shown = {**store.shown, **call.body}
    return json_answer(store.object())


def _delete(call: ObjectCall) -> Answer:
    call.shelf.store(call.ids[0])
    del call.shelf.stores[call.ids[0]]
    return json_answer({"id": call.ids[0], "object": "vector_store.deleted", "deleted": True})


def _attach(call: ObjectCall) -> Answer:
    check_fields(call.body, _ATTACH)
    store = call.shelf.store(call.ids[0])
    made = _put(call, store, call.body["file_id"], call.body.get("attributes"), _strategy(call.body))
    return json_answer(made.object())


def _list_files(call: ObjectCall) -> Answer:
    return page(call, [file.object() for file in call.shelf.store(call.ids[0]).files.values()])


def _file(call: ObjectCall) -> StoreFile:
    found = call.shelf.store(call.ids[0]).files.get(call.ids[1])
    if found is None:
        message = f"No file found with id '{call.ids[1]}' in vector store '{call.ids[0]}'."
        raise ApiError(404, error_object(message, "invalid_request_error"))
    return found


def _show_file(call: ObjectCall) -> Answer:
    return json_answer(_file(call).object())


def _update_file(call: ObjectCall) -> Answer:
    check_fields(call.body, _ATTRIBUTES)
    found = _file(call)
    found.shown["attributes"] = call.body.get("attributes") or {}
    return json_answer(found.object())


def _file_content(call: ObjectCall) -> Answer:
    text = _file(call).text
    shown = {"object": "vector_store.file_content.page", "data": [{"type": "text", "text": text}]}
    return json_answer({**shown, "has_more": False, "next_page": None})


def _delete_file(call: ObjectCall) -> Answer:
    _file(call)
    del call.shelf.store(call.ids[0]).files[call.ids[1]]
    return json_answer({"id": call.ids[1], "object": "vector_store.file.deleted", "deleted": True})


def _make_batch(call: ObjectCall) -> Answer:
    check_fields(call.body, _BATCH)
    store, named, each = call.shelf.store(call.ids[0]), call.body.get("file_ids"), call.body.get("files")
    if bool(named) == bool(each):
        raise missing("file_ids")
    rows = each or [{**call.body, "file_id": one} for one in named or []]
    for row in rows:
        call.shelf.file(row["file_id"])
    for row in rows:
        _put(call, store, row["file_id"], row.get("attributes"), _strategy(row))
    name = call.new_id("vsfb")
    store.batches[name] = {
        "files": [row["file_id"] for row in rows],
        "created_at": int(time.time()),
        "cancelled": False,
    }
    return json_answer(_batch_object(store, name))


def _batch_object(store: VectorStore, name: str) -> dict[str, Any]:
    batch = store.batches[name]
    counts = counted(_batch_rows(store, batch))
    status = "cancelled" if batch["cancelled"] else "in_progress" if counts["in_progress"] else "completed"
    return {
        "id": name,
        "object": "vector_store.files_batch",
        "created_at": batch["created_at"],
        "vector_store_id": store.shown["id"],
        "status": status,
        "file_counts": counts,
    }


def _batch_rows(store: VectorStore, batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [store.files[name].object() for name in batch["files"] if name in store.files]


def _batch(call: ObjectCall) -> tuple[VectorStore, str]:
    store = call.shelf.store(call.ids[0])
    if call.ids[1] not in store.batches:
        raise ApiError(404, error_object(f"No batch found with id '{call.ids[1]}'.", "invalid_request_error"))
    return store, call.ids[1]


def _show_batch(call: ObjectCall) -> Answer:
    return json_answer(_batch_object(*_batch(call)))


def _cancel_batch(call: ObjectCall) -> Answer:
    store, name = _batch(call)
    store.batches[name]["cancelled"] = True
    for row in _batch_rows(store, store.batches[name]):
        if row["status"] == "in_progress":
            row["status"] = "cancelled"
    return json_answer(_batch_object(store, name))


def _batch_files(call: ObjectCall) -> Answer:
    store, name = _batch(call)
    return page(call, _batch_rows(store, store.batches[name]))


def _search(call: ObjectCall) -> Answer:
    check_fields(call.body, _SEARCH)
    asked = call.body.get("query")
    if not asked:
        raise missing("query")
    queries = [asked] if isinstance(asked, str) else list(asked)
    store = call.shelf.store(call.ids[0])
    found = store.search(" ".join(queries))[: call.body.get("max_num_results") or _RESULTS]
    answer = json_answer(
        {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": found,
            "has_more": False,
            "next_page": None,
        }
    )
    answer.bill = Bill("search", PromptCount(), Directives(), tools=ToolUse(file_searches=len(queries)))
    return answer


_FILES, _BATCHES = "/v1/vector_stores/{}/files", "/v1/vector_stores/{}/file_batches"
STORE_ROUTES: Final = (
    route("POST", "/v1/vector_stores", _create),
    route("GET", "/v1/vector_stores", _list),
    route("GET", "/v1/vector_stores/{}", _show),
    route("POST", "/v1/vector_stores/{}", _update),
    route("DELETE", "/v1/vector_stores/{}", _delete),
    route("POST", "/v1/vector_stores/{}/search", _search),
    route("POST", _FILES, _attach),
    route("GET", _FILES, _list_files),
    route("GET", _FILES + "/{}", _show_file),
    route("POST", _FILES + "/{}", _update_file),
    route("DELETE", _FILES + "/{}", _delete_file),
    route("GET", _FILES + "/{}/content", _file_content),
    route("POST", _BATCHES, _make_batch),
    route("GET", _BATCHES + "/{}", _show_batch),
    route("POST", _BATCHES + "/{}/cancel", _cancel_batch),
    route("GET", _BATCHES + "/{}/files", _batch_files),
)
