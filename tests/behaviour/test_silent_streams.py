"""An event stream whose upstream is silent says so by comments: between events only, and every other byte as it came."""

import itertools
import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.raw_upstream import PausingUpstream
from tests.support.served import Customer
from tests.support.servers import Serve, Tollkeeper
from tests.support.wire import text_of

EVERY_SECOND = {"TOLLKEEPER_METERING__KEEPALIVE_COMMENT_SECONDS": "1"}
COMMENT = b": keep-alive\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: "
EVENTS = b"text/event-stream; charset=utf-8\r\n\r\n"
CHUNK = b'data: {"id":"c","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}\n\n'
DONE = b"data: [DONE]\n\n"

CustomerOf = Callable[[Tollkeeper], Customer]


@pytest.fixture(scope="module")
def upstream() -> Iterator[PausingUpstream]:
    upstream = PausingUpstream(1.5)
    yield upstream
    upstream.close()


def test_a_silent_chat_stream_is_kept_alive_and_otherwise_untouched(served: Serve, customer_of: CustomerOf) -> None:
    customer = customer_of(served(**EVERY_SECOND))
    with customer.stream(customer.body({"output_tokens": 3, "chunk_interval_ms": 1_400}, max_tokens=20)) as wire:
        ended = wire.read_all()
    assert ended.clean
    assert ended.data.count(COMMENT) >= 2
    assert not re.search(rb"[^\n]: keep-alive|[^\n]\n: keep-alive", ended.data)
    assert text_of(ended.data.replace(COMMENT, b""))


@pytest.mark.parametrize(
    ("pieces", "comments"),
    [
        ([HEAD + EVENTS, CHUNK + b"\n\n", USAGE + DONE], 2),
        ([HEAD + EVENTS + CHUNK[:40], CHUNK[40:] + b"\n\n", USAGE + DONE], 2),
        ([HEAD + EVENTS + CHUNK + b"\r\n\r", b"\n" + USAGE + DONE], 0),
        ([HEAD + EVENTS + CHUNK + b"\n\n" + USAGE, DONE], 1),
    ],
    ids=["between events", "inside an event that is kept back", "inside a line end", "before the end"],
)
def test_comments_stand_between_events_wherever_the_upstream_pauses(
    served: Serve, customer_of: CustomerOf, upstream: PausingUpstream, pieces: list[bytes], comments: int
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url, **EVERY_SECOND))
    upstream.pieces = pieces
    body = {**customer.body(max_tokens=50), "stream_options": {"include_usage": True}}
    with customer.stream(body) as wire:
        data = wire.read_all().data
    assert data.count(COMMENT) == comments
    assert data.replace(COMMENT, b"") == b"".join(pieces).removeprefix(HEAD + EVENTS)


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        ("/v1/chat/completions", {"stream": False}, b"text/event-stream\r\n\r\n"),
        ("/v1/chat/completions", {"stream": True}, b"application/json\r\n\r\n"),
        ("/v1/audio/speech", {"model": "tts-1", "input": "hi", "voice": "alloy"}, b"audio/mpeg\r\n\r\n"),
    ],
    ids=["not asked for", "events under another type", "sound"],
)
def test_only_who_asked_for_events_and_gets_them_reads_comments(
    served: Serve, customer_of: CustomerOf, upstream: PausingUpstream, path: str, fields: dict[str, object], kind: bytes
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url, **EVERY_SECOND))
    upstream.pieces = [HEAD + kind, CHUNK + b"\n\n", USAGE + DONE]
    body = fields if "input" in fields else {**customer.body(max_tokens=50), **fields}
    answer = customer.post(body, path)
    assert (answer.status_code, COMMENT in answer.content) == (200, False)


def test_it_can_be_switched_off_and_a_fast_stream_never_sees_it(
    served: Serve, customer_of: CustomerOf, upstream: PausingUpstream
) -> None:
    off = served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url, TOLLKEEPER_METERING__KEEPALIVE_COMMENT_SECONDS="0")
    customer = customer_of(off)
    upstream.pieces = [HEAD + EVENTS, CHUNK + b"\n\n" + USAGE + DONE]
    assert COMMENT not in customer.post({**customer.body(max_tokens=50), "stream": True}).content
    quick = customer_of(served(**EVERY_SECOND))
    began = time.monotonic()
    answer = quick.post(quick.body({"output_tokens": 30, "chunk_interval_ms": 100}, max_tokens=50, stream=True))
    assert time.monotonic() - began > 2
    assert COMMENT not in answer.content


def test_comments_come_at_their_time_over_and_over(
    served: Serve, customer_of: CustomerOf, upstream: PausingUpstream
) -> None:
    customer = customer_of(served(TOLLKEEPER_UPSTREAM__BASE_URL=upstream.url, **EVERY_SECOND))
    upstream.pieces = [HEAD + EVENTS + CHUNK + b"\n\n", b"", b"", USAGE + DONE]
    with customer.stream(customer.body(max_tokens=50)) as wire:
        wire.read_events(1)
        times = [time.monotonic()]
        for _ in range(3):
            assert wire.read_events(1) == COMMENT
            times.append(time.monotonic())
    assert all(0.7 < after - before < 1.6 for before, after in itertools.pairwise(times))
