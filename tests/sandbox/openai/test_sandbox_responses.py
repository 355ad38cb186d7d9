"""The Responses API: shapes of the samples, the SDK's types, usage, stored and background responses."""

import asyncio
import itertools
import json
import time

import openai
import pytest

from tests.sandbox.openai.sandbox_shapes import KEY, sample, sample_events, shapes, skeleton, steer, typed_events

pytestmark = pytest.mark.asyncio
MODEL = "gpt-6.2-sol"
FUNCTION = {
    "type": "function",
    "name": "get_time",
    "parameters": {"type": "object", "properties": {"tz": {"type": "string"}}},
}
SEARCH = {"type": "web_search", "search_context_size": "medium"}
IMAGE = {"type": "image_generation", "model": "gpt-image-2.6-flare", "partial_images": 1}
FILES = [
    {"type": "file_search", "vector_store_ids": []},
    {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "1g"}},
]
NO_TOOLS = {"tool_usage": None}
BACKGROUND = {"queued_ms": 20, "background_ms": 60}


def request(directive=None, **fields):
    return {"model": MODEL, "input": steer("Name a whale.", directive), "reasoning": {"effort": "low"}, **fields}


async def post(box, directive=None, path="/v1/responses", **fields):
    return await box.http.post(path, json=request(directive, **fields))


