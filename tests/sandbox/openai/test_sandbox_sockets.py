"""WebSockets: responses in lanes, and realtime sessions."""

import asyncio
import base64
import contextlib
import json

import openai
import pydantic
import pytest
from openai.types.realtime import RealtimeServerEvent
from openai.types.responses import ResponsesServerEvent
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.sandbox.openai.sandbox_shapes import KEY, sample, sample_lines, shapes, skeleton, steer

pytestmark = pytest.mark.asyncio
MODEL = "gpt-6.2-sol"
VOICE = "gpt-realtime-2.1"
RESPONSES = pydantic.TypeAdapter(ResponsesServerEvent)
REALTIME = pydantic.TypeAdapter(RealtimeServerEvent)
LAST = {"response.completed", "response.incomplete", "response.failed", "response.done", "error"}


class Wire:
    """One socket of the test."""

    def __init__(self, socket):
        self.socket = socket

    async def send(self, **frame):
        await self.socket.send(json.dumps(frame))

    async def next(self):
        async with asyncio.timeout(5):
            return json.loads(await self.socket.recv())

    async def until(self, *kinds):
        """All frames up to one of these types."""
        found = []
        while not found or found[-1]["type"] not in (kinds or LAST):
            found.append(await self.next())
        return found


@contextlib.asynccontextmanager
async def opened(box, path="/v1/responses", key=KEY, **options):
    headers = {"authorization": f"Bearer {key}", "x-client-request-id": "sock-1"} if key else {}
    url = f"ws://127.0.0.1:{box.server.port}{path}"
    async with connect(url, additional_headers=headers, proxy=None, compression=None, **options) as socket:
        yield Wire(socket)


def create(directive=None, **fields):
    frame = {"type": "response.create", "model": MODEL, "input": steer("Name a whale.", directive)}
    return frame | {"reasoning": {"effort": "low"}} | fields


async def records(box, path="/v1/responses", method="WS"):
    found = (await box.http.get("/__sandbox/record")).json()["records"]
    return [record for record in found if (record["path"], record["method"]) == (path, method)]


async def settled(box, path="/v1/responses", method="WS", **wanted):
    record = {}
    for _ in range(200):
        record = ([{}, *await records(box, path, method)])[-1]
        if record and all(record[name] == value for name, value in wanted.items()):
            return record
        await asyncio.sleep(0.01)
    raise AssertionError(record)


def types(frames):
    return [frame["type"] for frame in frames]


def runs(kinds):
    return [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]


# -- responses -------------------------------------------------------------------------------------


async def test_frames_have_the_shapes_of_the_sample(box):
    expected = sample_lines("responses_ws_server_frames.jsonl")
    async with opened(box) as wire:
        await wire.send(**create({"text": "Whale", "tool_usage": None}, stream_id="lane-a", store=False))
        found = await wire.until()
        await wire.send(**create({"status": 429, "error": "429_rate", "headers": {"retry-after": "2"}}))
        found += await wire.until()
    assert shapes(found) == shapes(expected)
    assert runs(types(found)) == runs(types(expected))
    assert found[-1]["error"]["headers"] == {"retry-after": "2"}
    assert [RESPONSES.validate_python(frame).type for frame in found] == types(found)
    first, second = await records(box)
    assert first["usage"] == first["usageSent"] == found[-2]["response"]["usage"]
    assert (first["outcome"], first["transport"], first["stream"], first["textSent"]) == (
        "completed",
        "websocket",
        True,
        "Whale",
    )
    assert (first["clientRequestId"], first["model"], first["serviceTier"]) == ("sock-1", MODEL, "default")
    assert first["requestBody"]["stream_id"] == "lane-a"
    assert (second["outcome"], second["status"], second["usage"]) == ("error", 429, None)


async def test_socket_itself_is_recorded(box):
    async with opened(box):
        assert (await settled(box, method="GET", outcome="headers_sent"))["status"] == 101
    await settled(box, method="GET", outcome="completed", usage=None)
    async with opened(box) as wire:
        wire.socket.transport.abort()
        await settled(box, method="GET", outcome="client_gone")


async def test_lanes_run_side_by_side_and_each_in_order(box):
    slow = {"chunk_interval_ms": 10, "text": "Blue whale."}
    async with opened(box) as wire:
        await wire.send(**create(slow, stream_id="a"))
        await wire.send(**create({"text": "Second."}, stream_id="a"))
        await wire.send(**create({"text": "Quick."}, stream_id="b"))
        ended = []
        while len(ended) < 3:
            frame = (await wire.until("response.completed"))[-1]
            ended.append((frame["stream_id"], frame["response"]["output"][1]["content"][0]["text"]))
    assert ended == [("b", "Quick."), ("a", "Blue whale."), ("a", "Second.")]


