"""Usage that cannot be: less than what plainly was sent and passed, or more than anybody could have used. Each has one right charge."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.raw_upstream import RawUpstream
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import Serve, Tollkeeper, wait_until

CHAT, RESPONSES, IMAGES = "/v1/chat/completions", "/v1/responses", "/v1/images/generations"
WRITTEN, SPOKEN, SPEECH = "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"
TOOLS = '["web_search","image_generation"]'
WORDS = 500
"""Tokens of `whale` and a blank, one each."""
TEXT = "whale " * WORDS


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    found = RawUpstream()
    yield found
    found.close()


@pytest.fixture
def reader(served: Serve, customer_of: Callable[[Tollkeeper], Customer], upstream: RawUpstream) -> Customer:
    """A customer whose upstream answers with whatever a test says."""
    server = served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url, TOLLKEEPER_BILLING__ALLOWED_TOOLS=TOOLS)
    return customer_of(server)


def reply(body: Any, kind: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def stream(*events: Any) -> bytes:
    said = [one if isinstance(one, str) else json.dumps(one) for one in events]
    return reply("".join(f"data: {one}\n\n" for one in said).encode(), "text/event-stream")


def chunk(text: str = "", **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}] if text else []
    return {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4.1", "choices": choices, **more}


def used(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def tokens(read: int, written: int) -> dict[str, int]:
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def chat(usage: Any, text: str = TEXT) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "c", "model": "gpt-4.1", "choices": choices, "usage": usage}


def response(output: list[Any], usage: Any, **more: Any) -> dict[str, Any]:
    known = {"id": "resp_1", "object": "response", "status": "completed", "model": "gpt-4.1"}
    return {**known, "output": output, "usage": usage, **more}


ASKED = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3_000}
LONG = {**ASKED, "messages": [{"role": "user", "content": "hi " * 5_000}]}
STREAMED = {**ASKED, "stream": True}
PIECES = [chunk("whale ") for _ in range(WORDS)]
DELTA = {"type": "response.output_text.delta", "output_index": 0, "delta": "whale "}
CREATED = {"type": "response.created", "response": {"id": "resp_1", "model": "gpt-4.1"}}
RESPONSE = {"model": "gpt-4.1", "store": False, "input": "hi", "max_output_tokens": 3_000}
PICTURE = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AAAA"}
IMAGE_TOOL = {"type": "image_generation", "model": "gpt-image-2", "quality": "low", "size": "1024x1024"}
DRAWING = {**RESPONSE, "tools": [IMAGE_TOOL], "max_tool_calls": 2}
DRAWN = {"model": "gpt-image-2", "prompt": "p", "quality": "low", "size": "1024x1024"}
SEARCHING = {**RESPONSE, "tools": [{"type": "web_search"}], "max_tool_calls": 2}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}}
SOUND = base64.b64encode(b"\0" * 96_000).decode()
"""Two seconds of pcm: 40 tokens."""
READ_ALOUD = {"model": "gpt-4o-mini-tts", "input": "hello there", "voice": "alloy", "response_format": "pcm"}
MANY = 10**9
TEXT_COST, PICTURE_COST = WORDS * 8, 272 * 30


def form(**fields: str) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n'
    return "".join(parts).encode() + head.encode() + b"\xff\xfb\x90\0" * 12_000 + b"\r\n--b--\r\n"


def charge(reader: Customer, upstream: RawUpstream, path: str, body: Any, answer: bytes) -> int:
    """Millicredits of one request; 0 where nothing was booked."""
    upstream.reply = answer
    headers = {"content_type": "multipart/form-data; boundary=b"} if isinstance(body, bytes) else {}
    sent = reader.post(body, path, **headers)
    wait_until(lambda: reader.held() == 0, 20, "nothing is held")
    if sent.status_code != 200:
        assert sent.status_code == 502, sent.text
        return 0
    return reader.charged(sent.headers["x-request-id"])


TOO_LITTLE: dict[str, tuple[str, Any, bytes, int, int]] = {
    # what is asked, the answer, and the least and the most that is right
    "from the middle, then none": (
        CHAT,
        STREAMED,
        stream(chunk("a ", usage=used(8, 1)), *PIECES, chunk(usage=None), "[DONE]"),
        TEXT_COST,
        TEXT_COST + 60,
    ),
    "from the middle, then zeros": (
        CHAT,
        STREAMED,
        stream(chunk("a ", usage=used(8, 1)), *PIECES, chunk(usage=used(0, 0)), "[DONE]"),
        TEXT_COST,
        TEXT_COST + 60,
    ),
    "none, of whole messages": (
        CHAT,
        STREAMED,
        stream(
            *[{"id": "c", "model": "gpt-4.1", "choices": [{"index": 0, "message": {"content": "whale "}}]}] * WORDS,
            "[DONE]",
        ),
        TEXT_COST,
        TEXT_COST + 60,
    ),
    "real, then zeros": (
        CHAT,
        STREAMED,
        stream(*PIECES, chunk(usage=used(8, WORDS)), chunk(usage=used(0, 0)), "[DONE]"),
        TEXT_COST + 16,
        TEXT_COST + 16,
    ),
    "with the last output": (
        CHAT,
        STREAMED,
        stream(*PIECES, chunk("x", usage=used(8, WORDS + 1)), "[DONE]"),
        TEXT_COST + 24,
        TEXT_COST + 24,
    ),
    "no output beside a short text": (
        CHAT,
        ASKED,
        reply(chat(used(200, 0), "whale " * 15)),
        400 + 15 * 8,
        400 + 17 * 8,
    ),
    "one token for a long text": (CHAT, LONG, reply(chat(used(1, 1))), 10_000 + TEXT_COST, 10_400 + TEXT_COST),
    "one token for a long stream": (
        CHAT,
        {**LONG, "stream": True},
        stream(*PIECES, chunk(usage=used(1, 1)), "[DONE]"),
        10_000 + TEXT_COST,
        10_400 + TEXT_COST,
    ),
    "with a point": (
        CHAT,
        ASKED,
        reply(chat({"prompt_tokens": 100.0, "completion_tokens": 700.0, "total_tokens": 800.0})),
        200 + 700 * 8,
        200 + 700 * 8,
    ),
    "a response of no output": (
        RESPONSES,
        {**RESPONSE, "stream": True},
        stream(CREATED, *[DELTA] * WORDS, {"type": "response.completed", "response": response([], tokens(200, 0))}),
        400 + TEXT_COST,
        460 + TEXT_COST,
    ),
    "a compaction of zeros": (
        f"{RESPONSES}/compact",
        {"model": "gpt-4.1", "input": "hi " * 3_000},
        reply({"id": "c", "output": [{"type": "compaction", "encrypted_content": "x"}], "usage": tokens(0, 0)}),
        6_000,
        6_100,
    ),
    "a decision of zeros": (
        "/v1/decisions",
        {"model": "gpt-6-luna", "input": "hi " * 3_000, "questions": ["q"]},
        reply({"id": "d", "answers": [{"a": 1}], "usage": tokens(0, 0)}),
        usd_to_charge((2_000, "0.1")),
        usd_to_charge((3_100, "0.1")),
    ),
    "pictures of no tokens": (
        IMAGES,
        DRAWN,
        reply({"data": [{"b64_json": "AAAA"}], "usage": tokens(34, 0)}),
        34 * 5 + PICTURE_COST,
        34 * 5 + PICTURE_COST,
    ),
    "a streamed picture of no tokens": (
        IMAGES,
        {**DRAWN, "stream": True},
        stream({"type": "image_generation.completed", "b64_json": "AAAA", "usage": tokens(34, 0)}),
        34 * 5 + PICTURE_COST,
        34 * 5 + PICTURE_COST,
    ),
    "an image tool of no tokens": (
        RESPONSES,
        DRAWING,
        reply(response([PICTURE], tokens(50, 20), tool_usage={"image_gen": tokens(50, 0)})),
        260 + PICTURE_COST,
        600 + PICTURE_COST,
    ),
    "seconds of none": (
        WRITTEN,
        form(model="whisper-1"),
        reply({"text": "hello there", "usage": {"type": "duration", "seconds": 0}}),
        600,
        600,
    ),
    "seconds of none beside a length": (
        WRITTEN,
        form(model="whisper-1", response_format="verbose_json"),
        reply({"text": "hello there", "duration": 8.4, "usage": {"type": "duration", "seconds": 0}}),
        900,
        900,
    ),
    "a stream of no seconds": (
        WRITTEN,
        form(model="gpt-transcribe", stream="on"),
        reply({"text": "hello there", "usage": {"type": "duration", "seconds": 0}}),
        450,
        450,
    ),
    "a translation of no length": (SPOKEN, form(model="whisper-1"), reply({"text": "hello", "duration": 0}), 600, 600),
    "speech of no output": (
        SPEECH,
        READ_ALOUD,
        stream({"type": "speech.audio.delta", "audio": SOUND}, {"type": "speech.audio.done", "usage": tokens(3, 0)}),
        480,
        500,
    ),
}


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_a_report_of_less_than_what_passed_falls_to_the_count_of_that_part(
    reader: Customer, upstream: RawUpstream, case: str
) -> None:
    path, body, answer, least, most = TOO_LITTLE[case]
    assert least <= charge(reader, upstream, path, body, answer) <= most


TOO_MUCH: dict[str, tuple[str, Any, bytes, int, int]] = {
    "pictures": (
        IMAGES,
        DRAWN,
        reply({"data": [{"b64_json": "AAAA"}], "usage": tokens(34, MANY)}),
        PICTURE_COST,
        PICTURE_COST + 100,
    ),
    "an image tool": (
        RESPONSES,
        DRAWING,
        reply(response([PICTURE], tokens(50, 20), tool_usage={"image_gen": tokens(50, MANY)})),
        260 + PICTURE_COST,
        600 + PICTURE_COST,
    ),
    "searches": (
        RESPONSES,
        SEARCHING,
        reply(response([SEARCH], tokens(50, 20), tool_usage={"web_search": {"num_requests": 1_000}})),
        10_260,
        10_260,
    ),
    "speech": (
        SPEECH,
        READ_ALOUD,
        stream({"type": "speech.audio.delta", "audio": SOUND}, {"type": "speech.audio.done", "usage": tokens(3, MANY)}),
        480,
        500,
    ),
    "seconds": (
        WRITTEN,
        form(model="whisper-1"),
        reply({"text": "hello there", "usage": {"type": "duration", "seconds": 1_000_000}}),
        600,
        9_700,  # its length cannot be counted: what was held for it
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_nobody_can_have_used_empties_no_account(reader: Customer, upstream: RawUpstream, case: str) -> None:
    path, body, answer, least, most = TOO_MUCH[case]
    assert least <= charge(reader, upstream, path, body, answer) <= most


ERROR = {"error": {"message": "overloaded", "type": "server_error", "code": "server_error"}}


@pytest.mark.parametrize(
    ("path", "body", "empty"),
    [
        (RESPONSES, RESPONSE, {"output": [], "usage": None}),
        (RESPONSES, RESPONSE, {"output": [], "usage": tokens(5, 0)}),
        (IMAGES, DRAWN, {"data": []}),
        (WRITTEN, form(model="gpt-4o-transcribe"), {"text": ""}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "hi"}, {"data": []}),
    ],
    ids=["response", "response with usage", "images", "transcription", "embeddings"],
)
def test_an_error_beside_empty_members_is_a_502_and_free(
    reader: Customer, upstream: RawUpstream, path: str, body: Any, empty: dict[str, Any]
) -> None:
    assert charge(reader, upstream, path, body, reply({**ERROR, **empty})) == 0


def test_an_item_that_is_told_twice_is_one_call(reader: Customer, upstream: RawUpstream) -> None:
    finished = {"type": "response.output_item.done", "output_index": 0, "item": SEARCH}
    answer = stream(CREATED, finished, finished, DELTA)
    assert 10_000 <= charge(reader, upstream, RESPONSES, {**SEARCHING, "stream": True}, answer) < 20_000
