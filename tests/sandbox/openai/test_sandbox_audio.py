"""Speech, transcriptions and translations."""

import base64
import hashlib
import io
import json
import wave

import openai
import pytest

from tests.sandbox.openai.sandbox_shapes import KEY, sample, sample_events, shapes, skeleton, steer, typed_events

pytestmark = pytest.mark.asyncio
TTS = "gpt-4o-mini-tts"


def wav(seconds, rate=8000):
    """A silent mono file of 16 bit."""
    raw = io.BytesIO()
    with wave.open(raw, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(b"\0\0" * int(rate * seconds))
    return raw.getvalue()


def spoken(directive=None, **fields):
    return {
        "model": TTS,
        "voice": "alloy",
        "input": "Name a whale.",
        "instructions": steer("Calmly.", directive),
        **fields,
    }


async def say(box, directive=None, **fields):
    return await box.http.post("/v1/audio/speech", json=spoken(directive, **fields))


async def hear(box, directive=None, path="transcriptions", seconds=8.47, file=None, **fields):
    form = {"model": "gpt-4o-transcribe", "prompt": steer("Calm.", directive), **fields}
    files = {"file": file or ("a.wav", wav(seconds), "audio/wav")}
    return await box.http.post(f"/v1/audio/{path}", data=form, files=files)


def datas(answer):
    return [data for _, data in typed_events(answer.text)]


# -- speech ----------------------------------------------------------------------------------------


async def test_speech_events_have_the_shapes_of_the_sample(box):
    answer = await say(box, {"output_tokens": 40}, stream_format="sse")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert shapes(datas(answer)) == shapes([data for _, data in sample_events("speech_sse.sse")])
    usage = datas(answer)[-1]["usage"]
    assert usage["output_tokens"] == 40
    assert usage["total_tokens"] == usage["input_tokens"] + 40
    record = await box.last()
    assert (record["usage"], record["usageSent"], record["outcome"]) == (usage, usage, "completed")


async def test_binary_speech_is_the_same_bytes_without_usage(box):
    binary = await say(box)
    record = await box.last()
    # "Name a whale." is four tokens, each seven of audio.
    assert record["usage"]["output_tokens"] == 7 * 4
    assert record["usageSent"] is None
    assert binary.headers["content-type"] == "audio/mpeg"
    events = datas(await say(box, stream_format="sse"))
    assert events[-1]["usage"] == record["usage"]
    joined = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert joined == binary.content


@pytest.mark.parametrize(
    ("name", "kind"), [("wav", "audio/wav"), ("opus", "audio/opus"), ("pcm", "audio/pcm"), ("aac", "audio/aac")]
)
async def test_speech_formats(box, name, kind):
    answer = await say(box, response_format=name)
    assert answer.headers["content-type"] == kind
    assert len(answer.content) > 1000
    if name == "wav":
        with wave.open(io.BytesIO(answer.content)) as found:
            assert found.getnframes() * 2 == 28 * 64


async def test_old_speech_models_cost_characters_and_have_no_events(box):
    body = {"model": "tts-1", "voice": "alloy", "input": "Name a whale."}
    assert (await box.http.post("/v1/audio/speech", json=body)).status_code == 200
    assert (await box.last())["usage"] == {"type": "characters", "characters": 13}
    answer = await box.http.post("/v1/audio/speech", json=body | {"stream_format": "sse"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream_format")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"voice": None}, "voice"),
        ({"response_format": "ogg"}, "response_format"),
        ({"speed": 9}, "speed"),
        ({"nope": 1}, "nope"),
    ],
)
async def test_bad_speech_requests(box, change, param):
    answer = await box.http.post("/v1/audio/speech", json=spoken() | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_speech_can_break_off(box):
    for directive in ({"cut": {"after_chunks": 1}}, {"error_after_chunks": 1}):
        with pytest.raises(openai.APIConnectionError):
            await box.sdk.audio.speech.create(**spoken(directive | {"output_tokens": 100}))
        record = await box.last()
        assert (record["chunksSent"], record["usage"]["output_tokens"]) == (1, 20)
    assert record["outcome"] == "error"
    answer = await say(box, {"error_after_chunks": 1, "output_tokens": 100}, stream_format="sse")
    assert datas(answer)[-1]["error"]["type"] == "server_error"
    answer = await say(box, {"usage": None}, stream_format="sse")
    assert datas(answer)[-1] == {"type": "speech.audio.done"}


async def test_the_sdk_reads_speech(box):
    found = await box.sdk.audio.speech.create(**spoken(response_format="wav"))
    assert found.content.startswith(b"RIFF")


# -- transcriptions --------------------------------------------------------------------------------

WHISPER = {"model": "whisper-1"}
JSON_ANSWERS = {
    "transcription_tokens.json": {},
    "transcription_duration.json": {"model": "gpt-transcribe"},
    "transcription_verbose_whisper.json": {**WHISPER, "response_format": "verbose_json"},
}


@pytest.mark.parametrize("name", sorted(JSON_ANSWERS))
async def test_transcript_has_the_shape_of_the_sample(box, name):
    found = (await hear(box, {"text": "Good evening."}, **JSON_ANSWERS[name])).json()
    expected = sample(name)
    if "segments" in found:
        # The sample shows an empty list.
        assert len(found.pop("segments")) == 1
        del expected["segments"]
    assert sorted(skeleton(found)) == sorted(skeleton(expected))
    assert found["text"] == expected["text"]
    record = await box.last()
    assert (record["usage"], record["usageSent"]) == (found["usage"], found["usage"])
    assert record["textSent"] == "Good evening."
    if "tokens" not in name:
        assert found["usage"] == expected["usage"] == {"type": "duration", "seconds": 9.0}


async def test_token_usage_of_a_transcript(box):
    found = (await hear(box, {"text": "Good evening."}, seconds=1.35)).json()["usage"]
    assert found["input_token_details"]["audio_tokens"] == 14
    assert found["input_token_details"]["text_tokens"] > 2
    assert found["output_tokens"] == 3
    assert found["total_tokens"] == found["input_tokens"] + 3


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("transcription_stream.sse", {}),
        (
            "transcription_diarized_stream.sse",
            {"model": "gpt-4o-transcribe-diarize", "response_format": "diarized_json"},
        ),
    ],
)
async def test_transcript_stream_has_the_shapes_of_the_sample(box, name, fields):
    answer = await hear(box, {"text": "Good evening."}, stream="true", **fields)
    assert shapes(datas(answer)) == shapes([data for _, data in sample_events(name)])
    record = await box.last()
    assert record["stream"] is True
    assert datas(answer)[-1]["usage"] == record["usage"]
    assert record["usage"]["output_tokens"] == 3