async def test_prepared_prompt_writes_the_cache_and_continues(box):
    async with opened(box) as wire:
        await wire.send(**sample_lines("responses_ws_client_frames.jsonl")[1])
        frames = await wire.until()
        assert types(frames) == ["response.created", "response.in_progress", "response.completed"]
        usage = frames[-1]["response"]["usage"]
        assert usage["output_tokens"] == 0
        assert usage["input_tokens_details"]["cache_write_tokens"] == usage["input_tokens"] == 3
        await wire.send(**create({"text": "Whale"}, previous_response_id=frames[-1]["response"]["id"]))
        assert (await wire.until())[-1]["type"] == "response.completed"
    # It was not stored, and the socket is gone.
    answer = await box.http.post(
        "/v1/responses", json={"model": MODEL, "input": "x", "previous_response_id": frames[-1]["response"]["id"]}
    )
    assert answer.json()["error"]["code"] == "previous_response_not_found"


async def test_steering_ends_a_response_and_starts_another_unasked(box):
    async with opened(box) as wire:
        await wire.send(**create({"chunk_interval_ms": 20, "output_tokens": 200}, stream_id="a"))
        first = (await wire.next())["response"]["id"]
        await wire.until("response.output_text.delta")
        await wire.send(
            type="response.steer", previous_response_id=first, input=steer("In French.", {"text": "Baleine."})
        )
        frames = await wire.until()
        assert "response.steer.accepted" in types(frames)
        assert frames[-1]["response"]["incomplete_details"] == {"reason": "steered"}
        frames = await wire.until()
        assert frames[0]["type"] == "response.created"
        assert frames[-1]["response"]["previous_response_id"] == first
        assert frames[-1]["stream_id"] == "a"
        assert frames[-1]["response"]["output"][-1]["content"][0]["text"] == "Baleine."
        await wire.send(type="response.steer", previous_response_id=first, input="More.")
        failed = await wire.next()
        assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "response_not_found")
        RESPONSES.validate_python(failed)
    first, second = await records(box)
    assert 16 < first["usage"]["output_tokens"] < 216
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("frame", "param"),
    [
        ({"type": "nope"}, "type"),
        ({}, "type"),
        ({"type": "response.create", "input": "x"}, "model"),
        ({"type": "response.create", "model": MODEL}, "input"),
        (create(background=True), "background"),
        (create(stream_id=5), "stream_id"),
        (create(nope=1), "nope"),
        (create(previous_response_id="resp_none"), "previous_response_id"),
    ],
)
async def test_bad_frames(box, frame, param):
    async with opened(box) as wire:
        await wire.send(**frame)
        found = await wire.next()
        assert (found["type"], found["status"], found["error"]["param"]) == ("error", 400, param)
        await wire.socket.send("{")
        assert (await wire.next())["status"] == 400
        await wire.send(**create({"text": "Whale"}))
        assert (await wire.until())[-1]["type"] == "response.completed"


async def test_directives_work_in_frames(box):
    async with opened(box) as wire:
        await wire.send(**create({"error_after_chunks": 3}))
        frames = await wire.until()
        assert len(frames) == 4
        assert (frames[-1]["type"], frames[-1]["status"]) == ("error", 500)
        await wire.send(**create({"usage": "many"}))
        assert (await wire.until())[-1]["response"]["usage"] == "many"
        await wire.send(**create({"split_bytes": 7, "text": "Blue whale."}))
        assert (await wire.until())[-1]["response"]["output"][1]["content"][0]["text"] == "Blue whale."
        await wire.send(**create({"failed": True}))
        assert (await wire.until())[-1]["response"]["usage"] is None
        await wire.send(**create({"silent": {"after_chunks": 2}}, stream_id="mute"))
        assert types([await wire.next(), await wire.next()]) == ["response.created", "response.in_progress"]
        await wire.send(**create({"text": "Whale"}))
        assert (await wire.until())[-1]["type"] == "response.completed"
    record = (await records(box))[-2]
    assert (record["outcome"], record["chunksSent"]) == ("client_gone", 2)


async def test_samples_are_replayed_as_frames(box):
    async with opened(box) as wire:
        await wire.send(**create({"replay": "responses_ws_server_frames.jsonl"}))
        expected = sample_lines("responses_ws_server_frames.jsonl")
        assert [await wire.next() for _ in expected] == expected
        await wire.send(**create({"replay": "responses_stream_web_search.sse"}))
        assert (await wire.until())[-1]["response"]["usage"]["input_tokens"] == 9120
    first, second = await records(box)
    assert (first["usage"]["output_tokens"], first["textSent"]) == (143, "Blue whale.")
    assert second["usage"]["input_tokens"] == 9120


