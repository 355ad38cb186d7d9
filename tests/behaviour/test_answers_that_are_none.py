"""Answers of status 200 that are not what was asked for: each has one right charge, and a client that knows what happened."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.raw_upstream import PausingUpstream, RawUpstream
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Serve, Tollkeeper

CustomerOf = Callable[[Tollkeeper], Customer]
JSON, EVENTS, HTML = "application/json", "text/event-stream", "text/html"
ERROR = {"error": {"message": "upstream overloaded", "type": "server_error", "param": None, "code": "server_error"}}
USAGE = {"prompt_tokens": 100, "completion_tokens": 2_000, "total_tokens": 2_100}
CHARGE = usd_to_charge((100, "0.15"), (2_000, "0.6"))


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    found = RawUpstream()
    yield found
    found.close()


@pytest.fixture(scope="module")
def pausing() -> Iterator[PausingUpstream]:
    found = PausingUpstream(0.05)
    yield found
    found.close()


@pytest.fixture
def reader(served: Serve, customer_of: CustomerOf, upstream: RawUpstream) -> Customer:
    """A customer whose upstream answers with whatever a test says."""
    return customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url))


def reply(body: bytes, kind: str = JSON, **headers: str) -> bytes:
    lines = {"content-type": kind, "content-length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body


def chunk(text: str = "", **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}] if text else []
    return {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o-mini", "choices": choices, **more}


def events(*payloads: Any, end: str = "\n\n") -> bytes:
    said = [one if isinstance(one, str) else json.dumps(one) for one in payloads]
    return "".join(f"data: {one}{end}" for one in said).encode()


STREAM = (chunk("hello"), chunk(usage=USAGE), "[DONE]")
ANSWER = {
    "id": "c",
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps(ERROR).encode(), JSON),
        (b"", JSON),
        (b"{}", JSON),
        (b"null", JSON),
        (b"<html>busy</html>", HTML),
        (b"<html>busy</html>", JSON),
    ],
    ids=["error", "nothing", "empty object", "null", "html", "html under json"],
)
def test_a_200_that_is_no_answer_is_a_502_and_free(
    reader: Customer, upstream: RawUpstream, body: bytes, kind: str, stream: bool
) -> None:
    upstream.reply = reply(body, kind)
    answer = reader.post(reader.body(max_tokens=50, stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert ("upstream overloaded" in answer.text) is (b"overloaded" in body)
    assert reader.held() == 0
    assert answer.headers["x-request-id"] not in {row["requestId"] for row in reader.usage()}


def test_an_error_in_the_events_of_a_stream_is_free(reader: Customer, upstream: RawUpstream) -> None:
    upstream.reply = reply(events(ERROR, "[DONE]"), EVENTS)
    with reader.stream(reader.body(max_tokens=50)) as wire:
        wire.read_all()
        record = reader.generation(wire.request_id)
    assert (record["outcome"], record["chargedMillicredits"]) == ("insured", "0")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_what_every_client_can_read_is_charged(reader: Customer, upstream: RawUpstream, path: str) -> None:
    """A lone surrogate's escape is valid JSON, and every SDK takes it."""
    usage = {"input_tokens": 100, "output_tokens": 2_000, "total_tokens": 2_100}
    said = {"type": "message", "content": [{"type": "output_text", "text": "SURROGATE"}]}
    answers = {
        "/v1/chat/completions": ANSWER | {"note": "SURROGATE"},
        "/v1/responses": {"id": "r", "status": "completed", "output": [said], "usage": usage},
    }
    upstream.reply = reply(json.dumps(answers[path]).replace("SURROGATE", "\\ud83d ").encode())
    fields = reader.body() if path.endswith("completions") else {"model": "gpt-4o-mini", "input": "hello"}
    answer = reader.post(fields, path)
    assert answer.status_code == 200
    assert reader.charged(answer.headers["x-request-id"]) == CHARGE


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r", "\r\r\n", "\n\r\n"], ids=repr)
def test_a_stream_is_read_whatever_ends_its_lines(reader: Customer, upstream: RawUpstream, end: str) -> None:
    upstream.reply = reply(events(*STREAM, end=end), EVENTS)
    with reader.stream(reader.body(max_tokens=50, stream_options={"include_usage": True})) as wire:
        ended = wire.read_all()
        record = reader.generation(wire.request_id)
    assert (ended.clean, ended.data) == (True, events(*STREAM, end=end))
    assert (record["usageSource"], int(record["chargedMillicredits"])) == ("upstream", CHARGE)


