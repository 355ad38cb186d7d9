"""Streams as the standard allows them and few servers write them: the same bytes, usage and tier, however they are cut."""

import json
from itertools import product
from typing import Any

import pytest

from proxy.gateway.answers.events import RESPONSE_EVENTS, EventMeter
from proxy.gateway.answers.meter import StreamMeter

ENDS = ("\n", "\r", "\r\n")
PAIRS = [pair for pair in product(ENDS, ENDS) if pair != ("\r", "\n")]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def chunk(text: str = "", **more: Any) -> str:
    choices = [{"index": 0, "delta": {"content": text}}] if text else []
    return json.dumps({"id": "c", "model": "gpt-5-mini", "choices": choices, **more})


def by_bytes(meter: StreamMeter, data: bytes) -> bytes:
    """What the client gets when the upstream says it byte by byte."""
    passed = b"".join(meter.feed(b"") + meter.feed(data[place : place + 1]) for place in range(len(data)))
    meter.end()
    return passed + b"".join(meter.tail) + meter.rest()


@pytest.mark.parametrize("hide", [False, True], ids=["shown", "hidden"])
@pytest.mark.parametrize(("end", "blank"), PAIRS, ids=repr)
@pytest.mark.parametrize("before", ["", ": ping", "event: x"])
def test_line_ends_of_any_kind_may_arrive_byte_by_byte(before: str, end: str, blank: str, hide: bool) -> None:
    def event(payload: str) -> bytes:
        named = before + "\n" if before else ""
        return f"{named}data: {payload}{end}{blank}".encode()

    shown, usage, done = event(chunk("one")) + event(chunk("two")), event(chunk(usage=USAGE)), event("[DONE]")
    meter = StreamMeter(hide_usage=hide)
    got = by_bytes(meter, shown + usage + done)
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (3, 4)
    assert got.rstrip() == (shown + (b"" if hide else usage) + done).rstrip()


SPLITS = [
    pytest.param(lambda text: text.replace(": {", ":\ndata: {").replace(': "', ':\ndata: "'), id="behind colons"),
    pytest.param(lambda text: text.replace(": {", "\ndata: : {").replace(': "', '\ndata: : "'), id="before colons"),
    pytest.param(lambda text: json.dumps(json.loads(text), indent=1).replace("\n", "\ndata:"), id="indented"),
]


@pytest.mark.parametrize("split", SPLITS)
def test_a_payload_may_stand_in_several_lines_of_data(split: Any) -> None:
    events = [chunk("one"), chunk(usage=USAGE)]
    data = "".join(f"data: {split(one)}\n\n" for one in events).encode() + b"data: [DONE]\n\n"
    meter = StreamMeter(hide_usage=True)
    got = by_bytes(meter, data)
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (3, 4)
    assert b"prompt_tokens" not in got


@pytest.mark.parametrize("split", SPLITS)
def test_a_closing_event_may_stand_in_several_lines_of_data(split: Any) -> None:
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    closing = {"type": "response.completed", "response": {"id": "r", "status": "completed", "usage": usage}}
    data = f"event: response.completed\ndata: {split(json.dumps(closing))}\n\n".encode()
    meter = EventMeter(RESPONSE_EVENTS, 1)
    assert by_bytes(meter, data) == data
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens, meter.done) == (3, 4, True)


@pytest.mark.parametrize("split", SPLITS)
def test_an_error_may_stand_in_several_lines_of_data(split: Any) -> None:
    failed = split(json.dumps({"error": {"message": "overloaded"}}))
    for meter in (StreamMeter(hide_usage=False), EventMeter(RESPONSE_EVENTS, 1)):
        by_bytes(meter, f"data: {failed}\n\n".encode())
        assert meter.failed


@pytest.mark.parametrize("size", [1, 40, 100_000], ids="{} bytes".format)
@pytest.mark.parametrize("text", ["one", "one " * 30_000], ids=["short", "long"])
def test_the_tier_and_the_model_of_the_chunks_are_those_of_a_usage_chunk_that_names_none(text: str, size: int) -> None:
    first, second = chunk(text, service_tier="flex"), chunk("two", service_tier="flex")
    last = json.dumps({"choices": [], "usage": USAGE})
    data = "".join(f"data: {one}\n\n" for one in (first, second, last, "[DONE]")).encode()
    meter = StreamMeter(hide_usage=False)
    for place in range(0, len(data), size):
        meter.feed(data[place : place + size])
    meter.end()
    report = meter.report()
    assert (report.service_tier, report.model, report.upstream_id) == ("flex", "gpt-5-mini", "c")
    assert report.usage is not None


def test_the_tier_of_a_usage_chunk_is_the_one_that_counts() -> None:
    chunks = chunk("one", service_tier="priority"), chunk(usage=USAGE, service_tier="default")
    meter = StreamMeter(hide_usage=False)
    meter.feed("".join(f"data: {one}\n\n" for one in chunks).encode())
    assert meter.report().service_tier == "default"


def test_the_tier_that_was_said_last_is_that_of_a_stream_without_usage() -> None:
    chunks = chunk("one"), chunk("two", service_tier="flex"), chunk("three")
    meter = StreamMeter(hide_usage=False)
    meter.feed("".join(f"data: {one}\n\n" for one in chunks).encode())
    assert meter.report().service_tier == "flex"