async def stream(box, directive=None, **fields):
    answer = await post(box, directive, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    return typed_events(answer.text)


def names(events):
    return [name for name, _ in events]


def runs(kinds):
    """Each run of equal names once: how many deltas there are is up to the text."""
    return [kind for kind, _ in itertools.groupby(kinds)]


def terminal(events):
    return events[-1][1]["response"]


STREAMS = {
    "responses_stream_completed.sse": ({"text": "Blue whale."}, {}),
    "responses_stream_incomplete.sse": (
        {"output_tokens": 30, "reasoning_tokens": 12, **NO_TOOLS},
        {"max_output_tokens": 16},
    ),
    "responses_stream_failed.sse": ({"failed": True}, {}),
    "responses_stream_error_event.sse": ({"error_after_chunks": 2}, {}),
    "responses_stream_web_search.sse": (
        {"calls": ["web_search", "open_page"], "text": "Up to 190 t.", "reasoning_tokens": 0},
        {"tools": [SEARCH]},
    ),
    "responses_stream_image_tool.sse": ({"calls": ["image_generation"], "reasoning_tokens": 0}, {"tools": [IMAGE]}),
    "responses_background_stream.sse": ({"text": "Blue whale.", **NO_TOOLS, **BACKGROUND}, {"background": True}),
}


@pytest.mark.parametrize("name", sorted(STREAMS))
async def test_stream_has_the_events_and_shapes_of_the_sample(box, name):
    directive, fields = STREAMS[name]
    found, expected = await stream(box, directive, **fields), sample_events(name)
    assert shapes([data for _, data in found]) == shapes([data for _, data in expected])
    assert runs(names(found)) == runs(names(expected))
    assert [data["type"] for _, data in found] == names(found)
    numbers = [data["sequence_number"] for _, data in found]
    assert numbers == list(range(len(found)))


@pytest.mark.parametrize(
    ("name", "directive", "fields"),
    [
        (
            "responses_nonstream_tools.json",
            {"text": "Done.", "calls": ["file_search", "code_interpreter"], **NO_TOOLS},
            {"tools": FILES},
        ),
        ("responses_background_create.json", {}, {"background": True}),
    ],
)
async def test_json_answer_has_the_shape_of_the_sample(box, name, directive, fields):
    if fields.get("tools") is FILES:
        store = (await box.http.post("/v1/vector_stores", json={})).json()["id"]
        fields = {"tools": [{**FILES[0], "vector_store_ids": [store]}, FILES[1]]}
    found = (await post(box, directive, **fields)).json()
    assert skeleton(found) == skeleton(sample(name))
    assert found["status"] == sample(name)["status"]


async def test_compact_and_input_tokens_have_the_shapes_of_the_samples(box):
    body = {"model": MODEL, "input": "Name a whale."}
    found = (await box.http.post("/v1/responses/compact", json=body)).json()
    assert skeleton(found) == skeleton(sample("responses_compact.json"))
    # 3 for the reply, 3 for the message, 1 for its role, 5 for "Name a whale."
    assert found["usage"]["input_tokens"] == 3 + 3 + 1 + 4
    assert (await box.last())["usage"] == found["usage"]
    found = (await box.http.post("/v1/responses/input_tokens", json=body)).json()
    assert found == {"object": "response.input_tokens", "input_tokens": 11}
    assert (await box.last())["usage"] is None
    counted = await box.sdk.responses.input_tokens.count(**body)
    assert counted.input_tokens == 11
    assert (await box.sdk.responses.compact(**body)).usage.output_tokens == 40


# -- usage -----------------------------------------------------------------------------------------


async def test_usage_of_json_and_stream_is_the_same_and_recorded(box):
    directive = {"text": "Blue whale.", "reasoning_tokens": 7}
    found = (await post(box, directive)).json()["usage"]
    assert found["output_tokens"] == 7 + 3
    assert found["output_tokens_details"] == {"reasoning_tokens": 7}
    assert found["total_tokens"] == found["input_tokens"] + 10
    events = await stream(box, directive, service_tier="fast")
    assert terminal(events)["usage"] == found
    record = await box.last()
    assert (record["usage"], record["usageSent"], record["outcome"]) == (found, found, "completed")
    assert (record["path"], record["model"], record["servedModel"]) == ("/v1/responses", MODEL, MODEL)
    assert (record["stream"], record["textSent"], record["serviceTier"]) == (True, "Blue whale.", "priority")
    assert record["responseId"] == terminal(events)["id"]
    assert record["chunksSent"] == len(events)


async def test_input_counts_instructions_tools_formats_and_images(box, png):
    async def count(**fields):
        body = {"model": MODEL, "input": "Hi"} | fields
        return (await box.http.post("/v1/responses/input_tokens", json=body)).json()["input_tokens"]

    plain = 3 + 3 + 1 + 1
    assert await count() == plain
    assert await count(instructions="Be brief.") == plain + 3 + 1 + 3
    parts = [{"type": "input_text", "text": "Hi"}, {"type": "input_image", "image_url": png(1024, 1024)}]
    assert await count(input=[{"role": "user", "content": parts}]) == plain + 1229
    assert await count(tools=[FUNCTION]) > plain + 20
    assert await count(tools=[SEARCH]) > plain + 5
    schema = {"type": "object", "properties": {"whale": {"type": "string"}}}
    form = {"type": "json_schema", "name": "animal", "schema": schema, "strict": True}
    assert await count(text={"format": form}) > plain + 15
    call = {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "Hi"}
    messages = [{"role": "user", "content": "Hi"}, call, output]
    # The call: 3 framing, role, 3 metadata, name, arguments; its output: 3 framing, role, text.
    assert await count(input=messages) == plain + (3 + 1 + 3 + 1 + 1) + (3 + 1 + 1)


async def test_max_output_tokens_covers_reasoning(box):
    found = (await post(box, {"output_tokens": 99, "reasoning_tokens": 12}, max_output_tokens=20)).json()
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert found["usage"]["output_tokens"] == 20
    assert found["output"][1]["status"] == "incomplete"
    found = (await post(box, {"finish_reason": "content_filter"})).json()
    assert found["incomplete_details"] == {"reason": "content_filter"}


async def test_tools_are_charged_apart(box):
    calls = ["web_search", "open_page", "web_search", "file_search", "code_interpreter", "code_interpreter"]
    directive = {"calls": calls, "text": "Done.", "retrieved_tokens": 100, "reasoning_tokens": 0}
    plain = (
        await post(box, {"text": "x"} | {key: directive[key] for key in ("retrieved_tokens",)}, tools=[SEARCH, *FILES])
    ).json()
    assert plain["tool_usage"]["web_search"]["num_requests"] == 0
    found = (await post(box, directive, tools=[SEARCH, *FILES])).json()
    assert found["tool_usage"]["web_search"]["num_requests"] == 2
    record = await box.last()
    tools = record["toolUsage"]
    assert tools["web_search"] == {"num_requests": 2}
    assert tools["file_search"] == {"num_requests": 1}
    assert len(tools["code_interpreter"]["container_ids"]) == 1
    # 2 x "blue whale mass", "refund policy", 2 x "print(1)", "Done."
    assert record["usage"]["output_tokens"] == 2 * 3 + 2 + 2 * 4 + 2
    without = {key: value for key, value in directive.items() if key != "calls"}
    counted = (await post(box, without, tools=[SEARCH, *FILES])).json()["usage"]["input_tokens"]
    longer = len(json.dumps(directive)) > len(json.dumps(without))
    assert longer
    assert record["usage"]["input_tokens"] - counted >= 3 * 100
    named = {"type": "code_interpreter", "container_id": "cntr_x"}
    found = (await post(box, {"calls": [named]}, tools=FILES)).json()
    assert found["output"][1]["container_id"] == "cntr_x"
    assert "web_search_call" not in json.dumps((await post(box, {"calls": ["web_search"]})).json())
    found = (await post(box, {"calls": ["web_search"] * 3}, tools=[SEARCH], max_tool_calls=2)).json()
    assert found["tool_usage"]["web_search"]["num_requests"] == 2


async def test_image_tool_bills_image_tokens(box):
    found = (await post(box, {"calls": ["image_generation"]}, tools=[IMAGE])).json()["tool_usage"]["image_gen"]
    assert found["output_tokens"] == 1056 + 100
    assert found["total_tokens"] == found["input_tokens"] + 1156
    assert (await box.last())["toolUsage"]["image_gen"] == found


async def test_hosted_tool_can_be_forced_by_the_request(box):
    found = (
        await post(box, tools=[SEARCH], tool_choice={"type": "web_search"}, include=["web_search_call.action.sources"])
    ).json()
    assert found["output"][1]["action"]["sources"]
    message = found["output"][2]["content"][0]
    assert message["annotations"][0]["type"] == "url_citation"


async def test_function_call(box):
    events = await stream(box, tools=[FUNCTION], tool_choice="required")
    kinds = names(events)
    assert "response.function_call_arguments.delta" in kinds
    item = terminal(events)["output"][1]
    assert (item["type"], item["name"], json.loads(item["arguments"])) == ("function_call", "get_time", {"tz": "UTC"})
    usage = terminal(events)["usage"]
    # "get_time" and {"tz":"UTC"} besides the reasoning
    assert usage["output_tokens"] - usage["output_tokens_details"]["reasoning_tokens"] == 2 + 5


async def test_structured_output_fits_the_schema(box):
    schema = {"type": "object", "properties": {"whale": {"type": "string"}, "mass": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "animal", "schema": schema}
    found = (await post(box, text={"format": form})).json()
    assert json.loads(found["output"][1]["content"][0]["text"]) == {"whale": "UTC", "mass": 7}
    assert found["text"]["format"] == form


@pytest.mark.parametrize(("model", "has_them"), [("gpt-5.4-mini", False), ("gpt-5.6-luna", True), (MODEL, True)])
async def test_lifetimes_of_cache_writes_are_told_where_writes_cost_more(box, model, has_them):
    details = (await post(box, model=model)).json()["usage"]["input_tokens_details"]
    assert ("cache_write_tokens_details" in details) is has_them


async def test_usage_details_and_cache_writes(box):
    details = {"cached_tokens": 5, "cache_write_tokens": 8}
    found = (await post(box, {"usage_details": details})).json()["usage"]["input_tokens_details"]
    assert found == {**details, "cache_write_tokens_details": {"ttl_30m_tokens": 8, "ttl_12h_tokens": 0}}
    found = (await post(box, {"usage_details": details}, prompt_cache_options={"ttl": "12h"})).json()["usage"]
    assert found["input_tokens_details"]["cache_write_tokens_details"] == {"ttl_30m_tokens": 0, "ttl_12h_tokens": 8}


async def test_logprobs_summaries_refusals(box):
    include = ["message.output_text.logprobs"]
    found = (await post(box, {"text": "Blue whale."}, include=include, top_logprobs=2)).json()
    rows = found["output"][1]["content"][0]["logprobs"]
    assert [row["token"] for row in rows] == ["Blue", " whale", "."]
    assert len(rows[0]["top_logprobs"]) == 2
    kinds = names(await stream(box, reasoning={"effort": "low", "summary": "auto"}))
    assert "response.reasoning_summary_text.delta" in kinds
    events = await stream(box, {"refusal": "No."})
    assert "response.refusal.done" in names(events)
    assert terminal(events)["output"][1]["content"] == [{"type": "refusal", "refusal": "No."}]


# -- directives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [{"input_tokens": -5, "output_tokens": 10**18}, {}, "many", 7, None])
async def test_usage_override(box, usage):
    assert (await post(box, {"usage": usage})).json()["usage"] == usage
    assert terminal(await stream(box, {"usage": usage}))["usage"] == usage
    record = await box.last()
    assert record["usageSent"] == usage
    assert record["usage"]["output_tokens"] == 16 + 40


async def test_usage_on_odd_events(box):
    events = await stream(box, {"usage_on": "finish"})
    assert terminal(events)["usage"] is None
    assert events[-2][1]["usage"] == (await box.last())["usage"]
    events = await stream(box, {"usage_on": "every"})
    counts = [(data.get("response") or data)["usage"]["output_tokens"] for _, data in events]
    assert counts == sorted(counts)
    assert counts[-1] == 56


async def test_failed_may_hold_usage(box):
    found = terminal(await stream(box, {"failed": {"code": "rate_limit_exceeded", "usage": True}}))
    assert (found["status"], found["error"]["code"]) == ("failed", "rate_limit_exceeded")
    assert found["usage"]["output_tokens"] == 16
    assert (await post(box, {"failed": True})).json()["usage"] is None


@pytest.mark.parametrize("where", ["before_headers", "after_headers", {"after_chunks": 9}])
async def test_cut_and_silence(box, where):
    body = request({"cut": where}, stream=True)
    with pytest.raises((openai.APIConnectionError, openai.APIError)):
        async for _ in await box.sdk.responses.create(**body):
            pass
    record = await box.last()
    assert record["outcome"] == "cut"
    # created, in progress, 2 x reasoning, item, part, and 3 deltas
    assert record["usage"]["output_tokens"] == (16 + 3 if isinstance(where, dict) else 0)
    body = request({"silent": where}, stream=True)
    with pytest.raises((openai.APITimeoutError, openai.APIError)):
        async for _ in await box.sdk.responses.create(**body, timeout=0.15):
            pass


async def test_status_headers_latency_and_echo(box):
    answer = await post(box, {"status": 429, "error": "429_quota", "headers": {"retry-after": "7"}})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    began = time.monotonic()
    await stream(box, {"latency_ms": 60, "chunk_interval_ms": 5, "text": "Hi"})
    assert time.monotonic() - began >= 0.1
    found = (await post(box, {"echo": True}, user="tenant-1")).json()
    seen = json.loads(found["output"][1]["content"][0]["text"])
    assert seen["body"]["user"] == "tenant-1"
    found = (await post(box, {"model": "other", "service_tier": "flex"})).json()
    assert (found["model"], found["service_tier"]) == ("other", "flex")


async def test_replay(box):
    await post(box, {"replay": "responses_stream_web_search.sse"}, stream=True)
    record = await box.last()
    assert (record["usage"]["input_tokens"], record["textSent"]) == (9120, "Up to 190 t.")
    await post(box, {"replay": "responses_nonstream_tools.json"})
    record = await box.last()
    assert (record["usage"]["output_tokens"], record["textSent"]) == (143, "Done.")


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role"),
        ({"max_output_tokens": 15}, "max_output_tokens"),
        ({"max_output_tokens": "16"}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"tools": 5}, "tools"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"service_tier": "turbo"}, "service_tier"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"temperature": 3}, "temperature"),
        ({"include": ["x"]}, "include[0]"),
        ({"background": True, "store": False}, "store"),
        ({"background_options": {"completion_window": "2h"}}, "background_options.completion_window"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
async def test_bad_requests(box, change, param):
    answer = await box.http.post("/v1/responses", json=request() | change)
    assert answer.status_code == 400
    assert list(answer.json()["error"]) == ["message", "type", "param", "code"]
    assert answer.json()["error"]["param"] == param
    assert (await box.last())["usage"] is None


async def test_bad_key_and_unknown_ids(box):
    wrong = {"authorization": "Bearer wrong"}
    for method, path in (("POST", ""), ("GET", "/resp_1"), ("POST", "/resp_1/cancel"), ("POST", "/compact")):
        answer = await box.http.request(method, f"/v1/responses{path}", json=request(), headers=wrong)
        assert (answer.status_code, answer.json()) == (401, sample("errors.json")["401"])
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/input_items"),
        ("POST", "/cancel"),
        ("GET", "/nothing"),
    ):
        answer = await box.http.request(method, f"/v1/responses/resp_none{path}")
        assert answer.status_code == 404
        assert list(answer.json()["error"]) == ["message", "type", "param", "code"]
    answer = await box.http.post("/v1/responses", json=request(conversation="conv_1"))
    assert answer.status_code == 404