@pytest.mark.parametrize("rst", [False, True])
async def test_socket_is_cut(box, rst):
    async with opened(box) as wire:
        await wire.send(**create({"cut": {"after_chunks": 8}, "rst": rst}))
        with pytest.raises(ConnectionClosed):
            await wire.until()
    record = await settled(box, outcome="cut")
    assert record["chunksSent"] == 8
    assert record["usage"]["output_tokens"] == 16 + 2


@pytest.mark.parametrize("path", ["/v1/responses", f"/v1/realtime?model={VOICE}"])
async def test_handshakes_want_the_key(box, path):
    with pytest.raises(InvalidStatus) as caught:
        async with opened(box, path, key="wrong"):
            pass
    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body) == sample("errors.json")["401"]
    protocols = ["realtime", f"openai-insecure-api-key.{KEY}"]
    async with opened(box, path, key="", subprotocols=protocols) as wire:
        assert wire.socket.subprotocol == "realtime"
        assert wire.socket.response.headers["openai-organization"] == "org-sandboxcanary"


async def test_handshakes_can_fail(box):
    for path, status in (("/v1/realtime", 400), ("/v1/realtime?call_id=1", 404), ("/v1/other", 400)):
        with pytest.raises(InvalidStatus) as caught:
            async with opened(box, path):
                pass
        assert caught.value.response.status_code == status
    await box.http.put("/__sandbox/settings", json={"directive": {"status": 503}})
    with pytest.raises(InvalidStatus) as caught:
        async with opened(box):
            pass
    assert caught.value.response.status_code == 503


async def test_the_sdk_speaks_responses(box):
    async with box.sdk.responses.connect() as connection:
        await connection.response.create(model=MODEL, input=steer("Name a whale.", {"text": "Blue whale."}))
        async for event in connection:
            if event.type == "response.completed":
                assert event.response.output_text == "Blue whale."
                break


# -- realtime --------------------------------------------------------------------------------------

TALK = f"/v1/realtime?model={VOICE}"


def said(text, directive=None):
    content = [{"type": "input_text", "text": steer(text, directive)}]
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}


def pcm(seconds):
    return base64.b64encode(b"\0" * int(48_000 * seconds)).decode()


def one(frames, kind):
    return next(frame for frame in frames if frame["type"] == kind)


TRANSCRIBED = {
    "type": "realtime",
    "instructions": "Be brief.",
    "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}},
}