def test_events_under_the_content_type_of_json_are_a_stream(reader: Customer, upstream: RawUpstream) -> None:
    upstream.reply = reply(events(*STREAM), JSON)
    with reader.stream(reader.body(max_tokens=50)) as wire:
        ended = wire.read_all()
        record = reader.generation(wire.request_id)
    assert b"hello" in ended.data
    assert ended.data.endswith(b"data: [DONE]\n\n")
    assert int(record["chargedMillicredits"]) == CHARGE


def test_events_that_nobody_asked_for_are_charged_by_their_usage(reader: Customer, upstream: RawUpstream) -> None:
    upstream.reply = reply(events(*STREAM), EVENTS)
    answer = reader.post(reader.body(max_tokens=50))
    assert (answer.status_code, answer.headers["content-type"]) == (200, EVENTS)
    assert reader.charged(answer.headers["x-request-id"]) == CHARGE


def test_a_whole_answer_to_who_asked_for_a_stream_is_charged_by_its_usage(
    reader: Customer, upstream: RawUpstream
) -> None:
    upstream.reply = reply(json.dumps(ANSWER).encode())
    answer = reader.post(reader.body(max_tokens=50, stream=True))
    assert answer.json() == ANSWER
    assert reader.charged(answer.headers["x-request-id"]) == CHARGE


ROLE = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}
NO_OUTPUT = {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}


@pytest.mark.parametrize(
    ("said", "charge"),
    [
        (b"", 0),
        (events(chunk(choices=[ROLE])), 0),
        (b'event: error\ndata: {"message":"overloaded"}\n\n', 0),
        (events({"detail": "overloaded"}), 0),
        (events(chunk(choices=[ROLE]), chunk(usage=NO_OUTPUT)), 0),
        (events(chunk(choices=[ROLE]), chunk(choices=[STOP]), chunk(usage=NO_OUTPUT)), usd_to_charge((100, "0.15"))),
    ],
    ids=["nothing", "a role", "an error by its name", "an error of another shape", "usage alone", "a stop"],
)
def test_an_empty_end_of_a_stream_is_free_as_that_of_a_whole_answer_is(
    reader: Customer, upstream: RawUpstream, said: bytes, charge: int
) -> None:
    upstream.reply = reply(said + events("[DONE]"), EVENTS)
    with reader.stream(reader.body(max_tokens=50)) as wire:
        assert wire.read_all().clean
        record = reader.generation(wire.request_id)
    assert (record["outcome"] == "insured", int(record["chargedMillicredits"])) == (not charge, charge)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_whole_answer_under_the_content_type_of_events_is_charged_by_its_usage(
    reader: Customer, upstream: RawUpstream, path: str, stream: bool
) -> None:
    usage = {"input_tokens": 100, "output_tokens": 2_000, "total_tokens": 2_100}
    said = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "hello"}]}
    asked, answers = reader.body(max_tokens=50, stream=stream), json.dumps(ANSWER, indent=1)
    if path.endswith("responses"):
        asked = {"model": "gpt-4o-mini", "input": "hello", "stream": stream}
        answers = json.dumps({"id": "r", "status": "completed", "output": [said], "usage": usage})
    upstream.reply = reply(answers.encode(), EVENTS)
    answer = reader.post(asked, path)
    assert (answer.status_code, answer.text) == (200, answers)
    assert reader.charged(answer.headers["x-request-id"]) == CHARGE


def test_an_error_under_the_content_type_of_events_is_free(reader: Customer, upstream: RawUpstream) -> None:
    upstream.reply = reply(json.dumps(ERROR).encode(), EVENTS)
    with reader.stream(reader.body(max_tokens=50)) as wire:
        wire.read_all()
        record = reader.generation(wire.request_id)
    assert (record["outcome"], record["chargedMillicredits"]) == ("insured", "0")