async def test_record_shows_the_form(box):
    content = wav(1)
    await hear(box, file=("voice.wav", content, "audio/wav"), language="en")
    body = (await box.last())["requestBody"]
    digest = hashlib.sha256(content).hexdigest()
    assert body["file"] == {
        "filename": "voice.wav",
        "contentType": "audio/wav",
        "bytes": len(content),
        "sha256": digest,
    }
    assert (body["language"], body["model"]) == ("en", "gpt-4o-transcribe")


@pytest.mark.parametrize("name", ["text", "srt", "vtt"])
async def test_plain_transcripts_hold_no_usage(box, name):
    answer = await hear(box, {"text": "Good evening."}, **WHISPER, response_format=name)
    assert answer.headers["content-type"].startswith("text/plain")
    assert "Good evening." in answer.text
    assert ("00:00:08" in answer.text) is (name != "text")
    record = await box.last()
    assert (record["usage"], record["usageSent"]) == ({"type": "duration", "seconds": 9.0}, None)


async def test_seconds_come_from_header_size_or_directive(box):
    assert (await hear(box, **WHISPER, seconds=2.0)).json()["usage"]["seconds"] == 2
    endless = wav(2)[:40] + b"\xff\xff\xff\xff" + wav(2)[44:]
    assert (await hear(box, **WHISPER, file=("a.wav", endless, "audio/wav"))).json()["usage"]["seconds"] == 2
    assert (await hear(box, **WHISPER, file=("a.mp3", b"x" * 48_000, "audio/mpeg"))).json()["usage"]["seconds"] == 3
    assert (await hear(box, {"seconds": 61.2}, **WHISPER)).json()["usage"]["seconds"] == 62