# -- stored and background responses ---------------------------------------------------------------


async def test_stored_response_can_be_had_again_until_deleted(box):
    first = (await post(box, {"text": "Blue whale."}, metadata={"a": "b"})).json()
    path = f"/v1/responses/{first['id']}"
    assert (await box.http.get(path)).json() == first
    items = (await box.http.get(f"{path}/input_items")).json()
    assert items["data"][0]["content"][0]["text"].startswith("Name a whale.")
    answer = await box.http.post(f"{path}/cancel")
    assert answer.status_code == 400
    assert (await box.http.delete(path)).json() == {"id": first["id"], "object": "response", "deleted": True}
    assert (await box.http.get(path)).status_code == 404
    events = await stream(box)
    assert (await box.http.get(f"/v1/responses/{terminal(events)['id']}")).json() == terminal(events)
    unstored = (await post(box, store=False)).json()["id"]
    assert (await box.http.get(f"/v1/responses/{unstored}")).status_code == 404


async def test_input_items_pages(box):
    messages = [{"role": "user", "content": word} for word in ("one", "two", "three")]
    found = await box.sdk.responses.create(model=MODEL, input=messages)
    listed = [item.content[0].text async for item in await box.sdk.responses.input_items.list(found.id, limit=2)]
    assert listed == ["three", "two", "one"]
    page = (await box.http.get(f"/v1/responses/{found.id}/input_items?order=asc&limit=1")).json()
    assert (page["data"][0]["content"][0]["text"], page["has_more"]) == ("one", True)


