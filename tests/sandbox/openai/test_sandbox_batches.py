"""The simulator's batches, as its README says them."""

import asyncio
import json

import pytest

CHAT = "/v1/chat/completions"


def lines(box, *directives):
    rows = [
        {"custom_id": f"l{number}", "method": "POST", "url": CHAT, "body": box.body(directive)}
        for number, directive in enumerate(directives)
    ]
    return "\n".join(map(json.dumps, rows)).encode()


async def made(box, data, **settings):
    await box.http.put("/__sandbox/settings", json=settings)
    file = await box.sdk.files.create(file=("in.jsonl", data), purpose="batch")
    return await box.sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


async def rows(box, file_id):
    return [json.loads(row) for row in (await box.sdk.files.content(file_id)).text.splitlines()]


async def test_lines_come_to_light_with_the_clock_and_are_billed_together(box):
    batch = await made(box, lines(box, {"output_tokens": 5}, {"output_tokens": 6}), batch_ms=100)
    assert (batch.status, batch.request_counts.total, batch.output_file_id) == ("in_progress", 2, None)
    await asyncio.sleep(0.15)
    ended = await box.sdk.batches.retrieve(batch.id)
    assert (ended.status, ended.request_counts.completed, ended.model) == ("completed", 2, "gpt-5.4-mini")
    answers = [row["response"]["body"] for row in await rows(box, ended.output_file_id)]
    (record,) = [row for row in (await box.http.get("/__sandbox/record")).json()["records"] if row["serviceTier"]]
    assert record["usage"]["output_tokens"] == sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert record["usage"]["input_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert (record["serviceTier"], record["responseId"]) == ("batch", batch.id)


async def test_lines_that_fail_stand_in_the_error_file_and_cost_nothing(box):
    batch = await made(box, lines(box, {"status": 500}), batch_ms=0)
    ended = await box.sdk.batches.retrieve(batch.id)
    assert (ended.request_counts.failed, ended.output_file_id, ended.usage) == (1, None, None)
    (row,) = await rows(box, ended.error_file_id)
    assert row["response"]["status_code"] == 500


async def test_cancelled_and_expired_ones_keep_what_was_done(box):
    cancelled = await made(box, lines(box, *[None] * 10), batch_ms=60_000)
    assert (await box.sdk.batches.cancel(cancelled.id)).status == "cancelled"
    expired = await made(box, lines(box, *[None] * 10), batch_ms=100, batch_expires_ms=50)
    await asyncio.sleep(0.1)
    ended = await box.sdk.batches.retrieve(expired.id)
    assert (ended.status, len(await rows(box, ended.output_file_id))) == ("expired", 5)
    undone = await rows(box, ended.error_file_id)
    assert {row["error"]["code"] for row in undone} == {"batch_expired"}
    again = await box.http.post(f"/v1/batches/{expired.id}/cancel")
    assert again.status_code == 400


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"custom_id": "a", "method": "POST", "url": "/v1/other", "body": {}}'])
async def test_a_file_that_is_no_list_of_requests_fails_its_batch(box, data):
    batch = await made(box, data)
    assert (batch.status, batch.errors.data[0].line) == ("failed", 1)


async def test_what_is_no_batch_is_refused(box):
    body = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    assert (await box.http.post("/v1/batches", json=body)).status_code == 404
    assert (await box.http.post("/v1/batches", json={**body, "completion_window": "1h"})).status_code == 400
    assert (await box.http.get("/v1/batches/batch_none")).status_code == 404
    assert (await box.http.get("/v1/batches")).json()["data"] == []
