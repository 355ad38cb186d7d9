"""Every directive does what it says."""

import asyncio
import json
import time

import httpx
import openai
import pytest

pytestmark = pytest.mark.asyncio
SDK_CHAT = {"model": "gpt-5.4-mini", "stream": True, "stream_options": {"include_usage": True}}


def sdk_messages(directive):
    return [{"role": "user", "content": f"Hi [[sandbox {json.dumps(directive)}]]"}]


def texts(events):
    parsed = [json.loads(event) for event in events if event != "[DONE]"]
    deltas = [event["choices"][0]["delta"] for event in parsed if event.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_status_headers_and_error(box):
    directive = {"status": 429, "headers": {"retry-after": "7"}, "error": "429_quota"}
    answer = await box.chat(directive)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["code"] == "insufficient_quota"
    answer = await box.chat({"status": 400, "error": {"message": "m", "type": "t"}})
    assert answer.json() == {"error": {"message": "m", "type": "t"}}
    record = await box.last()
    assert (record["outcome"], record["status"], record["usage"]) == ("error", 400, None)


async def test_html_bodies(box):
    answer = await box.chat({"status": 502})
    assert answer.headers["content-type"] == "text/html"
    assert answer.text.startswith("<html>")
    answer = await box.chat({"status": 500, "body_raw": "<b>x</b>"})
    assert answer.text == "<b>x</b>"
    answer = await box.chat({"status": 503, "body_raw": "", "headers": {"content-type": "a/b"}})
    assert (answer.content, answer.headers["content-type"]) == (b"", "a/b")


async def test_latency_and_interval(box):
    began = time.monotonic()
    await box.chat({"latency_ms": 120})
    assert time.monotonic() - began >= 0.12
    began = time.monotonic()
    events = await box.events({"chunk_interval_ms": 20, "text": "Blue whale."})
    assert len(events) == 7
    assert time.monotonic() - began >= 5 * 0.02


async def test_text_length_and_reasoning(box):
    events = await box.events({"output_tokens": 7, "reasoning_tokens": 5})
    usage = json.loads(events[-2])["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert len(events) == 1 + 7 + 1 + 1 + 1
    assert texts(await box.events({"text": "a\n[[b]] ü"})) == "a\n[[b]] ü"


async def test_ignore_cap_goes_beyond_the_cap(box):
    usage = (await box.chat({"ignore_cap": True}, max_completion_tokens=50)).json()["usage"]
    assert usage["completion_tokens"] > 50
    directive = {"ignore_cap": True, "output_tokens": 33, "reasoning_tokens": 0}
    usage = (await box.chat(directive, max_completion_tokens=5)).json()["usage"]
    assert usage["completion_tokens"] == 33


@pytest.mark.parametrize("usage", [{"prompt_tokens": -5, "completion_tokens": 10**18}, {}, "many", 7, [1], True])
async def test_usage_override_is_sent_as_it_is(box, usage):
    assert (await box.chat({"usage": usage})).json()["usage"] == usage
    assert json.loads((await box.events({"usage": usage}))[-2])["usage"] == usage
    record = await box.last()
    assert record["usageSent"] == usage
    assert record["usage"]["completion_tokens"] == 56


async def test_believable_override_is_what_is_billed(box):
    usage = {"prompt_tokens": 300_000, "completion_tokens": 2, "total_tokens": 300_002}
    await box.events({"usage": usage})
    assert (await box.last())["usage"] == usage


async def test_usage_null_sends_none(box):
    assert "usage" not in (await box.chat({"usage": None})).json()
    events = await box.events({"usage": None})
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["usage"] is None for event in events[:-1])
    record = await box.last()
    assert record["usageSent"] is None
    assert record["usage"]["completion_tokens"] == 56


async def test_usage_on_finish_and_every(box):
    for path in ("/v1/chat/completions", "/v1/completions"):
        plain = json.loads((await box.events(path=path))[-2])["usage"]
        events = await box.events({"usage_on": "finish"}, path)
        parsed = [json.loads(event) for event in events[:-1]]
        assert parsed[-1]["choices"][0]["finish_reason"]
        assert parsed[-1]["usage"]["completion_tokens"] == plain["completion_tokens"]
        assert [event["usage"] for event in parsed[:-1]] == [None] * (len(parsed) - 1)
        events = await box.events({"usage_on": "every"}, path)
        counts = [json.loads(event)["usage"]["completion_tokens"] for event in events[:-1]]
        assert counts == sorted(counts)
        assert counts[-1] == plain["completion_tokens"]
        assert (await box.last())["usage"]["completion_tokens"] == plain["completion_tokens"]


async def test_usage_details_find_their_place(box):
    details = {"cached_tokens": 5, "cache_write_tokens": 2, "reasoning_tokens": 9, "strange": 1}
    usage = (await box.chat({"usage_details": details})).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 5
    assert usage["prompt_tokens_details"]["cache_write_tokens"] == 2
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 9
    assert usage["strange"] == 1
    nested = {"completion_tokens_details": {"audio_tokens": 4}}
    usage = (await box.chat({"usage_details": nested})).json()["usage"]
    assert usage["completion_tokens_details"]["audio_tokens"] == 4
    assert (await box.last())["usage"] == usage


async def test_echoes(box):
    directive = {"service_tier": "flex", "model": "other", "finish_reason": "content_filter"}
    answer = (await box.chat(directive, service_tier="priority")).json()
    assert (answer["service_tier"], answer["model"]) == ("flex", "other")
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert (await box.last())["serviceTier"] == "flex"
    answer = (await box.chat({"service_tier": None}, service_tier="priority")).json()
    assert "service_tier" not in answer


async def test_echo_shows_what_arrived(box):
    answer = await box.chat({"echo": True}, user="tenant-1")
    seen = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert seen["headers"]["authorization"] == "Bearer sk-sandbox"
    assert seen["body"]["user"] == "tenant-1"


async def test_directives_are_found_anywhere_and_merged(box):
    body = {
        "model": "text-embedding-3-small",
        "input": [1, 2],
        "user": '[[sandbox {"status": 403}]] [[sandbox {"error": "500"}]]',
    }
    answer = await box.http.post("/v1/embeddings", json=body)
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "server_error"
    raw = json.dumps(box.body({"status": 418})).replace("[[sandbox", "\\u005b[sandbox")
    assert (await box.http.post("/v1/chat/completions", content=raw)).status_code == 418


@pytest.mark.parametrize("text", ['[[sandbox {"statsu": 1}]]', "[[sandbox {]]", '[[sandbox {"a":1}'])
async def test_broken_directive_is_noticed(box, text):
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    answer = await box.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_directive")


@pytest.mark.parametrize("where", ["before_headers", "after_headers", {"after_chunks": 3}])
@pytest.mark.parametrize("rst", [False, True])
async def test_cut(box, where, rst):
    raw = await box.raw(box.stream_body({"cut": where, "rst": rst}))
    assert raw.endswith(b"<reset>") is rst
    assert raw.startswith(b"HTTP/1.1 200") is (where != "before_headers")
    assert raw.count(b"data: ") == (3 if isinstance(where, dict) else 0)
    assert b"0\r\n\r\n" not in raw
    record = await box.last()
    assert (record["outcome"], record["chunksSent"]) == ("cut", raw.count(b"data: "))
    spent = 16 + 2 if isinstance(where, dict) else 0
    assert record["usage"]["completion_tokens"] == spent
    assert record["usage"]["prompt_tokens"] > 0


async def test_cut_in_the_middle_of_a_chunk(box):
    raw = await box.raw(box.stream_body({"cut": {"after_chunks": 2, "mid_chunk": True}}))
    assert raw.count(b"data: ") == 3
    assert raw.count(b"\n\n") == 2
    assert (await box.last())["chunksSent"] == 2


async def test_cut_of_a_json_answer_bills_what_was_generated(box):
    raw = await box.raw(box.body({"cut": {"after_chunks": 0}}))
    head, _, body = raw.partition(b"\r\n\r\n")
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    assert 0 < len(body) < length
    record = await box.last()
    assert (record["outcome"], record["usage"]["completion_tokens"]) == ("cut", 56)


@pytest.mark.parametrize("where", ["before_headers", "after_headers", {"after_chunks": 3}])
async def test_silence_keeps_the_socket_open(box, where):
    raw = await box.raw(box.stream_body({"silent": where}), wait_s=0.2)
    assert raw.endswith(b"<silence>")
    assert raw.count(b"data: ") == (3 if isinstance(where, dict) else 0)
    assert raw.startswith(b"HTTP/1.1 200") is (where != "before_headers")
    await asyncio.sleep(0.05)
    assert (await box.last())["outcome"] == "client_gone"


async def test_cut_and_silence_as_the_sdk_sees_them(box):
    async def consume(directive, wait_s):
        stream = await box.sdk.chat.completions.create(messages=sdk_messages(directive), timeout=wait_s, **SDK_CHAT)
        return [chunk async for chunk in stream]

    with pytest.raises((openai.APIConnectionError, openai.APIError)):
        await consume({"cut": {"after_chunks": 2}}, 5)
    with pytest.raises(openai.APITimeoutError):
        await consume({"silent": "before_headers"}, 0.2)
    with pytest.raises(openai.APIError) as caught:
        await consume({"error_after_chunks": 2}, 5)
    assert caught.value.body["type"] == "server_error"


async def test_error_after_chunks(box):
    events = await box.events({"error_after_chunks": 2, "error": {"message": "mine"}})
    assert len(events) == 3
    assert json.loads(events[-1]) == {"error": {"message": "mine"}}
    record = await box.last()
    assert (record["outcome"], record["chunksSent"]) == ("error", 2)
    assert record["usage"]["completion_tokens"] == 16 + 1


async def test_no_done(box):
    for path in ("/v1/chat/completions", "/v1/completions"):
        events = await box.events({"no_done": True}, path)
        assert json.loads(events[-1])["usage"]


async def test_close_after_is_unannounced(box):
    raw = await box.raw(box.body({"close_after": True}))
    assert b"connection: keep-alive" in raw
    assert raw.endswith(b"}")
    raw = await box.raw(box.body(), wait_s=0.2)
    assert raw.endswith(b"}<silence>")


async def test_informational_comes_first(box):
    raw = await box.raw(box.body({"informational": True, "close_after": True}))
    assert raw.startswith(b"HTTP/1.1 103 Early Hints\r\n")
    assert b"\r\n\r\nHTTP/1.1 200 OK\r\n" in raw


async def test_close_delimited(box):
    for body in (box.body({"close_delimited": True}), box.stream_body({"close_delimited": True})):
        raw = await box.raw(body)
        head, _, rest = raw.partition(b"\r\n\r\n")
        assert b"content-length" not in head
        assert b"chunked" not in head
        assert b"connection: close" in head
        assert rest.endswith((b"}", b"data: [DONE]\n\n"))


async def test_crlf_events(box):
    answer = await box.http.post("/v1/chat/completions", json=box.stream_body({"crlf_events": True}))
    assert answer.content.endswith(b"data: [DONE]\r\n\r\n")
    assert answer.content.count(b"\r\n\r\n") == answer.content.count(b"data: ")


async def test_cr_events(box):
    answer = await box.http.post("/v1/chat/completions", json=box.stream_body({"cr_events": True}))
    assert answer.content.endswith(b"data: [DONE]\r\r")
    assert b"\n" not in answer.content


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_content_encoding(box, coding):
    directive = {"content_encoding": coding, "text": "Blue whale."}
    for body in (box.body(directive), box.stream_body(directive)):
        raw = await box.raw(body, extra="connection: close\r\n")
        assert f"content-encoding: {coding}".encode() in raw.partition(b"\r\n\r\n")[0]
        assert b"whale" not in raw
    assert texts(await box.events(directive)) == "Blue whale."
    assert (await box.chat(directive)).json()["choices"][0]["message"]["content"] == "Blue whale."


async def test_a_body_in_place_of_an_answer(box):
    answer = await box.chat({"body_raw": "<b>x</b>"})
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (200, "text/html", "<b>x</b>")


async def test_split_bytes(box):
    directive = {"split_bytes": 3, "text": "Blue whale."}
    raw = await box.raw(box.stream_body(directive), extra="connection: close\r\n")
    body = raw.partition(b"\r\n\r\n")[2]
    sizes = {int(line, 16) for line in body.split(b"\r\n")[::2] if line}
    assert sizes <= {0, 1, 2, 3}
    assert texts(await box.events(directive)) == "Blue whale."
    assert (await box.chat(directive)).json()["choices"][0]["message"]["content"] == "Blue whale."


async def test_refusal(box):
    message = (await box.chat({"refusal": "No."})).json()["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "No.")


async def test_replay_bills_what_the_sample_says(box):
    await box.chat({"replay": "chat_stream_include_usage.sse"})
    record = await box.last()
    assert record["usage"]["completion_tokens"] == 10
    assert (record["textSent"], record["chunksSent"]) == ("Blue whale.", 6)
    await box.chat({"replay": "chat_stream_truncated_no_final_usage.sse"})
    assert (await box.last())["usage"]["completion_tokens"] == 3
    assert (await box.chat({"replay": "../errors.json"})).status_code == 400


async def test_directives_do_not_leak_to_other_requests(box):
    answers = await asyncio.gather(*(box.chat({"status": 500 + i % 4} if i % 2 else None) for i in range(40)))
    assert [a.status_code for a in answers] == [500 + i % 4 if i % 2 else 200 for i in range(40)]


async def test_slow_reader_is_waited_for(box):
    directive = {"output_tokens": 60_000}
    url = "/v1/chat/completions"
    async with box.http.stream("POST", url, json=box.stream_body(directive)) as answer:
        await asyncio.sleep(0.3)
        assert (await box.last())["outcome"] == "headers_sent"
        await answer.aread()
    record = await box.last()
    assert (record["outcome"], record["chunksSent"]) == ("completed", 60_003)
    assert len(record["textSent"]) == 20_000
    assert isinstance(answer, httpx.Response)


async def test_ignore_cap_of_legacy_completions(box):
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": '[[sandbox {"ignore_cap": true}]]'}
    usage = (await box.http.post("/v1/completions", json=body)).json()["usage"]
    assert usage["completion_tokens"] == 40


async def test_override_is_not_billed_when_the_stream_is_cut(box):
    usage = {"prompt_tokens": 1, "completion_tokens": 999, "total_tokens": 1000}
    await box.raw(box.stream_body({"usage": usage, "cut": {"after_chunks": 2}}))
    assert (await box.last())["usage"]["completion_tokens"] == 16 + 1