async def test_streams_without_token_usage(box):
    answer = await hear(box, model="gpt-transcribe", stream="true")
    assert "usage" not in datas(answer)[-1]
    assert (await box.last())["usage"]["seconds"] == 9
    answer = await hear(box, **WHISPER, stream="true")
    assert answer.json()["usage"]["type"] == "duration"


async def test_transcript_directives(box):
    usage = {"type": "duration", "seconds": 700.0}
    assert (await hear(box, {"usage": usage})).json()["usage"] == usage
    assert (await box.last())["usage"] == usage
    assert "usage" not in (await hear(box, {"usage": None})).json()
    assert (await hear(box, {"status": 429})).status_code == 429
    events = datas(await hear(box, {"usage_on": "every"}, stream="true"))
    counts = [event["usage"]["output_tokens"] for event in events]
    assert counts == sorted(counts)
    events = datas(await hear(box, {"usage_on": "finish"}, stream="true"))
    assert ("usage" in events[-2], "usage" in events[-1]) == (True, False)
    with pytest.raises(openai.APIError):
        stream = await box.sdk.audio.transcriptions.create(
            model="gpt-4o-transcribe",
            file=("a.wav", wav(1)),
            stream=True,
            prompt=steer("", {"cut": {"after_chunks": 2}}),
        )
        async for _ in stream:
            pass
    assert (await box.last())["usage"]["output_tokens"] == 2


async def test_translations(box):
    found = (await hear(box, {"text": "Good evening."}, "translations", **WHISPER)).json()
    assert found == sample("translation_whisper.json")
    record = await box.last()
    assert (record["usage"], record["usageSent"]) == ({"type": "duration", "seconds": 9.0}, None)
    found = (await hear(box, None, "translations", **WHISPER, response_format="verbose_json")).json()
    assert (found["task"], found["duration"]) == ("translate", 8.47)
    assert "usage" not in found
    answer = await hear(box, None, "translations")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"response_format": "srt"}, "response_format"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "perhaps"}, "stream"),
        ({"nope": "1"}, "nope"),
        ({"model": "gpt-4o-transcribe-diarize", "seconds": 31}, "chunking_strategy"),
    ],
)
async def test_bad_transcription_requests(box, fields, param):
    answer = await hear(box, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_requests_without_a_readable_file(box):
    post = box.http.post
    path = "/v1/audio/transcriptions"
    answer = await post(path, json={"model": "whisper-1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    answer = await post(path, data={"model": "whisper-1"}, files={"other": ("a", b"x")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    answer = await post(path, content=b"--x\r\nbroken", headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400
    answer = await post(path, content=b"x", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    answer = await post(
        path, data={"model": "whisper-1"}, files={"file": ("a", b"x")}, headers={"authorization": "Bearer no"}
    )
    assert (answer.status_code, answer.json()) == (401, sample("errors.json")["401"])


async def test_the_sdk_parses_transcripts_strictly(box):
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=box.server.url, max_retries=0, _strict_response_validation=True
    ) as sdk:
        create = sdk.audio.transcriptions.create
        file = ("a.wav", wav(2.5), "audio/wav")
        found = await create(model="gpt-4o-transcribe", file=file, include=["logprobs"])
        assert found.usage.input_token_details.audio_tokens == 25
        assert found.logprobs[0].token
        verbose = await create(
            model="whisper-1", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        assert verbose.words[0].word
        assert verbose.usage.seconds == 3
        diarized = await create(
            model="gpt-4o-transcribe-diarize", file=file, response_format="diarized_json", chunking_strategy="auto"
        )
        assert diarized.segments[0].speaker == "A"
        assert (await create(model="gpt-transcribe", file=file)).languages[0].code == "en"
        for model in ("gpt-4o-mini-transcribe", "gpt-transcribe"):
            events = [event async for event in await create(model=model, file=file, stream=True)]
            assert events[-1].type == "transcript.text.done"
        with pytest.warns(DeprecationWarning):
            assert (await sdk.audio.translations.create(model="whisper-1", file=file)).text
        plain = await create(model="whisper-1", file=file, response_format="srt")
        assert "-->" in json.dumps(plain)
