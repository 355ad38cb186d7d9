"""The simulator's uploads and vector stores: what they take, what is found in them, and what a search costs."""

import asyncio


async def made_file(box, text=b"whales are large", purpose="assistants"):
    form = {"files": {"file": ("a.txt", text, "text/plain")}, "data": {"purpose": purpose}}
    return (await box.http.post("/v1/files", **form)).json()["id"]


async def made_store(box, text=b"whales are large", **fields):
    await box.http.put("/__sandbox/settings", json={"store_ms": 0})
    file = await made_file(box, text)
    return (await box.http.post("/v1/vector_stores", json={"file_ids": [file], **fields})).json(), file


async def test_an_upload_becomes_a_file_of_its_parts_in_their_order(box):
    ask = {"bytes": 6, "filename": "a.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    upload = (await box.http.post("/v1/uploads", json=ask)).json()["id"]
    parts = []
    for piece in (b"def", b"abc"):
        form = {"files": {"data": ("blob", piece, "application/octet-stream")}}
        parts.append((await box.http.post(f"/v1/uploads/{upload}/parts", **form)).json()["id"])
    short = await box.http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts[:1]})
    assert short.status_code == 400
    done = (await box.http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts[::-1]})).json()
    assert done["status"] == "completed"
    assert (await box.http.get(f"/v1/files/{done['file']['id']}/content")).content == b"abcdef"
    assert (await box.http.post(f"/v1/uploads/{upload}/cancel")).status_code == 400


async def test_a_store_says_what_its_files_take_once_they_are_read(box):
    await box.http.put("/__sandbox/settings", json={"store_ms": 40})
    file = await made_file(box, b"x" * 100)
    store = (await box.http.post("/v1/vector_stores", json={"file_ids": [file]})).json()
    assert (store["status"], store["usage_bytes"]) == ("in_progress", 0)
    await asyncio.sleep(0.06)
    store = (await box.http.get(f"/v1/vector_stores/{store['id']}")).json()
    assert (store["status"], store["usage_bytes"], store["file_counts"]["completed"]) == ("completed", 150, 1)
    await box.http.delete(f"/v1/vector_stores/{store['id']}/files/{file}")
    assert (await box.http.get(f"/v1/vector_stores/{store['id']}")).json()["usage_bytes"] == 0


async def test_a_search_is_in_the_record_with_a_call_for_each_query(box):
    store, file = await made_store(box)
    found = await box.http.post(f"/v1/vector_stores/{store['id']}/search", json={"query": ["large whales", "whales"]})
    assert [row["file_id"] for row in found.json()["data"]] == [file]
    entry = (await box.http.get("/__sandbox/record")).json()["records"][-1]
    assert (entry["usage"], entry["toolUsage"]["file_search"]) == ({"type": "search"}, {"num_requests": 2})


async def test_a_response_reads_what_its_file_search_finds(box):
    store, file = await made_store(box, b"whales " * 1_000)
    tool = {"type": "file_search", "vector_store_ids": [store["id"]], "max_num_results": 1}
    ask = {"model": "gpt-5.4-mini", "input": "about whales", "tools": [tool], "tool_choice": {"type": "file_search"}}
    plain = (await box.http.post("/v1/responses", json={"model": "gpt-5.4-mini", "input": "about whales"})).json()
    answer = (await box.http.post("/v1/responses", json={**ask, "include": ["file_search_call.results"]})).json()
    read = answer["usage"]["input_tokens"] - plain["usage"]["input_tokens"]
    assert 400 <= read <= 1_000
    (searched,) = (item for item in answer["output"] if item["type"] == "file_search_call")
    assert [row["file_id"] for row in searched["results"]] == [file]
    tool["vector_store_ids"] = ["vs_never"]
    assert (await box.http.post("/v1/responses", json=ask)).status_code == 404
