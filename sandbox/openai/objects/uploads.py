"""Uploads: a file that comes in parts."""

import time
from typing import Any, Final

from sandbox.openai.exchange.answer import Answer, json_answer
from sandbox.openai.exchange.shelf import File, PartedUpload
from sandbox.openai.objects.call import PURPOSES, ObjectCall, route
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import ARRAY, OBJECT, TEXT, Field, Fields, check_fields, missing, one_of

_CREATE: Final[Fields] = {
    "bytes": Field("integer", 0, 8 * 1024**3, required=True),
    "filename": Field("string", required=True),
    "mime_type": Field("string", required=True),
    "purpose": one_of(*PURPOSES),
    "expires_after": OBJECT,
}
_COMPLETE: Final[Fields] = {"part_ids": ARRAY, "md5": TEXT}
_HOUR: Final = 3_600
_PART_BYTES: Final = 64 * 1024**2


def _create(call: ObjectCall) -> Answer:
    check_fields(call.body, _CREATE)
    if not call.body.get("purpose"):
        raise missing("purpose")
    name, made = call.new_id("upload"), int(time.time())
    shown = {
        "id": name,
        "object": "upload",
        "bytes": call.body["bytes"],
        "created_at": made,
        "expires_at": made + _HOUR,
        "filename": call.body["filename"],
        "purpose": call.body["purpose"],
        "status": "pending",
        "file": None,
    }
    expires = call.body.get("expires_after") or {}
    call.shelf.uploads[name] = PartedUpload(shown, call.body["mime_type"], expires.get("seconds", 0))
    return json_answer(shown)


def _pending(call: ObjectCall) -> PartedUpload:
    found = call.shelf.upload(call.ids[0])
    if found.shown["status"] != "pending":
        raise invalid(f"Upload {call.ids[0]} is {found.shown['status']}.", None, None)
    return found


def _add_part(call: ObjectCall) -> Answer:
    upload, files = _pending(call), call.uploads.get("data", [])
    if len(files) != 1:
        raise missing("data")
    if len(files[0].data) > _PART_BYTES:
        raise invalid("A part can be at most 64 MB.", "data", "invalid_value")
    name = call.new_id("part")
    upload.parts[name] = files[0].data
    made = {"id": name, "object": "upload.part", "created_at": int(time.time()), "upload_id": call.ids[0]}
    return json_answer(made)


def _complete(call: ObjectCall) -> Answer:
    upload = _pending(call)
    check_fields(call.body, _COMPLETE)
    named = call.body.get("part_ids")
    if not named:
        raise missing("part_ids")
    if any(part not in upload.parts for part in named):
        raise invalid("Invalid part id.", "part_ids", "invalid_value")
    data = b"".join(upload.parts[part] for part in named)
    if len(data) != upload.shown["bytes"]:
        message = f"The parts have {len(data)} bytes, and {upload.shown['bytes']} were announced."
        raise invalid(message, "part_ids", "invalid_value")
    name = call.new_id("file").replace("_", "-")
    file: dict[str, Any] = {
        "id": name,
        "object": "file",
        "bytes": len(data),
        "created_at": int(time.time()),
        "filename": upload.shown["filename"],
        "purpose": upload.shown["purpose"],
        "status": "processed",
    }
    if upload.expires_s:
        file["expires_at"] = file["created_at"] + upload.expires_s
    call.shelf.files[name] = File(file, upload.mime_type, data)
    upload.shown |= {"status": "completed", "file": file}
    upload.parts.clear()
    return json_answer(upload.shown)


def _cancel(call: ObjectCall) -> Answer:
    upload = _pending(call)
    upload.shown["status"] = "cancelled"
    upload.parts.clear()
    return json_answer(upload.shown)


UPLOAD_ROUTES: Final = (
    route("POST", "/v1/uploads", _create),
    route("POST", "/v1/uploads/{}/parts", _add_part),
    route("POST", "/v1/uploads/{}/complete", _complete),
    route("POST", "/v1/uploads/{}/cancel", _cancel),
)
