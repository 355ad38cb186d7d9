"""GET /v1/realtime?intent=transcription: each item of sound is charged at its transcriber, and nothing else happens."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.support.served import Customer, usd_to_charge
from tests.support.servers import wait_until
from tests.support.sockets import opened, rows, until

PATH = "/realtime?intent=transcription"
DONE = "conversation.item.input_audio_transcription.completed"
SECOND = base64.b64encode(b"\0" * 48_000).decode()


@pytest.fixture
def fresh(served: Callable[..., Any], new_customer: Callable[..., Customer]) -> Customer:
    return new_customer(served(), "1000")


def update(model: str | None, **heard: Any) -> str:
    named = None if model is None else {"model": model, "language": "en"}
    session = {"type": "transcription", "audio": {"input": {"transcription": named, **heard}}}
    return json.dumps({"type": "session.update", "event_id": "mine", "session": session})


def say(socket: ClientConnection, seconds: int = 1) -> None:
    for _ in range(seconds):
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": SECOND}))


def test_each_item_is_charged_at_the_transcriber_of_its_moment(fresh: Customer) -> None:
    said = []
    with opened(fresh, PATH) as socket:
        assert until(socket, "session.created")[-1]["session"]["type"] == "transcription"
        for model in ("gpt-4o-transcribe", "whisper-1"):
            socket.send(update(model, turn_detection=None))
            until(socket, "session.updated")
            say(socket, 3)
            assert fresh.held() > 0
            socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            said.append(until(socket, DONE)[-1]["usage"])
    charges = {row["model"]: int(row["chargedMillicredits"]) for row in rows(fresh, 2)}
    inside = said[0]["input_token_details"]
    by_tokens = usd_to_charge(
        (inside["text_tokens"], "2.5"), (inside["audio_tokens"], "6"), (said[0]["output_tokens"], "10")
    )
    assert charges == {"gpt-4o-transcribe": by_tokens, "whisper-1": 300}  # three seconds at 0.006 USD a minute
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")


def test_the_server_may_end_the_turns_and_answers_none(fresh: Customer) -> None:
    with opened(fresh, PATH) as socket:
        socket.send(update("gpt-4o-mini-transcribe"))
        until(socket, "session.updated")
        say(socket, 1)
        frames = until(socket, DONE)
    assert not any(frame["type"].startswith("response.") for frame in frames)
    assert len(rows(fresh, 1)) == 1


def test_sound_that_was_committed_is_charged_though_its_client_leaves(fresh: Customer) -> None:
    with opened(fresh, PATH) as socket:
        socket.send(update("whisper-1", turn_detection=None))
        until(socket, "session.updated")
        say(socket, 2)
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        until(socket, "input_audio_buffer.committed")
    assert int(rows(fresh, 1)[0]["chargedMillicredits"]) == 200
    wait_until(lambda: fresh.held() == 0, 10, "nothing is held")


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "input_audio_buffer.append", "audio": SECOND}, "missing_required_parameter"),
        ({"type": "response.create"}, "unsupported_event"),
        ({"type": "conversation.item.create", "item": {}}, "unsupported_event"),
        (json.loads(update("gpt-4o")), "model_not_found"),
        (json.loads(update("gpt-realtime-whisper")), "model_not_found"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session_not_allowed"),
        ({"type": "session.update", "session": {"prompt": {"id": "pmpt_1"}}}, "prompt_not_found"),
    ],
)
def test_what_nothing_could_be_held_for_is_refused(fresh: Customer, event: dict[str, Any], code: str) -> None:
    with opened(fresh, PATH) as socket:
        until(socket, "session.created")
        socket.send(json.dumps(event))
        assert until(socket, "error")[-1]["error"]["code"] == code
        socket.send(update("whisper-1"))
        until(socket, "session.updated")
    assert fresh.held() == 0


def test_an_update_that_the_server_refuses_is_answered_by_the_clients_own_name(fresh: Customer) -> None:
    with opened(fresh, PATH) as socket:
        until(socket, "session.created")
        socket.send(
            json.dumps(
                {
                    "type": "session.update",
                    "event_id": "mine",
                    "session": {"type": "transcription", "audio": {"input": 7}},
                }
            )
        )
        assert until(socket, "error", "session.updated")[-1].get("error", {"event_id": "mine"})["event_id"] == "mine"


def test_without_money_the_socket_ends(served: Callable[..., Any], new_customer: Callable[..., Customer]) -> None:
    poor = new_customer(served(), "0.001")
    with opened(poor, PATH) as socket:
        socket.send(update("whisper-1"))
        say(socket)
        assert until(socket, "error")[-1]["error"]["code"] == "insufficient_credits"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


@pytest.mark.parametrize(
    "query", ["intent=other", "intent=transcription&model=gpt-realtime-2.1", "intent=transcription&x=1"]
)
def test_other_queries_are_refused(fresh: Customer, query: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(fresh, f"/realtime?{query}"):
        pass
    assert refused.value.response.status_code == 400
