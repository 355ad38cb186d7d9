"""Batches: a file of requests run through the simulator's own endpoints."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from sandbox.openai.exchange.answer import Answer
from sandbox.openai.exchange.batch_job import BatchJob, BatchLine
from sandbox.openai.exchange.shelf import Shelf
from sandbox.openai.requests.errors import error_object, invalid
from sandbox.openai.requests.fields import OBJECT, TEXT, Fields, check_fields, missing
from sandbox.openai.requests.json_text import read_json
from sandbox.openai.steering.settings import Live

BATCHES_PATH: Final = "/v1/batches"
_CREATE: Final[Fields] = {
    "input_file_id": TEXT,
    "endpoint": TEXT,
    "completion_window": TEXT,
    "metadata": OBJECT,
    "output_expires_after": OBJECT,
}
_DAY: Final = 86_400

Run = Callable[[str, bytes, dict[str, Any]], Awaitable[Answer]]
"""Answers a request to a path, given its body as bytes and as an object."""


async def make_batch(
    shelf: Shelf, body: dict[str, Any], live: Live, new_id: Callable[[str], str], run: Run
) -> BatchJob:
    """Read the file and answer all of its lines now; they come to light with the clock. Raises ApiError."""
    check_fields(body, _CREATE)
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not body.get(name):
            raise missing(name)
    if body["completion_window"] != "24h":
        raise invalid("Invalid value: 'completion_window' must be '24h'.", "completion_window", "invalid_value")
    rows = [row for row in shelf.file(body["input_file_id"]).data.split(b"\n") if row.strip()]
    errors, lines = None, list[BatchLine]()
    for number, row in enumerate(rows, 1):
        asked = "The file did not pass validation." if live.batch_fails else _asked(row, body["endpoint"])
        if isinstance(asked, str):
            told = {"code": "invalid_request", "line": number, "message": asked, "param": None}
            errors = {"object": "list", "data": [told]}
            break
        lines.append(await _answered(asked, run))
    name, made = new_id("batch"), int(time.time())
    shown = {
        "id": name,
        "object": "batch",
        "endpoint": body["endpoint"],
        "input_file_id": body["input_file_id"],
        "completion_window": "24h",
        "created_at": made,
        "in_progress_at": made,
        "expires_at": made + _DAY,
        "metadata": body.get("metadata"),
    }

    def put_file(purpose: str, data: bytes) -> str:
        file = new_id("file").replace("_", "-")
        shelf.put_file(file, f"{name}_output.jsonl", purpose, data)
        return file

    job = shelf.batches[name] = BatchJob(
        shown,
        lines,
        put_file,
        new_id,
        working_s=live.batch_ms / 1_000,
        expires_s=live.batch_expires_ms / 1_000,
        errors=errors,
    )
    return job


def _asked(row: bytes, endpoint: str) -> dict[str, Any] | str:
    """Return a line's request, or the complaint about it."""
    try:
        asked = read_json(row)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        return "This line is not parseable as valid JSON."
    if asked.get("method") != "POST" or asked.get("url") != endpoint:
        return "The URL provided for this request does not match the batch endpoint."
    return asked if isinstance(asked.get("body"), dict) and "custom_id" in asked else "This line has no request."


async def _answered(asked: dict[str, Any], run: Run) -> BatchLine:
    answer = await run(asked["url"], msgspec.json.encode(asked["body"]), asked["body"])
    try:
        said = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        said = {"error": error_object("The server had an error.", "server_error")}
    if answer.status != 200 or answer.bill is None:
        return BatchLine(asked["custom_id"], answer.status, said, None, answer.model)
    usage = answer.bill.billed(complete=True)
    return BatchLine(asked["custom_id"], answer.status, said, usage, answer.model, answer.bill.tools)
