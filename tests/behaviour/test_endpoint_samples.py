"""Every sample of the newer endpoints goes through untouched and costs what docs/openai.md's prices say.

Prices are written down by hand, apart from the catalogue, in USD per million tokens, which is millicredits per token; the
counts are the samples' own. Charges are rounded up once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support import web
from tests.support.media import png, wav
from tests.support.served import Customer
from tests.support.servers import SAMPLES, UPSTREAM_KEY, Sandbox, Tollkeeper, sandbox_says
from tests.support.wire import Ended

ALL_TOOLS = '["web_search","web_search_preview","file_search","code_interpreter","image_generation"]'
IMAGE_TOOL = {"type": "image_generation", "model": "gpt-image-2.6-flare", "partial_images": 1}


class Sample(NamedTuple):
    name: str
    path: str
    fields: dict[str, Any]
    charge: int
    """Millicredits, worked out by hand."""


SOL = {"model": "gpt-6.2-sol", "max_output_tokens": 500}
# gpt-6.2-sol 2 / cached 0.1 / write 2.5 / out 10: (3127 - 1024 - 2048) x 2 + 1024 x 0.1 + 2048 x 2.5 + 143 x 10 = 6762.4
STREAMS = [
    Sample("responses_stream_completed.sse", "/v1/responses", SOL, 6763),
    # 16 of output instead of 143: 110 + 102.4 + 5120 + 160 = 5492.4
    Sample("responses_stream_incomplete.sse", "/v1/responses", SOL, 5493),
    # two web_search_call items, but num_requests is 1: (9120 - 3072) x 2 + 102.4 + 5120 + 1430 + 10000 = 28748.4
    Sample("responses_stream_web_search.sse", "/v1/responses", {**SOL, "tools": [{"type": "web_search"}]}, 28749),
    # cached and written are more than the input of 2100, so nothing is plain: 102.4 + 5120 + 60 x 10 = 5822.4;
    # and the image model's 47 x 5 + 1156 x 30 = 34915
    Sample("responses_stream_image_tool.sse", "/v1/responses", {**SOL, "tools": [IMAGE_TOOL]}, 40738),
    # gpt-image-2 5 text in / 8 image in / 30 image out: 47 x 5 + 1156 x 30
    Sample(
        "images_generation_stream.sse", "/v1/images/generations", {"model": "gpt-image-2", "partial_images": 2}, 34915
    ),
]
JSONS = [
    # the tokens of 6762.4, one file search of $0.0025, one container of $0.03
    Sample(
        "responses_nonstream_tools.json",
        "/v1/responses",
        {
            **SOL,
            "tools": [
                {"type": "file_search", "vector_store_ids": []},
                {"type": "code_interpreter", "container": {"type": "auto"}},
            ],
        },
        39263,
    ),
    # 5200 x 2 + 410 x 10
    Sample("responses_compact.json", "/v1/responses/compact", {"model": "gpt-6.2-sol"}, 14500),
    Sample("responses_input_tokens.json", "/v1/responses/input_tokens", {"model": "gpt-6.2-sol"}, 0),
    Sample("images_nonstream.json", "/v1/images/generations", {"model": "gpt-image-2"}, 34915),
    # and its author, gpt-6-luna 0.1 / 0.5: 1300 x 0.1 + 2200 x 0.5 = 1230
    Sample(
        "images_nonstream_svg.json", "/v1/images/generations", {"model": "gpt-image-2", "output_format": "svg"}, 36145
    ),
    Sample("moderation.json", "/v1/moderations", {}, 0),
    # gpt-6-luna 0.1: 412 x 0.1 = 41.2; its output is free
    Sample(
        "decision.json",
        "/v1/decisions",
        {"model": "gpt-6-luna", "questions": [{"type": "predicate", "name": "spam", "instructions": "Is it?"}]},
        42,
    ),
]


class Upload(NamedTuple):
    name: str
    path: str
    form: dict[str, str]
    charge: int


UPLOADS = [
    # gpt-4o-transcribe 6 audio in (the higher of the two sources) / 10 out: 14 x 6 + 45 x 10
    Upload("transcription_tokens.json", "/v1/audio/transcriptions", {"model": "gpt-4o-transcribe"}, 534),
    Upload(
        "transcription_stream.sse", "/v1/audio/transcriptions", {"model": "gpt-4o-transcribe", "stream": "true"}, 534
    ),
    Upload(
        "transcription_diarized_stream.sse",
        "/v1/audio/transcriptions",
        {"model": "gpt-4o-transcribe-diarize", "stream": "true", "response_format": "diarized_json"},
        534,
    ),
    # gpt-transcribe $0.000075 a second: 9 x 75
    Upload("transcription_duration.json", "/v1/audio/transcriptions", {"model": "gpt-transcribe"}, 675),
    # whisper-1 $0.0001 a second: 9 x 100 (the usage's 9 seconds, not the 8.47 of its duration)
    Upload(
        "transcription_verbose_whisper.json",
        "/v1/audio/transcriptions",
        {"model": "whisper-1", "response_format": "verbose_json"},
        900,
    ),
    # 47 x 5 + 400 x 8 + 1156 x 30
    Upload("images_edit_stream.sse", "/v1/images/edits", {"model": "gpt-image-2", "stream": "true"}, 38115),
]


@pytest.fixture
def rich(served: Callable[..., Tollkeeper], customer_of: Callable[[Tollkeeper], Customer]) -> Customer:
    """A customer of a server that offers every hosted tool with a price."""
    return customer_of(served(TOLLKEEPER_BILLING__ALLOWED_TOOLS=ALL_TOOLS))


def asking(sample: Sample) -> dict[str, Any]:
    """The request, with the directive where its text stands."""
    text = "hello " + sandbox_says(replay=sample.name)
    name = "prompt" if "/images/" in sample.path else "input"
    return {**sample.fields, name: text}


def upload(customer: Customer, path: str, form: dict[str, str], directive: dict[str, Any]) -> httpx.Response:
    """A multipart request with one file."""
    file = ("picture.png", png(64, 64), "image/png") if "/images/" in path else ("speech.wav", wav(2), "audio/wav")
    name = "image" if "/images/" in path else "file"
    return web.post(
        customer.server.url + path,
        data={"prompt": "hello " + sandbox_says(**directive), **form},
        files={name: file},
        headers=customer.headers,
        timeout=60,
    )


@pytest.mark.parametrize("sample", STREAMS, ids=lambda sample: sample.name)
def test_a_streamed_sample_arrives_byte_exact_at_the_right_charge(rich: Customer, sample: Sample) -> None:
    with rich.stream(asking(sample), sample.path) as wire:
        ended, request_id = wire.read_all(), wire.request_id
    assert ended == Ended((SAMPLES / sample.name).read_bytes(), clean=True)
    record = rich.generation(request_id)
    assert (int(record["chargedMillicredits"]), record["usageSource"], record["outcome"]) == (
        sample.charge,
        "upstream",
        "completed",
    )


@pytest.mark.parametrize("sample", JSONS, ids=lambda sample: sample.name)
def test_a_json_sample_arrives_byte_exact_at_the_right_charge(rich: Customer, sample: Sample) -> None:
    answer = rich.post(asking(sample), sample.path)
    assert answer.content == (SAMPLES / sample.name).read_bytes(), answer.text
    assert answer.headers["x-credits-charged"] == str(
        sample.charge / 1000 if sample.charge % 1000 else sample.charge // 1000
    )
    record = rich.generation(answer.headers["x-request-id"])
    assert (int(record["chargedMillicredits"]), record["usageSource"]) == (sample.charge, "upstream")


@pytest.mark.parametrize("sample", UPLOADS, ids=lambda sample: sample.name)
def test_an_upload_is_answered_byte_exact_at_the_right_charge(rich: Customer, sample: Upload) -> None:
    answer = upload(rich, sample.path, sample.form, {"replay": sample.name})
    assert answer.content == (SAMPLES / sample.name).read_bytes(), answer.text
    record = rich.generation(answer.headers["x-request-id"])
    assert (int(record["chargedMillicredits"]), record["usageSource"]) == (sample.charge, "upstream")


def test_a_translation_is_metered_by_the_form_that_says_its_length(rich: Customer) -> None:
    answer = upload(
        rich, "/v1/audio/translations", {"model": "whisper-1"}, {"replay": "transcription_verbose_whisper.json"}
    )
    assert answer.json() == {"text": "Good evening."}
    assert rich.charged(answer.headers["x-request-id"]) == 900


SPEECH = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "hello " + sandbox_says(replay="speech_sse.sse")}
# gpt-4o-mini-tts 0.6 / 12 (the higher of the two sources): 14 x 0.6 + 101 x 12 = 1220.4
SPEECH_CHARGE = 1221


def test_a_speech_event_stream_arrives_byte_exact_at_the_right_charge(rich: Customer) -> None:
    answer = rich.post({**SPEECH, "stream_format": "sse"}, "/v1/audio/speech")
    assert answer.content == (SAMPLES / "speech_sse.sse").read_bytes()
    assert rich.charged(answer.headers["x-request-id"]) == SPEECH_CHARGE


@pytest.mark.parametrize(("form", "kind"), [(None, "audio/mpeg"), ("wav", "audio/wav"), ("pcm", "audio/pcm")])
def test_plain_speech_is_the_audio_inside_the_events(rich: Customer, form: str | None, kind: str) -> None:
    answer = rich.post({**SPEECH, **({"response_format": form} if form else {})}, "/v1/audio/speech")
    assert answer.content == b"ID3" + bytes([4, 0, 0])  # the sample's "SUQz" and "BAAA"
    assert answer.headers["content-type"] == kind
    assert rich.charged(answer.headers["x-request-id"]) == SPEECH_CHARGE


def test_speech_by_the_character_is_charged_by_the_character(rich: Customer) -> None:
    text = "é" * 100  # characters, not bytes
    answer = rich.post({"model": "tts-1", "voice": "alloy", "input": text}, "/v1/audio/speech")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")
    record = rich.generation(answer.headers["x-request-id"])
    # $0.000015 a character
    assert (int(record["chargedMillicredits"]), record["characters"]) == (1500, 100)


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_subtitles_are_what_the_upstream_would_have_sent(rich: Customer, sandbox: Sandbox, form: str) -> None:
    files = {"file": ("speech.wav", wav(3), "audio/wav")}
    fields = {"model": "whisper-1", "response_format": form}
    url, headers = "/audio/transcriptions", {"Authorization": f"Bearer {UPSTREAM_KEY}"}
    direct = web.post(sandbox.url + url, data=fields, files=files, headers=headers, timeout=20)
    answer = web.post(rich.server.v1 + url, data=fields, files=files, headers=rich.headers, timeout=20)
    assert (answer.status_code, answer.text) == (200, direct.text)
    assert answer.headers["content-type"].startswith("text/plain")
    assert rich.charged(answer.headers["x-request-id"]) == 300  # 3 s of $0.0001


@pytest.mark.parametrize("name", ["responses_stream_failed.sse", "responses_stream_error_event.sse"])
def test_a_response_that_fails_without_output_costs_nothing(rich: Customer, name: str) -> None:
    with rich.stream(asking(Sample(name, "/v1/responses", SOL, 0)), "/v1/responses") as wire:
        ended, request_id = wire.read_all(), wire.request_id
    assert ended.data.startswith((SAMPLES / name).read_bytes())
    record = rich.generation(request_id)
    assert (record["chargedMillicredits"], record["outcome"]) == ("0", "insured")


def test_a_truncated_response_never_ends_cleanly_and_is_counted(rich: Customer) -> None:
    name = "responses_stream_truncated_no_terminal.sse"
    original = (SAMPLES / name).read_bytes()
    with rich.stream(asking(Sample(name, "/v1/responses", SOL, 0)), "/v1/responses") as wire:
        ended, request_id = wire.read_all(), wire.request_id
    assert ended.data.startswith(original)
    assert not ended.clean or b'"upstream_cut"' in ended.data[len(original) :]
    record = rich.generation(request_id)
    assert (record["usageSource"], record["outcome"]) == ("counted", "upstream_cut")
    assert record["outputTokens"] > 0


def test_every_sample_of_these_endpoints_is_tried() -> None:
    wanted = ("responses_stream_*", "responses_nonstream*", "responses_compact*", "responses_input*", "images_*")
    names = {
        path.name
        for pattern in (*wanted, "transcription_*", "moderation*", "decision*")
        for path in SAMPLES.glob(pattern)
    }
    here = {sample.name for sample in [*STREAMS, *JSONS]} | {sample.name for sample in UPLOADS}
    failing = {
        "responses_stream_failed.sse",
        "responses_stream_error_event.sse",
        "responses_stream_truncated_no_terminal.sse",
    }
    assert names == here | failing