async def test_previous_response_adds_its_conversation(box):
    body = {"model": MODEL, "input": "Hi", "reasoning": {"effort": "none"}}
    await box.http.put("/__sandbox/settings", json={"directive": {"text": "Blue whale."}})
    first = (await box.http.post("/v1/responses", json=body)).json()
    assert first["usage"]["input_tokens"] == 3 + (3 + 1 + 1)
    second = (await box.http.post("/v1/responses", json=body | {"previous_response_id": first["id"]})).json()
    # Again the question, and the answer as a message of three tokens.
    assert second["usage"]["input_tokens"] == 8 + (3 + 1 + 3) + (3 + 1 + 1)
    assert second["previous_response_id"] == first["id"]


async def settled(box, **wanted):
    for _ in range(100):
        record = next(r for r in reversed(box.server.records) if r["path"] == "/v1/responses")
        if all(record[key] == value for key, value in wanted.items()):
            return record
        await asyncio.sleep(0.01)
    raise AssertionError(record)


async def test_background_response_from_queued_to_completed(box):
    directive = {"text": "Blue whale.", **BACKGROUND, **NO_TOOLS}
    created = (await post(box, directive, background=True)).json()
    assert (created["status"], created["usage"], created["output"]) == ("queued", None, [])
    assert (await settled(box, jobStatus="queued"))["usage"] is None
    seen = []
    while not seen or seen[-1] not in {"completed", "failed"}:
        found = (await box.http.get(f"/v1/responses/{created['id']}")).json()
        seen.append(found["status"])
        await asyncio.sleep(0.005)
    assert list(dict.fromkeys(seen)) == ["queued", "in_progress", "completed"]
    assert skeleton(found) == skeleton(sample("responses_background_retrieve_completed.json"))
    record = await settled(box, jobStatus="completed")
    assert record["usage"] == found["usage"]
    assert record["usage"]["output_tokens"] == 16 + 3


