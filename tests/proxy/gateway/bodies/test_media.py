"""What a review of the money paths found, each tried again: nobody spends beyond the hold, one customer cannot stop the others."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from billing.money.pricing import PriceBook, load_catalogue
from proxy.gateway.bodies.chat import chat_texts
from proxy.gateway.bodies.media import parse_image, parse_transcription, wav_milliseconds
from proxy.gateway.bodies.responses import parse_compact, parse_response, response_texts
from proxy.web.rejections import Rejection
from tests.support import web
from tests.support.customers import new_customer as new_account
from tests.support.media import wav
from tests.support.raw_upstream import RawUpstream
from tests.support.served import Customer
from tests.support.servers import Sandbox, Serve, Tollkeeper, sandbox_says, wait_until

TEXT = "all work and no play makes jack a dull boy. " * 2_000


def chat(**message: Any) -> bytes:
    return json.dumps({"model": "gpt-4.1", "messages": [{"role": "assistant", **message}]}).encode()


def response(item: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4.1", "input": [item], **fields}).encode()


@pytest.mark.parametrize(
    ("texts", "body"),
    [
        (chat_texts, chat(content=None, function_call={"name": "f", "arguments": TEXT})),
        (chat_texts, chat(content=None, refusal=TEXT)),
        (chat_texts, chat(content=[{"type": "refusal", "refusal": TEXT}])),
        (
            chat_texts,
            chat(
                content=None, tool_calls=[{"type": "function", "id": "c", "function": {"name": "f", "arguments": TEXT}}]
            ),
        ),
        (response_texts, response({"role": "user", "content": "data: " + TEXT})),
        (
            response_texts,
            response({"role": "user", "content": [{"type": "input_text", "text": "data:text/plain," + TEXT}]}),
        ),
        (response_texts, response({"type": "function_call_output", "call_id": "c", "output": "data:," + TEXT})),
        (response_texts, response({"type": "function_call", "call_id": "c", "name": "f", "arguments": TEXT})),
        (response_texts, response({"role": "user", "content": "x"}, instructions="data: " + TEXT)),
    ],
)
def test_every_text_that_a_model_reads_is_counted(texts: Callable[[bytes], tuple[list[str], int]], body: bytes) -> None:
    assert any(TEXT in text for text in texts(body)[0])


@pytest.mark.parametrize("text", ["data: " + TEXT, TEXT])
def test_a_poor_account_cannot_spend_beyond_its_credits(
    text: str, served: Callable[..., Tollkeeper], new_customer: Callable[..., Customer]
) -> None:
    poor = new_customer(served(), "0.5")
    answer = poor.post(
        {"model": "gpt-4.1", "max_output_tokens": 16, "input": [{"role": "user", "content": text}]}, "/v1/responses"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_credits")
    assert poor.balance() == 500


@pytest.mark.parametrize(
    "model", ["ft:gpt-4o-mini-2024-07-18:acme\0::x", "gpt-4o\n", "gpt-4o mini", "ft:gpt-4o:ü::x", "g" * 121]
)
def test_a_model_name_is_plain_or_unknown(customer: Customer, sandbox: Sandbox, model: str) -> None:
    sandbox.clear()
    answer = customer.post({"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert sandbox.record() == []


def test_who_leaves_while_an_upstream_error_arrives_owes_nothing(make_tollkeeper: Serve) -> None:
    upstream = RawUpstream()
    upstream.reply = b'HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{"error":'
    upstream.hold_open = threading.Event()
    server = make_tollkeeper(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url).start()
    account = new_account(server, 1_000_000)
    try:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello " * 500}], "stream": True}
        with pytest.raises(httpx.TimeoutException):
            web.post(f"{server.v1}/chat/completions", json=body, headers=account.headers, timeout=0.7)
        wait_until(lambda: account.held() == 0, 10, "nothing is held")
        assert account.usage() == []
    finally:
        upstream.hold_open.set()
        upstream.close()


def test_function_tools_do_not_make_leaving_dearer(customer: Customer) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    counted = []
    for fields in ({}, {"tools": [tool]}):
        text = TEXT + sandbox_says(chunk_interval_ms=20, output_tokens=1_000)
        body = {"model": "gpt-4.1", "max_output_tokens": 2_000, "input": [{"role": "user", "content": text}], **fields}
        with customer.stream(body, "/v1/responses") as wire:
            wire.read_events(8)
            request_id = wire.request_id
        counted.append(customer.generation(request_id))
    assert [row["usageSource"] for row in counted] == ["counted", "counted"]
    assert abs(counted[1]["inputTokens"] - counted[0]["inputTokens"]) < 200
    assert all(int(row["chargedMillicredits"]) <= int(row["heldMillicredits"]) for row in counted)


def test_a_lying_byte_rate_shortens_no_audio() -> None:
    hour = wav(3_600)
    lying = hour[:28] + (500_000_000).to_bytes(4, "little") + hour[32:]
    length = wav_milliseconds(lying[:4_096], len(lying))
    assert length is not None
    assert length >= 3_600_000


def form(*parts: tuple[str, bytes, str | None]) -> tuple[bytes, bytes]:
    lines = []
    for name, value, filename in parts:
        extra = f'; filename="{filename}"' if filename else ""
        lines.append(f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n")
    return b"".join(lines) + b"--b--\r\n", b"multipart/form-data; boundary=b"


def test_a_file_hides_no_field() -> None:
    image = (("model", b"gpt-image-2", None), ("prompt", b"x", None), ("image", b"png", "a.png"))
    with pytest.raises(Rejection, match="`n` must be a plain field"):
        parse_image(*form(*image, ("n", b"1", "n.txt"), ("n", b"10", None)))
    with pytest.raises(Rejection, match="`response_format` must be a plain field"):
        parse_transcription(
            *form(("model", b"whisper-1", None), ("file", b"x", "a.mp3"), ("response_format", b"json", "f"))
        )


def test_silence_that_packs_to_nothing_is_held_as_an_hour() -> None:
    parsed = parse_transcription(*form(("model", b"whisper-1", None), ("file", b"fLaC" + b"\0" * 100, "a.flac")))
    assert parsed.milliseconds >= 3_600_000


def test_what_a_summary_stands_for_bounds_it() -> None:
    small = parse_compact(response({"role": "user", "content": "hi"}))
    assert small.output_bound is not None
    large = parse_compact(json.dumps({"model": "gpt-4.1", "previous_response_id": "resp_1", "input": "hi"}).encode())
    assert large.output_bound is None
    assert PriceBook(load_catalogue(), "1", "exact").find("gpt-4.1") is not None


def test_the_image_tool_is_sent_once() -> None:
    tool = {"type": "image_generation", "model": "gpt-image-2"}
    with pytest.raises(Rejection, match="once"):
        parse_response(response({"role": "user", "content": "hi"}, tools=[tool, {**tool, "size": "2048x2048"}]))
