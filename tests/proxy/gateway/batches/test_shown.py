"""What a client sees of a batch, before and after it is charged."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from billing.ledger.objects.batches import Batches
from proxy.gateway.batches.shown import shown_batch, shown_bytes, shown_line

ENDED = {
    "id": "batch_1",
    "input_file_id": "file-sent",
    "output_file_id": "file-out",
    "error_file_id": "file-err",
    "completed_at": 5,
    "usage": {"input_tokens": 1},
    "request_counts": {"total": 1},
}


def kept(settled_at: int | None) -> Batches:
    """One batch, settled then or not."""

    async def of_upstream(batch_id: str) -> Any:
        return SimpleNamespace(client_file_id="file-client", settled_at=settled_at) if batch_id == "batch_1" else None

    return cast("Batches", SimpleNamespace(of_upstream=of_upstream))


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        ("completed", "finalizing"),
        ("expired", "finalizing"),
        ("cancelled", "cancelling"),
        ("failed", "validating"),
        ("in_progress", "in_progress"),
    ],
)
async def test_until_it_is_charged_a_batch_has_no_end_and_no_output(status: str, seen: str) -> None:
    shown = await shown_batch(kept(None), {**ENDED, "status": status})
    assert (shown["status"], shown["input_file_id"], shown["request_counts"]) == (seen, "file-client", {"total": 1})
    assert not any(shown[name] for name in ("output_file_id", "error_file_id", "completed_at", "usage"))
    whole = await shown_batch(kept(7), {**ENDED, "status": status})
    assert whole == {**ENDED, "status": status, "input_file_id": "file-client"}


async def test_bytes_that_are_no_batch_pass_as_they_are() -> None:
    assert await shown_bytes(kept(None), b"<html>") == b"<html>"
    assert msgspec.json.decode(await shown_bytes(kept(None), b'{"id":"batch_2","status":"completed"}')) == {
        "id": "batch_2",
        "status": "completed",
    }


async def test_errors_of_a_batch_say_nothing_of_our_account() -> None:
    limit = "Enqueued token limit reached for gpt-4o in organization org-a1b2c3d4. Limit: 90,000 enqueued tokens."
    quota = "You exceeded your current quota, please check your plan and billing details."
    rows = [
        {"code": "token_limit_exceeded", "message": limit, "line": None, "param": None},
        {"code": "insufficient_quota", "message": quota, "line": None},
        {"code": "invalid_request", "message": "Line 3 is not parseable.", "line": 3},
        "odd",
    ]
    shown = await shown_batch(kept(7), {**ENDED, "status": "failed", "errors": {"object": "list", "data": rows}})
    told = shown["errors"]["data"]
    assert told[0]["message"] == limit.replace("org-a1b2c3d4", "org-***")
    assert "quota, please" not in told[1]["message"]
    assert told[2:] == rows[2:]
    for odd in ({"data": 5}, {}, None, "text", [1]):
        assert (await shown_batch(kept(7), {**ENDED, "status": "failed", "errors": odd}))["errors"] == odd


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (b'{"response":{"status_code":200,"body":{"text":"mail org-chart"}}}', None),
        (b'{"response":{"status_code":429,"body":{"error":{"message":"in organization org-a1b2c3 on"}}}}', b"org-***"),
        (b'{"response":null,"error":{"message":"key sk-abcdef is wrong"}}', b"sk-***"),
        (
            b'{"response":{"status_code":429,"body":{"error":{"code":"insufficient_quota","message":"Pay"}}}}',
            b"rovider",
        ),
        (b'{"response":{"status_code":400,"body":{"error":{"message":"Too long"}}}}', b"Too long"),
        (rb'{"response":{"status_code":400,"body":{"error":{"message":"cut \ud83d"}}}}', b"cut ?"),
        (b"not JSON of org-a1b2c3", b"org-***"),
    ],
)
def test_a_line_that_failed_names_no_account_and_an_answer_is_as_it_was(line: bytes, seen: bytes | None) -> None:
    assert shown_line(line) == line if seen is None else seen in shown_line(line)
