"""Realtime calls of the simulator: created, listened to, played, hung up, billed."""

import asyncio
import json

import pydantic
import pytest
from openai.types.realtime import RealtimeServerEvent
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK, InvalidStatus

from tests.sandbox.openai.sandbox_shapes import KEY

pytestmark = pytest.mark.asyncio
REALTIME = pydantic.TypeAdapter(RealtimeServerEvent)
VOICE = "gpt-realtime-2.1"
OFFER = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"


async def create(box, offer=OFFER, **session):
    fields = {"sdp": (None, offer), "session": (None, json.dumps({"type": "realtime", "model": VOICE, **session}))}
    return await box.http.post("/v1/realtime/calls", files=fields)


async def call_of(box, **session):
    answer = await create(box, **session)
    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/sdp")
    return answer.headers["location"].removeprefix("/v1/realtime/calls/")


def sideband(box, call_id, key=KEY):
    url = f"ws://127.0.0.1:{box.server.port}/v1/realtime?call_id={call_id}"
    return connect(url, additional_headers={"authorization": f"Bearer {key}"}, proxy=None)


async def until(socket, kind):
    found = []
    while not found or found[-1]["type"] != kind:
        async with asyncio.timeout(5):
            found.append(json.loads(await socket.recv()))
    return found


async def play(box, call_id, *events):
    answer = await box.http.post(f"/__sandbox/realtime/calls/{call_id}/events", json=list(events))
    assert answer.status_code == 200, answer.text


async def test_a_sideband_hears_a_call_and_no_sound_of_it(box):
    call_id = await call_of(box)
    async with sideband(box, call_id) as socket:
        await play(box, call_id, {"type": "response.create"})
        frames = await until(socket, "output_audio_buffer.stopped")
        for frame in frames:
            REALTIME.validate_python(frame, strict=True)
        kinds = [frame["type"] for frame in frames]
        assert "response.output_audio.delta" not in kinds
        assert kinds.index("response.created") < kinds.index("output_audio_buffer.started")
        (done,) = [frame for frame in frames if frame["type"] == "response.done"]
        assert done["response"]["usage"]["output_token_details"]["audio_tokens"] > 0
    (row,) = [row for row in box.server.records if row["callId"] == call_id]
    assert row["usage"] == done["response"]["usage"]


async def test_a_sideband_may_speak_and_a_hangup_ends_it(box):
    call_id = await call_of(box, output_modalities=["text"])
    async with sideband(box, call_id) as socket:
        await socket.send(json.dumps({"type": "session.update", "session": {"max_output_tokens": 7}}))
        (updated,) = await until(socket, "session.updated")
        assert updated["session"]["max_output_tokens"] == 7
        assert (await box.http.post(f"/v1/realtime/calls/{call_id}/hangup")).status_code == 200
        with pytest.raises(ConnectionClosedOK):
            await until(socket, "response.done")
    assert (await box.http.post(f"/v1/realtime/calls/{call_id}/hangup")).status_code == 404
    (shown,) = (await box.http.get("/__sandbox/realtime/calls")).json()["calls"]
    assert (shown["id"], shown["running"], shown["sidebands"]) == (call_id, False, 0)


async def test_a_truncation_limits_what_a_response_reads(box):
    limits = {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": {"post_instructions": 100}}
    call_id = await call_of(box, output_modalities=["text"], truncation=limits)
    content = [{"type": "input_text", "text": "whale " * 60}]
    item = {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
    async with sideband(box, call_id) as socket:
        await play(box, call_id, item, item, item, {"type": "response.create"})
        done = (await until(socket, "response.done"))[-1]
    assert done["response"]["usage"]["input_tokens"] < 120


@pytest.mark.parametrize(
    ("offer", "session", "param"),
    [("none", {}, "sdp"), (OFFER, {"model": ""}, "model"), (OFFER, {"type": "x"}, "session.type")],
)
async def test_bad_offers(box, offer, session, param):
    answer = await create(box, offer, **session)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_sideband_of_no_call_and_one_that_the_settings_refuse(box):
    with pytest.raises(InvalidStatus) as refused:
        async with sideband(box, "rtc_never"):
            pass
    assert refused.value.response.status_code == 404
    call_id = await call_of(box)
    await box.http.patch("/__sandbox/settings", json={"sideband_status": 500})
    with pytest.raises(InvalidStatus) as refused:
        async with sideband(box, call_id):
            pass
    assert refused.value.response.status_code == 500