async def test_background_response_can_be_cancelled(box, settings):
    created = (await post(box, {"queued_ms": 10_000}, background=True)).json()
    path = f"/v1/responses/{created['id']}"
    found = (await box.http.post(f"{path}/cancel")).json()
    assert skeleton(found) == skeleton(sample("responses_background_cancelled.json"))
    assert found["status"] == "cancelled"
    assert (await box.http.post(f"{path}/cancel")).json() == found
    assert (await box.http.get(path)).json() == found
    record = await settled(box, jobStatus="cancelled")
    assert record["usage"] is None
    lines = [json.loads(line) for line in settings.record.read_text().splitlines()]
    assert [line["jobStatus"] for line in lines if line["seq"] == record["seq"]] == [None, "queued", "cancelled"]
    created = (await post(box, {"queued_ms": 0, "background_ms": 10_000}, background=True)).json()
    await asyncio.sleep(0.02)
    await box.http.post(f"/v1/responses/{created['id']}/cancel")
    record = await settled(box, jobStatus="cancelled")
    assert record["usage"]["input_tokens"] > 0
    assert record["usage"]["output_tokens"] < 56


async def test_background_stream_can_be_resumed(box):
    directive = {"text": "Blue whale.", **BACKGROUND, **NO_TOOLS}
    events = await stream(box, directive, background=True)
    path = f"/v1/responses/{terminal(events)['id']}"
    answer = await box.http.get(path, params={"stream": "true", "starting_after": 5})
    resumed = typed_events(answer.text)
    assert resumed == events[6:]
    expected = sample_events("responses_background_stream_resumed_after_5.sse")
    assert names(resumed) == names(expected)
    assert (await box.last())["usage"] is None
    assert (await settled(box, jobStatus="completed"))["usage"] == terminal(events)["usage"]
    sync = (await post(box)).json()["id"]
    assert (await box.http.get(f"/v1/responses/{sync}?stream=true")).status_code == 400


