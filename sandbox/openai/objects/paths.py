"""The paths of stored objects: which method on which path does what. Raises ApiError for all others."""

import time
from typing import Any, Final

from sandbox.openai.exchange.answer import Answer, json_answer
from sandbox.openai.exchange.shelf import Conversation, File
from sandbox.openai.objects.call import PURPOSES, ObjectCall, page, route
from sandbox.openai.objects.uploads import UPLOAD_ROUTES
from sandbox.openai.objects.vector_stores import STORE_ROUTES
from sandbox.openai.requests.errors import ApiError, error_object, invalid
from sandbox.openai.requests.fields import ARRAY, OBJECT, Fields, check_fields, missing
from sandbox.openai.responses.input import input_items

_MOST_ITEMS: Final = 20
_BEGINNINGS: Final = (
    "/v1/conversations",
    "/v1/files",
    "/v1/batches",
    "/v1/uploads",
    "/v1/vector_stores",
    "/v1/chat/completions/",
)
_CREATE: Final[Fields] = {"items": ARRAY, "metadata": OBJECT}
_METADATA: Final[Fields] = {"metadata": OBJECT}
_ADD: Final[Fields] = {"items": ARRAY, "include": ARRAY}


def is_object(method: str, path: str) -> bool:
    """Tell whether a path is one of these; POST /v1/chat/completions makes a chat and is not."""
    return path.startswith(_BEGINNINGS) or (path == "/v1/chat/completions" and method != "POST")


def answer_object(call: ObjectCall) -> Answer:
    """Answer it. Raises ApiError."""
    for method, pattern, handler in _ROUTES:
        found = pattern.fullmatch(call.request.path)
        if found is not None and method == call.request.method:
            call.ids = found.groups()
            return handler(call)
    message = f"Invalid URL ({call.request.method} {call.request.path})"
    raise ApiError(404, error_object(message, "invalid_request_error"))


def _make_conversation(call: ObjectCall) -> Answer:
    check_fields(call.body, _CREATE)
    name = call.new_id("conv")
    shown = {
        "id": name,
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": call.body.get("metadata") or {},
    }
    made = _items(call, call.body.get("items") or [])
    call.shelf.put_items(made)
    call.shelf.conversations[name] = Conversation(shown, made)
    return json_answer(shown)


def _items(call: ObjectCall, given: list[Any]) -> list[dict[str, Any]]:
    if len(given) > _MOST_ITEMS:
        raise invalid(f"At most {_MOST_ITEMS} items can be added at a time.", "items", "array_above_max_length")
    return input_items(given, call.new_id) if given else []


def _conversation(call: ObjectCall) -> Answer:
    return json_answer(call.shelf.conversation(call.ids[0]).shown)


def _update_conversation(call: ObjectCall) -> Answer:
    check_fields(call.body, _METADATA)
    found = call.shelf.conversation(call.ids[0])
    found.shown = {**found.shown, "metadata": call.body.get("metadata") or {}}
    return json_answer(found.shown)


def _delete_conversation(call: ObjectCall) -> Answer:
    call.shelf.conversation(call.ids[0])
    del call.shelf.conversations[call.ids[0]]
    return json_answer({"id": call.ids[0], "object": "conversation.deleted", "deleted": True})


def _list_items(call: ObjectCall) -> Answer:
    return page(call, call.shelf.conversation(call.ids[0]).items)


def _add_items(call: ObjectCall) -> Answer:
    check_fields(call.body, _ADD)
    if not call.body.get("items"):
        raise missing("items")
    found = call.shelf.conversation(call.ids[0])
    made = _items(call, call.body["items"])
    found.items += made
    call.shelf.put_items(made)
    ends = {"first_id": made[0]["id"], "last_id": made[-1]["id"]}
    return json_answer({"object": "list", "data": made, **ends, "has_more": False})


def _item(call: ObjectCall) -> Answer:
    for item in call.shelf.conversation(call.ids[0]).items:
        if item["id"] == call.ids[1]:
            return json_answer(item)
    raise ApiError(404, error_object(f"Item with id '{call.ids[1]}' not found.", "invalid_request_error"))


def _delete_item(call: ObjectCall) -> Answer:
    _item(call)
    found = call.shelf.conversation(call.ids[0])
    found.items = [item for item in found.items if item["id"] != call.ids[1]]
    return json_answer(found.shown)


