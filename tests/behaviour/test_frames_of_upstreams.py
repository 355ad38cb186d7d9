"""Frames of a socket's upstream that strict parsers refuse: what the client gets is charged all the same."""

import json
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.support.served import Customer
from tests.support.servers import Serve, Tollkeeper
from tests.support.sockets import create, opened, rows


class FrameUpstream:
    """Answers the first frame of every socket with `frames`, and stays open."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._server = serve(self._answer, "127.0.0.1", 0)
        self.port = self._server.socket.getsockname()[1]
        Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, socket: ServerConnection) -> None:
        socket.recv()
        for frame in self.frames:
            socket.send(frame, text=True)
        for _ in socket:
            pass

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture(scope="module")
def upstream() -> Iterator[FrameUpstream]:
    found = FrameUpstream()
    yield found
    found.close()


@pytest.fixture
def fresh(served: Serve, new_customer: Callable[[Tollkeeper, str], Customer], upstream: FrameUpstream) -> Customer:
    return new_customer(served(TOLLKEEPER_UPSTREAM__BASE_URL=f"http://127.0.0.1:{upstream.port}/v1"), "1000")


def frame(kind: str, **response: Any) -> bytes:
    return json.dumps(
        {"type": kind, "response": {"id": "resp_1", "model": "gpt-4.1", "output": [], **response}}
    ).encode()


USAGE = {"input_tokens": 100, "output_tokens": 2_000, "total_tokens": 2_100}
CREATED = frame("response.created", usage=None)
COMPLETED = frame("response.completed", status="completed", usage=USAGE)


@pytest.mark.parametrize(
    ("created", "completed"),
    [
        (CREATED, COMPLETED),
        (CREATED, COMPLETED[:-1] + b',"top_p":NaN}'),
        (CREATED, COMPLETED[:-1] + rb',"text":"\ud83d"}'),
        (CREATED[:-1] + b',"temperature":NaN}', COMPLETED),
    ],
    ids=["plain", "NaN at the end", "a lone surrogate", "NaN at the beginning"],
)
def test_a_response_in_odd_frames_is_charged_by_its_usage(
    fresh: Customer, upstream: FrameUpstream, created: bytes, completed: bytes
) -> None:
    upstream.frames = [created, completed]
    with opened(fresh, "/responses") as socket:
        socket.send(create(max_output_tokens=3_000))
        assert [socket.recv(timeout=10) for _ in range(2)] == [created.decode(), completed.decode()]
    (row,) = rows(fresh, 1)
    assert int(row["chargedMillicredits"]) == 100 * 2 + 2_000 * 8


def test_a_search_that_passed_before_an_end_without_items_is_charged(fresh: Customer, upstream: FrameUpstream) -> None:
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
    done = json.dumps({"type": "response.output_item.done", "output_index": 0, "item": item}).encode()
    upstream.frames = [CREATED, done, COMPLETED]
    with opened(fresh, "/responses") as socket:
        socket.send(create(max_output_tokens=3_000, tools=[{"type": "web_search"}]))
        for _ in range(3):
            socket.recv(timeout=10)
    (row,) = rows(fresh, 1)
    assert int(row["chargedMillicredits"]) == 100 * 2 + 2_000 * 8 + 10_000


DELTA = json.dumps({"type": "response.output_text.delta", "output_index": 0, "delta": "whale "}).encode()


def test_a_response_that_never_said_that_it_began_is_charged_by_its_usage(
    fresh: Customer, upstream: FrameUpstream
) -> None:
    upstream.frames = [DELTA, COMPLETED]
    with opened(fresh, "/responses") as socket:
        socket.send(create(max_output_tokens=3_000))
        assert [socket.recv(timeout=10) for _ in range(2)] == [DELTA.decode(), COMPLETED.decode()]
    (row,) = rows(fresh, 1)
    assert int(row["chargedMillicredits"]) == 100 * 2 + 2_000 * 8


def test_a_response_left_that_never_said_that_it_began_costs_what_passed(
    fresh: Customer, upstream: FrameUpstream
) -> None:
    upstream.frames = [DELTA] * 200
    with opened(fresh, "/responses") as socket:
        socket.send(create(max_output_tokens=3_000))
        for _ in upstream.frames:
            socket.recv(timeout=10)
    (row,) = rows(fresh, 1)
    assert 200 * 8 <= int(row["chargedMillicredits"]) <= 200 * 8 + 60


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"response.create","type":"response.cancel","model":"gpt-4.1","input":"x"}',
        '{"type":"response.create","model":"gpt-4.1-nano","model":"gpt-4.1","input":"x"}',
        '{"type":"response.create","model":"gpt-4.1","input":[{"role":"user","content":"x","content":"y"}]}',
    ],
)
def test_a_frame_with_a_member_twice_is_refused(fresh: Customer, upstream: FrameUpstream, frame: str) -> None:
    upstream.frames = [CREATED, COMPLETED]
    with opened(fresh, "/responses") as socket:
        socket.send(frame)
        refused = json.loads(socket.recv(timeout=10))
        assert refused["type"] == "error"
        assert "twice" in refused["error"]["message"]
    assert fresh.held() == 0


@pytest.mark.parametrize("usage", [None, USAGE], ids=["no usage", "usage"])
@pytest.mark.parametrize("said", [{"status": "failed"}, {"status": None}, {}], ids=str)
def test_a_failure_without_output_is_free_whatever_it_says_of_its_status(
    fresh: Customer, upstream: FrameUpstream, said: dict[str, Any], usage: Any
) -> None:
    """As over HTTP: the event is a failure's by its name."""
    upstream.frames = [CREATED, frame("response.failed", usage=usage, **said)]
    with opened(fresh, "/responses") as socket:
        socket.send(create(max_output_tokens=3_000))
        for _ in range(2):
            socket.recv(timeout=10)
    (row,) = rows(fresh, 1)
    assert (row["outcome"], row["chargedMillicredits"]) == ("insured", "0")


def test_sound_on_a_socket_costs_its_length_when_its_usage_does_not_come(
    fresh: Customer, upstream: FrameUpstream
) -> None:
    """Five seconds of pcm16 are 100 tokens; what says so in base64 is no text."""
    second = json.dumps({"type": "response.audio.delta", "output_index": 0, "delta": "A" * 64_000}).encode()
    upstream.frames = [CREATED, *[second] * 5]
    with opened(fresh, "/responses", max_size=None) as socket:
        socket.send(create(max_output_tokens=3_000))
        for _ in range(6):
            socket.recv(timeout=10)
    (row,) = rows(fresh, 1)
    assert (row["outputTokens"], row["usageSource"]) == (100, "counted")
    assert int(row["chargedMillicredits"]) < 100 * 8 + 100


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_output_that_only_the_end_tells_is_counted(fresh: Customer, upstream: FrameUpstream, kind: str) -> None:
    said = {"type": "message", "content": [{"type": "output_text", "text": "whale " * 500}]}
    upstream.frames = [CREATED, frame(f"response.{kind}", status=kind, output=[said], usage=None)]
    with opened(fresh, "/responses") as socket:
        socket.send(create(max_output_tokens=3_000))
        for _ in range(2):
            socket.recv(timeout=10)
    (row,) = rows(fresh, 1)
    assert row["usageSource"] == "counted"
    assert 500 * 8 <= int(row["chargedMillicredits"]) <= 520 * 8 + 100