@pytest.mark.parametrize("kind", [JSON, "application/octet-stream"])
@pytest.mark.parametrize("first", [1, 3, 5], ids="{} bytes first".format)
@pytest.mark.parametrize("before", [b"", b"\n", b"\xef\xbb\xbf"], ids=["plain", "a blank line", "a byte order mark"])
def test_events_are_known_by_their_bytes_however_few_come_first(
    served: Serve, customer_of: CustomerOf, pausing: PausingUpstream, kind: str, before: bytes, first: int
) -> None:
    reader = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=pausing.url))
    answer = reply(before + events(*STREAM), kind)
    at = answer.index(b"\r\n\r\n") + 4
    pausing.pieces = [answer[:at], answer[at : at + first], answer[at + first :]]
    with reader.stream(reader.body(max_tokens=50)) as wire:
        ended = wire.read_all()
        record = reader.generation(wire.request_id)
    assert ended.data == before + events(STREAM[0], STREAM[2])
    assert int(record["chargedMillicredits"]) == CHARGE


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)],
    ids=["gzip", "x-gzip", "deflate", "upper case"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_coding_nobody_asked_for_is_undone(
    reader: Customer, upstream: RawUpstream, coding: str, encode: Callable[[bytes], bytes], stream: bool
) -> None:
    plain = events(*STREAM) if stream else json.dumps(ANSWER).encode()
    upstream.reply = reply(encode(plain), EVENTS if stream else JSON, content_encoding=coding)
    answer = reader.post(reader.body(max_tokens=50, stream=stream, **OPTIONS[stream]))
    assert (answer.status_code, answer.content, "content-encoding" in answer.headers) == (200, plain, False)
    assert reader.charged(answer.headers["x-request-id"]) == CHARGE


OPTIONS: dict[bool, dict[str, Any]] = {False: {}, True: {"stream_options": {"include_usage": True}}}


@pytest.mark.parametrize(
    ("coding", "body"),
    [("br", b"\x0b\x02\x80{}\x03"), ("gzip", b"not gzip"), ("gzip", gzip.compress(b"{}")[:-9])],
    ids=["unknown", "broken", "cut"],
)
def test_a_coding_that_cannot_be_undone_is_a_502_and_free(
    reader: Customer, upstream: RawUpstream, coding: str, body: bytes
) -> None:
    upstream.reply = reply(body, content_encoding=coding)
    answer = reader.post(reader.body(max_tokens=50))
    assert answer.status_code == 502
    assert reader.held() == 0


def test_a_coding_in_two_members_is_read_to_its_end(reader: Customer, upstream: RawUpstream) -> None:
    plain = json.dumps(ANSWER).encode()
    upstream.reply = reply(gzip.compress(plain[:50]) + gzip.compress(plain[50:]), content_encoding="gzip")
    answer = reader.post(reader.body(max_tokens=50))
    assert answer.json() == ANSWER


@pytest.mark.parametrize(
    "odd", [{"status": 503, "error": "Service Unavailable"}, {"object": "error", "error": {"message": "x"}}], ids=str
)
def test_an_error_in_any_shape_is_no_response(reader: Customer, upstream: RawUpstream, odd: dict[str, Any]) -> None:
    upstream.reply = reply(json.dumps(odd).encode())
    answer = reader.post({"model": "gpt-4.1", "input": "hi"}, "/v1/responses")
    assert (answer.status_code, reader.held()) == (502, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "gpt-4.1", "input": [{"type": ["x"]}]}),
        ("/v1/images/generations", {"model": "gpt-image-2", "prompt": "x", "quality": []}),
        ("/v1/images/generations", {"model": "gpt-image-2", "prompt": "x", "output_format": []}),
        ("/v1/images/generations", {"model": "gpt-image-2", "prompt": "x", "size": {}}),
    ],
    ids=str,
)
def test_a_request_with_members_of_odd_types_is_no_fault_of_ours(
    reader: Customer, upstream: RawUpstream, path: str, body: dict[str, Any]
) -> None:
    upstream.reply = reply(json.dumps(ERROR).encode())
    assert reader.post(body, path).status_code in (400, 502)


def test_a_bomb_in_a_coding_is_cut_off(reader: Customer, upstream: RawUpstream) -> None:
    upstream.reply = reply(gzip.compress(b" " * 300_000_000), content_encoding="gzip")
    answer = reader.post(reader.body(max_tokens=50))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_too_large")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_response_that_failed_without_output_is_free_on_every_transport(
    reader: Customer, upstream: RawUpstream, stream: bool
) -> None:
    usage = {"input_tokens": 100, "output_tokens": 0, "total_tokens": 100}
    failed = {
        "id": "r",
        "object": "response",
        "status": "failed",
        "error": ERROR["error"],
        "output": [],
        "usage": usage,
    }
    body = events({"type": "response.failed", "response": failed}) if stream else json.dumps(failed).encode()
    upstream.reply = reply(body, EVENTS if stream else JSON)
    asked = {"model": "gpt-4o-mini", "input": "hello", "stream": stream}
    answer = reader.post(asked, "/v1/responses")
    record = reader.generation(answer.headers["x-request-id"])
    assert (record["outcome"], record["chargedMillicredits"]) == ("insured", "0")