async def test_background_goes_on_when_the_client_leaves(box):
    body = request({"text": "Blue whale.", **BACKGROUND}, background=True, stream=True)
    async with box.http.stream("POST", "/v1/responses", json=body) as answer:
        async for _ in answer.aiter_bytes():
            break
    record = await settled(box, jobStatus="completed", outcome="client_gone")
    assert record["usage"]["output_tokens"] == 16 + 3


async def test_later_directive_steers_requests_on_the_response(box):
    created = (await post(box, {"later": {"status": 500}})).json()
    assert (await box.http.get(f"/v1/responses/{created['id']}")).status_code == 500
    events = await stream(box, {"later": {"cut": {"after_chunks": 2}}, **BACKGROUND}, background=True)
    with pytest.raises((openai.APIConnectionError, openai.APIError)):
        async for _ in await box.sdk.responses.retrieve(terminal(events)["id"], stream=True):
            pass
    assert (await box.last())["chunksSent"] == 2


# -- the SDK ---------------------------------------------------------------------------------------


def strict(box):
    """An SDK client that refuses answers which do not fit its types."""
    return openai.AsyncOpenAI(api_key=KEY, base_url=box.server.url, max_retries=0, _strict_response_validation=True)


@pytest.mark.parametrize("name", sorted(STREAMS))
async def test_the_sdk_parses_every_stream_strictly(box, name):
    directive, fields = STREAMS[name]
    async with strict(box) as sdk:
        events = [event async for event in await sdk.responses.create(**request(directive, stream=True, **fields))]
    assert events[0].type == "response.created"


async def test_the_sdk_parses_every_answer_strictly(box):
    every = {
        "calls": ["web_search", "open_page", "find_in_page", "file_search", "code_interpreter", "image_generation"],
        "text": "See example.com.",
    }
    tools = [SEARCH, *FILES, IMAGE, FUNCTION]
    include = ["file_search_call.results", "code_interpreter_call.outputs"]
    async with strict(box) as sdk:
        found = await sdk.responses.create(**request(every, tools=tools, include=include))
        assert found.output_text == "See example.com."
        assert [item.type for item in found.output].count("web_search_call") == 3
        events = [event async for event in await sdk.responses.create(**request(every, tools=tools, stream=True))]
        assert events[-1].type == "response.completed"
        created = await sdk.responses.create(**request(BACKGROUND, background=True))
        assert created.status == "queued"
        cancelled = await sdk.responses.cancel(created.id)
        assert cancelled.status == "cancelled"
        assert (await sdk.responses.retrieve(found.id)).id == found.id
        await sdk.responses.delete(found.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(found.id)
        call = await sdk.responses.create(
            **request(tools=[FUNCTION], tool_choice={"type": "function", "name": "get_time"})
        )
        assert call.output[1].type == "function_call"
