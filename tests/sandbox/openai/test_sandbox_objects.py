"""The simulator's conversations, files and stored chats, as its README says them."""

import pytest


async def test_a_response_reads_and_extends_its_conversation(box):
    made = (
        await box.http.post("/v1/conversations", json={"items": [{"role": "user", "content": "hello there"}]})
    ).json()
    ask = {"model": "gpt-5.4-mini", "input": "go on", "conversation": made["id"]}
    first = (await box.http.post("/v1/responses", json=ask)).json()["usage"]["input_tokens"]
    second = (await box.http.post("/v1/responses", json={**ask, "conversation": {"id": made["id"]}})).json()
    assert second["usage"]["input_tokens"] > first
    items = (await box.http.get(f"/v1/conversations/{made['id']}/items", params={"limit": 100})).json()["data"]
    assert len([item for item in items if item.get("role") == "user"]) == 3
    alone = (await box.http.post("/v1/responses", json={"model": "gpt-5.4-mini", "input": "go on"})).json()
    assert alone["usage"]["input_tokens"] < first


async def test_a_conversation_excludes_a_previous_response(box):
    made = (await box.http.post("/v1/conversations", json={})).json()["id"]
    both = {"model": "gpt-5.4-mini", "input": "x", "conversation": made, "previous_response_id": "resp_1"}
    assert (await box.http.post("/v1/responses", json=both)).status_code == 400


async def test_a_file_is_read_by_the_request_that_names_it(box):
    form = {"files": {"file": ("a.pdf", b"%PDF-1.4" * 1_000, "application/pdf")}, "data": {"purpose": "user_data"}}
    made = (await box.http.post("/v1/files", **form)).json()["id"]
    assert (await box.http.get(f"/v1/files/{made}/content")).content == b"%PDF-1.4" * 1_000
    part = {"type": "input_file", "file_id": made}
    ask = {"model": "gpt-5.4-mini", "input": [{"role": "user", "content": [part]}]}
    read = (await box.http.post("/v1/responses", json=ask)).json()["usage"]["input_tokens"]
    assert read >= 1_000
    await box.http.delete(f"/v1/files/{made}")
    assert (await box.http.post("/v1/responses", json=ask)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/conversations/conv_1"), ("DELETE", "/v1/files/file-1"), ("PUT", "/v1/files")]
)
async def test_what_is_not_there_is_a_404(box, method, path):
    assert (await box.http.request(method, path)).status_code == 404