def test_usage_above_all_bounds_of_a_model_that_reasons_costs_what_was_held(
    reader: Customer, upstream: RawUpstream
) -> None:
    """What it thought cannot be counted from a short text; nobody pays beyond the hold for what nobody can believe."""
    usage = {"input_tokens": 1_000, "output_tokens": 300_000, "total_tokens": 301_000}
    said = {"type": "message", "content": [{"type": "output_text", "text": "x"}]}
    upstream.reply = reply(json.dumps({"id": "r", "status": "completed", "output": [said], "usage": usage}).encode())
    asked = {"model": "gpt-5.6-luna", "reasoning": {"mode": "pro"}, "input": "hello"}
    record = reader.generation(reader.post(asked, "/v1/responses").headers["x-request-id"])
    assert record["usageSource"] == "bounded"
    assert record["chargedMillicredits"] == record["heldMillicredits"]
    assert int(record["heldMillicredits"]) > 100_000


@pytest.mark.parametrize("told", ["whole", "stream"])
def test_cached_sound_without_a_split_is_priced_once(reader: Customer, upstream: RawUpstream, told: str) -> None:
    usage = {
        "prompt_tokens": 300,
        "completion_tokens": 200,
        "total_tokens": 500,
        "prompt_tokens_details": {"text_tokens": 50, "audio_tokens": 250, "cached_tokens": 200},
        "completion_tokens_details": {"audio_tokens": 150},
    }
    model = {"model": "gpt-audio"}
    body = events(chunk("x"), chunk(usage=usage) | model, "[DONE]")
    if told == "whole":
        body = json.dumps(ANSWER | {"usage": usage} | model).encode()
    upstream.reply = reply(body, JSON if told == "whole" else EVENTS)
    asked = reader.body(max_tokens=500, stream=told != "whole") | model
    record = reader.generation(reader.post(asked).headers["x-request-id"])
    assert int(record["chargedMillicredits"]) == usd_to_charge((50, "2.5"), (250, "32"), (50, "10"), (150, "64"))


def test_the_image_tool_without_its_usage_costs_a_picture(reader: Customer, upstream: RawUpstream) -> None:
    """gpt-image-2 at high quality, 1024 x 1024: 4,160 tokens at $30 a million, and its prompt."""
    picture = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGVsbG8="}
    usage = {"input_tokens": 54, "output_tokens": 0, "total_tokens": 54}
    upstream.reply = reply(json.dumps({"id": "r", "status": "completed", "output": [picture], "usage": usage}).encode())
    tool = {"type": "image_generation", "model": "gpt-image-2", "quality": "high", "size": "1024x1024"}
    asked = {
        "model": "gpt-4.1",
        "input": "a blue whale",
        "max_output_tokens": 100,
        "max_tool_calls": 1,
        "tools": [tool],
    }
    record = reader.generation(reader.post(asked, "/v1/responses").headers["x-request-id"])
    least = usd_to_charge((54, "2"), (4_160, "30"))
    assert least < int(record["chargedMillicredits"]) < least + 5 * 200


@pytest.mark.parametrize("model", ["whisper-1", "gpt-transcribe"])
def test_subtitles_and_streams_of_models_billed_by_the_second_are_charged_by_it(
    reader: Customer, upstream: RawUpstream, model: str
) -> None:
    price = {"whisper-1": 100, "gpt-transcribe": 75}[model]
    said: dict[str, Any] = {"text": "hello there", "usage": {"type": "duration", "seconds": 60}}
    upstream.reply = reply(json.dumps(said).encode())
    lines = {"model": model, "stream": "true"} | ({"response_format": "srt"} if model == "whisper-1" else {})
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in lines.items()]
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n'
    body = "".join(parts).encode() + file.encode() + b"\xff\xfb\x90\0" * 120_000 + b"\r\n--b--\r\n"
    answer = reader.post(body, "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=b")
    assert reader.charged(answer.headers["x-request-id"]) == 60 * price
    if model == "gpt-transcribe":
        assert answer.headers["content-type"].startswith(EVENTS)
        told = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
        assert [event["type"] for event in told] == ["transcript.text.delta", "transcript.text.done"]
        assert told[1] == {"type": "transcript.text.done", **said}
        assert b'name="stream"\r\n\r\nfalse' in upstream.requests[-1]
    else:
        assert "hello there" in answer.text
