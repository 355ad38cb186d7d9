"""Batches as their clients see them: their own file's id, and its end only once it is charged.

The ids of its output stand in no answer before they have an owner (I8), and what it cost is read from them: a client
that deleted them first would have it for nothing. What the upstream says of its own account, in a batch's errors and
in the lines that failed, is not for them either.
"""

import json
from typing import Any

import msgspec

from billing.ledger.objects.batches import Batches
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.identity import NAMES, redact_names
from proxy.gateway.answers.upstream_errors import ERROR_OBJECT, masked

OK = 200
BEFORE_ITS_END = {
    "completed": "finalizing",
    "expired": "finalizing",
    "failed": "validating",
    "cancelled": "cancelling",
}
"""Status of a batch that has ended → what it is called until that is settled."""
AT_ITS_END = (
    "output_file_id",
    "error_file_id",
    "completed_at",
    "expired_at",
    "failed_at",
    "cancelled_at",
    "usage",
    "errors",
)
"""Members that are not shown before."""


async def shown_batch(batches: Batches, found: dict[str, Any]) -> dict[str, Any]:
    """Batch as upstream says it is, as its client may see it. Raises StoreUnavailable."""
    row = await batches.of_upstream(str(found.get("id", "")))
    if row is None:
        return found
    shown = {**found, "input_file_id": row.client_file_id}
    if found.get("errors"):
        shown["errors"] = _masked(found["errors"])
    if row.settled_at is None:
        shown |= {name: None for name in AT_ITS_END if name in found}
        shown["status"] = BEFORE_ITS_END.get(str(found.get("status")), found.get("status"))
    return shown


def shown_line(line: bytes) -> bytes:
    """Line of an output file as its client may see it: an answer as it is, an error without a word of our account."""
    if not ERROR_OBJECT.search(line) and not NAMES.search(line):
        return line
    found = decode_object(line)
    if found is None:
        return redact_names(line)
    response = found.get("response")
    answer: dict[str, Any] = response if isinstance(response, dict) else {}
    if answer.get("status_code") == OK:
        return line
    for holder in (found, answer.get("body")):
        if isinstance(holder, dict):
            masked(holder)
    return redact_names(json.dumps(found, separators=(",", ":")).encode())


def _masked(errors: Any) -> Any:
    """Errors of a batch in our words where they are about our account, and without its names."""
    rows = errors.get("data") if isinstance(errors, dict) else None
    if not isinstance(rows, list):
        return errors
    found = [{"error": dict(one) if isinstance(one, dict) else one} for one in rows]
    for one in found:
        masked(one)
    return {**errors, "data": [one["error"] for one in found]}


async def shown_bytes(batches: Batches, body: bytes) -> bytes:
    """Answer with a batch, as its client may see it. Raises StoreUnavailable."""
    found = decode_object(body)
    return body if found is None else msgspec.json.encode(await shown_batch(batches, found))