def _upload(call: ObjectCall) -> Answer:
    files = call.uploads.get("file", [])
    if len(files) != 1:
        raise missing("file")
    purpose = call.body.get("purpose")
    if purpose not in PURPOSES:
        raise invalid(f"Invalid value for 'purpose': {purpose!r}.", "purpose", "invalid_value")
    name = call.new_id("file").replace("_", "-")
    shown: dict[str, Any] = {
        "id": name,
        "object": "file",
        "bytes": len(files[0].data),
        "created_at": int(time.time()),
        "filename": files[0].filename,
        "purpose": purpose,
        "status": "processed",
    }
    if call.body.get("expires_after[seconds]"):
        shown["expires_at"] = shown["created_at"] + int(call.body["expires_after[seconds]"])
    call.shelf.files[name] = File(shown, files[0].content_type, files[0].data)
    return json_answer(shown)


def _list_files(call: ObjectCall) -> Answer:
    return page(call, [file.shown for file in call.shelf.files.values()])


def _file(call: ObjectCall) -> Answer:
    return json_answer(call.shelf.file(call.ids[0]).shown)


def _file_content(call: ObjectCall) -> Answer:
    found = call.shelf.file(call.ids[0])
    return Answer(200, found.data, content_type="application/octet-stream")


def _delete_file(call: ObjectCall) -> Answer:
    call.shelf.file(call.ids[0])
    del call.shelf.files[call.ids[0]]
    return json_answer({"id": call.ids[0], "object": "file", "deleted": True})


def _list_batches(call: ObjectCall) -> Answer:
    return page(call, [batch.object() for batch in call.shelf.batches.values()])


def _batch(call: ObjectCall) -> Answer:
    return json_answer(call.shelf.batch(call.ids[0]).object())


def _cancel_batch(call: ObjectCall) -> Answer:
    found = call.shelf.batch(call.ids[0])
    if found.status() != "in_progress":
        raise invalid(f"Cannot cancel a batch with status '{found.status()}'.", None, None)
    found.cancel()
    return json_answer(found.object())


def _list_chats(call: ObjectCall) -> Answer:
    return page(call, list(call.shelf.chats.values()))


def _chat(call: ObjectCall) -> Answer:
    return json_answer(call.shelf.chat(call.ids[0]))


def _update_chat(call: ObjectCall) -> Answer:
    check_fields(call.body, _METADATA)
    found = {**call.shelf.chat(call.ids[0]), "metadata": call.body.get("metadata") or {}}
    call.shelf.chats[call.ids[0]] = found
    return json_answer(found)


def _delete_chat(call: ObjectCall) -> Answer:
    call.shelf.chat(call.ids[0])
    del call.shelf.chats[call.ids[0]]
    return json_answer({"id": call.ids[0], "object": "chat.completion.deleted", "deleted": True})


def _chat_messages(call: ObjectCall) -> Answer:
    messages = call.shelf.chat(call.ids[0])["messages"]
    return page(call, [{"id": f"{call.ids[0]}-{index}", **message} for index, message in enumerate(messages)])


_ROUTES: Final = (
    route("POST", "/v1/conversations", _make_conversation),
    route("GET", "/v1/conversations/{}", _conversation),
    route("POST", "/v1/conversations/{}", _update_conversation),
    route("DELETE", "/v1/conversations/{}", _delete_conversation),
    route("GET", "/v1/conversations/{}/items", _list_items),
    route("POST", "/v1/conversations/{}/items", _add_items),
    route("GET", "/v1/conversations/{}/items/{}", _item),
    route("DELETE", "/v1/conversations/{}/items/{}", _delete_item),
    route("POST", "/v1/files", _upload),
    route("GET", "/v1/files", _list_files),
    route("GET", "/v1/files/{}", _file),
    route("DELETE", "/v1/files/{}", _delete_file),
    route("GET", "/v1/files/{}/content", _file_content),
    route("GET", "/v1/batches", _list_batches),
    route("GET", "/v1/batches/{}", _batch),
    route("POST", "/v1/batches/{}/cancel", _cancel_batch),
    route("GET", "/v1/chat/completions", _list_chats),
    route("GET", "/v1/chat/completions/{}", _chat),
    route("POST", "/v1/chat/completions/{}", _update_chat),
    route("DELETE", "/v1/chat/completions/{}", _delete_chat),
    route("GET", "/v1/chat/completions/{}/messages", _chat_messages),
    *UPLOAD_ROUTES,
    *STORE_ROUTES,
)