async def test_realtime_events_have_the_shapes_of_the_sample(box):
    expected = sample_lines("realtime_server_events.jsonl")
    async with opened(box, TALK) as wire:
        frames = [await wire.next()]
        await wire.send(type="session.update", session=TRANSCRIBED)
        updated = await wire.next()
        assert updated["type"] == "session.updated"
        assert skeleton(updated["session"]) == skeleton(expected[0]["session"])
        await wire.send(type="input_audio_buffer.append", audio=pcm(1.3))
        await wire.send(type="input_audio_buffer.commit")
        frames += await wire.until("conversation.item.input_audio_transcription.completed")
        await wire.send(type="response.create")
        frames += await wire.until()
        await wire.send(type="response.create", response={"instructions": steer("", {"cancel_after_chunks": 8})})
        cancelled = (await wire.until())[-1]
        await wire.send(event_id="client_7")
        error = await wire.next()
    for event in (*frames, updated, cancelled, error):
        REALTIME.validate_python(event, strict=True)
        assert event["event_id"]
    for kind in {event["type"] for event in expected} - {"session.created", "response.done", "error"}:
        assert sorted(skeleton(one(frames, kind))) == sorted(skeleton(one(expected, kind))), kind
    done, wanted = one(frames, "response.done"), one(expected, "response.done")
    for event in (done, wanted, cancelled):
        event["response"]["output"] = []
    assert skeleton(done) == skeleton(wanted)
    assert skeleton(cancelled) == skeleton(expected[-2])
    assert cancelled["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert skeleton(error) == skeleton(expected[-1])
    assert error["error"] == expected[-1]["error"]


async def test_every_turn_bills_the_conversation_again(box):
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(type="session.update", session={"type": "realtime", "output_modalities": ["text"]})
        usages = []
        for _ in range(3):
            await wire.send(**said("Hi"))
            await wire.send(type="response.create", response={"metadata": {"x": steer("", {"text": "Blue whale."})}})
            usages.append((await wire.until())[-1]["response"]["usage"])
    # 3 for the reply; a question is 3 + role + 1, an answer 3 + role + 3.
    assert [usage["input_tokens"] for usage in usages] == [3 + 5, 3 + 5 + 7 + 5, 3 + 5 + 7 + 5 + 7 + 5]
    assert [usage["input_token_details"]["cached_tokens"] for usage in usages] == [0, 8, 20]
    assert [usage["output_tokens"] for usage in usages] == [3, 3, 3]
    found = await records(box, "/v1/realtime")
    assert [record["usage"] for record in found] == usages == [record["usageSent"] for record in found]
    assert {(record["model"], record["clientRequestId"], record["textSent"]) for record in found} == {
        (VOICE, "sock-1", "Blue whale.")
    }


async def test_audio_costs_by_its_length(box):
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(type="session.update", session=TRANSCRIBED)
        await wire.send(type="input_audio_buffer.append", audio=pcm(1.25))
        await wire.send(type="input_audio_buffer.commit")
        heard = (await wire.until("conversation.item.input_audio_transcription.completed"))[-1]["usage"]
        await wire.send(type="response.create", response={"metadata": {"x": steer("", {"text": "Blue whale."})}})
        usage = (await wire.until())[-1]["response"]["usage"]
        await wire.send(type="response.create")
        again = (await wire.until())[-1]["response"]["usage"]
    assert (heard["input_token_details"]["audio_tokens"], heard["output_tokens"]) == (13, 3)
    # "Be brief." is a message of three tokens, the audio item has no text.
    assert usage["input_token_details"]["text_tokens"] == 3 + (3 + 1 + 3) + 4
    assert usage["input_token_details"]["audio_tokens"] == 13
    # Three tokens of transcript, each with three of audio.
    assert usage["output_token_details"] == {"text_tokens": 3, "audio_tokens": 9}
    assert again["input_token_details"]["audio_tokens"] == 13 + 9
    assert again["input_token_details"]["cached_tokens_details"] == {
        "text_tokens": 14,
        "audio_tokens": 13,
        "image_tokens": 0,
    }
    found = await records(box, "/v1/realtime")
    assert [record["model"] for record in found] == ["gpt-4o-transcribe", VOICE, VOICE]
    assert found[0]["usage"] == heard


async def test_transcription_by_duration_and_its_directive(box):
    session = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    note = steer("", {"transcription": {"text": "Hello."}})
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(type="session.update", session=session | {"instructions": note})
        await wire.send(type="input_audio_buffer.append", audio=pcm(1.3))
        await wire.send(type="input_audio_buffer.commit")
        found = (await wire.until("conversation.item.input_audio_transcription.completed"))[-1]
    assert skeleton(found) == skeleton(sample_lines("realtime_transcription_duration.jsonl")[0])
    assert (found["usage"], found["transcript"]) == ({"type": "duration", "seconds": 2.0}, "Hello.")


async def test_turn_detection_answers_unasked(box):
    detection = {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(type="session.update", session=detection)
        await wire.send(type="input_audio_buffer.append", audio=pcm(0.6))
        await wire.send(type="input_audio_buffer.append", audio=pcm(0.6))
        frames = await wire.until()
    for kind in (
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ):
        REALTIME.validate_python(one(frames, kind), strict=True)
    assert frames[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == 12
    assert len(await records(box, "/v1/realtime")) == 1


async def test_client_cancels_a_response(box):
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(type="response.cancel")
        assert (await wire.next())["error"]["code"] == "response_cancel_not_active"
        await wire.send(**said("Hi", {"chunk_interval_ms": 10, "output_tokens": 100}))
        await wire.send(type="response.create")
        await wire.until("response.output_audio.delta")
        await wire.send(type="response.create")
        frames = await wire.until("error")
        assert frames[-1]["error"]["code"] == "conversation_already_has_active_response"
        await wire.send(type="response.cancel")
        done = (await wire.until("response.done"))[-1]["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    assert 4 <= done["usage"]["output_tokens"] < 400
    assert (await records(box, "/v1/realtime"))[0]["usage"] == done["usage"]


async def test_functions_caps_and_out_of_band_responses(box):
    tool = {
        "type": "function",
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"tz": {"type": "string"}}},
    }
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(**said("Hi"))
        await wire.until("conversation.item.done")
        await wire.send(
            type="response.create", response={"tools": [tool], "tool_choice": "required", "conversation": "none"}
        )
        frames = await wire.until()
        for frame in frames:
            REALTIME.validate_python(frame, strict=True)
        item = frames[-1]["response"]["output"][0]
        assert (item["type"], json.loads(item["arguments"])) == ("function_call", {"tz": "UTC"})
        assert frames[-1]["response"]["conversation_id"] is None
        assert "conversation.item.added" not in types(frames)
        await wire.send(
            type="response.create", response={"max_output_tokens": 8, "output_modalities": ["text"], "input": []}
        )
        done = (await wire.until())[-1]["response"]
        assert (done["status"], done["status_details"]) == (
            "incomplete",
            {"type": "incomplete", "reason": "max_output_tokens"},
        )
        assert (done["usage"]["output_tokens"], done["usage"]["input_tokens"]) == (8, 3)
        await wire.send(type="response.create", response={"metadata": {"x": steer("", {"failed": True})}})
        done = (await wire.until())[-1]
        REALTIME.validate_python(done, strict=True)
        assert (done["response"]["status"], done["response"]["usage"]) == ("failed", None)


async def test_items_can_be_read_truncated_and_deleted(box):
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(**said("Hi"))
        item = (await wire.until("conversation.item.done"))[-1]["item"]
        await wire.send(type="conversation.item.retrieve", item_id=item["id"])
        assert (await wire.next())["item"] == item
        await wire.send(type="response.create")
        done = (await wire.until())[-1]["response"]
        voice = done["output"][0]["id"]
        await wire.send(type="conversation.item.truncate", item_id=voice, content_index=0, audio_end_ms=500)
        REALTIME.validate_python(await wire.next(), strict=True)
        await wire.send(type="conversation.item.delete", item_id=item["id"])
        REALTIME.validate_python(await wire.next(), strict=True)
        await wire.send(type="conversation.item.delete", item_id=item["id"])
        assert (await wire.next())["error"]["code"] == "item_not_found"
        await wire.send(type="response.create", response={"output_modalities": ["text"]})
        usage = (await wire.until())[-1]["response"]["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 10
    assert usage["input_tokens"] == 3 + 3 + 10


@pytest.mark.parametrize(
    ("frame", "param"),
    [
        ({"type": "nope"}, "type"),
        ({"type": "session.update"}, "session"),
        ({"type": "conversation.item.create"}, "item"),
        ({"type": "conversation.item.create", "item": {"type": "message", "role": "boss"}}, "item.role"),
        ({"type": "input_audio_buffer.append", "audio": "??"}, "audio"),
        ({"type": "input_audio_buffer.append", "audio": 5}, "audio"),
        ({"type": "response.create", "response": 5}, "response"),
        ({"type": "response.create", "response": {"max_output_tokens": 0}}, "max_output_tokens"),
        ({"type": "input_audio_buffer.commit"}, None),
    ],
)
async def test_bad_realtime_frames(box, frame, param):
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(**frame, event_id="mine")
        found = (await wire.next())["error"]
    assert (found["type"], found["param"], found["event_id"]) == ("invalid_request_error", param, "mine")


async def test_realtime_directives(box):
    async with opened(box, TALK) as wire:
        await wire.next()
        await wire.send(**said("Hi", {"usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}))
        await wire.send(type="response.create")
        assert (await wire.until())[-1]["response"]["usage"]["total_tokens"] == 3
        assert (await records(box, "/v1/realtime"))[-1]["usage"]["total_tokens"] == 3
        await wire.send(**said("Hi", {"usage": None}))
        await wire.send(type="response.create")
        assert (await wire.until())[-1]["response"]["usage"] is None
        await wire.send(**said("Hi", {"status": 500}))
        await wire.send(type="response.create")
        assert (await wire.until("error"))[-1]["error"]["type"] == "server_error"
        await wire.send(**said("Hi", {"error_after_chunks": 3}))
        await wire.send(type="response.create")
        assert (await wire.until("error"))[-1]["error"]["type"] == "server_error"
        await wire.send(**said("Hi", {"cut": {"after_chunks": 5}}))
        await wire.send(type="response.create")
        with pytest.raises(ConnectionClosed):
            await wire.until()
    assert (await settled(box, "/v1/realtime", outcome="cut"))["chunksSent"] == 5


async def test_the_sdk_speaks_realtime(box):
    async with box.sdk.realtime.connect(model=VOICE) as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await connection.conversation.item.create(item=said("Hi", {"text": "Blue whale."})["item"])
        await connection.response.create()
        async for event in connection:
            if event.type == "response.output_text.done":
                assert event.text == "Blue whale."
            if event.type == "response.done":
                assert event.response.usage.output_tokens == 3
                break
    assert isinstance(box.sdk, openai.AsyncOpenAI)
