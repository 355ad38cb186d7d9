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
    passed = b"".join(meter.feed(data[place : place + 1]) for place in range(len(data)))
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
