"""A model that has ended, over the wire: not listed, refused everywhere before any hold, and the SDK reads what is left."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.support import web
from tests.support.customers import new_customer
from tests.support.figures import metric
from tests.support.media import wav
from tests.support.rate_cards import activate_ends, day
from tests.support.served import Customer
from tests.support.servers import Sandbox, Tollkeeper, wait_until
from tests.support.sockets import opened, until

ENDED = (
    "gpt-4o",
    "gpt-image-1.5",
    "text-embedding-3-small",
    "whisper-1",
    "tts-1",
    "gpt-realtime",
    "gpt-3.5-turbo-instruct",
)
YESTERDAY = day(-1)
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    """A server by whose card some models ended yesterday, one ends soon, and no other ever does."""
    more = {"TOLLKEEPER_BILLING__EXTENDED_MODELS": "[]", "TOLLKEEPER_BILLING__MARKUP": "1.5"}
    more |= {"TOLLKEEPER_BILLING__ALLOW_STORE": "true", "TOLLKEEPER_BILLING__ALLOW_BACKGROUND": "true"}
    server = Tollkeeper(new_folder("ends"), {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url, **more}).start()
    named = {name.replace("-", "_").replace(".", "_"): YESTERDAY for name in (*ENDED, "omni-moderation-latest")}
    activate_ends(server, **named, gpt_4_1=day(10))
    someone = new_customer(server)
    wait_until(lambda: someone.chat(model="gpt-4o").status_code == 404, 10, "the card is in force")
    yield server
    server.kill()


@pytest.fixture
def customer(served: Tollkeeper, session_sandbox: Sandbox) -> Customer:
    owner = new_customer(served)
    session_sandbox.clear()
    return Customer(served, owner.account_id, owner.api_key, session_sandbox)


def message(model: str) -> str:
    return f"The model {model!r} ended on {YESTERDAY} and is no longer served."


def unasked(customer: Customer) -> bool:
    """Nothing was held, booked, or sent upstream."""
    return (customer.held(), customer.balance(), customer.sandbox.record()) == (0, 1_000_000_000, [])


POSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "gpt-4o", "messages": HI}),
    "a stream": ("/v1/chat/completions", {"model": "gpt-4o", "messages": HI, "stream": True}),
    "a snapshot that falls back": ("/v1/chat/completions", {"model": "gpt-4o-2031-01-01", "messages": HI}),
    "completions": ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "hi"}),
    "embeddings": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "hi"}),
    "responses": ("/v1/responses", {"model": "gpt-4o", "input": "hi"}),
    "background": ("/v1/responses", {"model": "gpt-4o", "input": "hi", "background": True}),
    "counting": ("/v1/responses/input_tokens", {"model": "gpt-4o", "input": "hi"}),
    "compact": ("/v1/responses/compact", {"model": "gpt-4o", "input": "hi"}),
    "a tool's model": (
        "/v1/responses",
        {"model": "gpt-6-luna", "input": "hi", "tools": [{"type": "image_generation", "model": "gpt-image-1.5"}]},
    ),
    "images": ("/v1/images/generations", {"model": "gpt-image-1.5", "prompt": "a cat"}),
    "speech": ("/v1/audio/speech", {"model": "tts-1", "input": "hi", "voice": "alloy"}),
    "a model that nobody named": ("/v1/moderations", {"input": "hi"}),
}


@pytest.mark.parametrize("name", POSTS)
def test_it_is_refused_before_any_hold(name: str, customer: Customer) -> None:
    path, body = POSTS[name]
    answer = customer.post(body, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (404, "model_not_found", "invalid_request_error")
    assert f"ended on {YESTERDAY} and is no longer served." in error["message"]
    assert unasked(customer)


def test_the_message_names_the_successor(customer: Customer) -> None:
    said = customer.post({"model": "gpt-4o", "messages": HI}).json()["error"]["message"]
    assert said == f"{message('gpt-4o')} Use 'gpt-6-luna' instead."


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_an_upload_for_it_is_refused_before_any_hold(path: str, customer: Customer) -> None:
    form = {"data": {"model": "whisper-1"}, "files": {"file": ("a.wav", wav(2), "audio/wav")}}
    answer = web.post(customer.server.url + path, headers=customer.headers, timeout=20, **form)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith(message("whisper-1"))
    assert unasked(customer)


def test_a_realtime_session_of_it_is_not_opened(customer: Customer) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(customer, "/realtime?model=gpt-realtime")
    assert caught.value.response.status_code == 404
    assert message("gpt-realtime").encode() in caught.value.response.body
    assert unasked(customer)


def refused_on(socket: ClientConnection, event: dict[str, Any]) -> str:
    socket.send(json.dumps(event))
    error = until(socket, "error")[-1]["error"]
    assert error["code"] == "model_not_found"
    return str(error["message"])


def test_a_realtime_session_may_not_transcribe_with_it(customer: Customer) -> None:
    session = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    with opened(customer, "/realtime?model=gpt-realtime-2.1") as socket:
        until(socket, "session.created")
        assert refused_on(socket, {"type": "session.update", "session": session}).startswith(message("whisper-1"))
    assert customer.balance() == 1_000_000_000


def test_a_responses_socket_refuses_it_and_goes_on(customer: Customer) -> None:
    with opened(customer, "/responses") as socket:
        said = refused_on(socket, {"type": "response.create", "model": "gpt-4o", "input": "hi"})
        assert said.startswith(message("gpt-4o"))
        assert (customer.held(), customer.balance()) == (0, 1_000_000_000)
        more = {"type": "response.create", "model": "gpt-6-luna", "input": "hi", "max_output_tokens": 500}
        socket.send(json.dumps(more))
        until(socket, "response.completed", "response.incomplete")


def test_the_official_sdk_lists_what_is_sold_with_its_price_and_its_end(customer: Customer) -> None:
    client = OpenAI(base_url=customer.server.v1, api_key=customer.api_key, max_retries=0)
    models = {model.id: model for model in client.models.list()}
    assert not {*ENDED, "omni-moderation-latest"} & models.keys()
    assert {"gpt-6-luna", "gpt-4.1", "gpt-realtime-2.1"} <= models.keys()
    assert (models["gpt-4.1"].shutdown_date, models["gpt-6-luna"].shutdown_date) == (day(10), None)
    luna = client.models.retrieve("gpt-6-luna")
    assert luna == models["gpt-6-luna"]
    assert luna.model_extra == {
        "context_window": 1_050_000,
        "max_output_tokens": 128_000,
        "price": {
            "unit": "credits",
            "service_tier": "default",
            "per_million_tokens": {
                "input": 150,
                "cached_input": 15,
                "cache_write_30m": 187.5,
                "cache_write_12h": 375,
                "output": 750,
            },
            "per_million_tokens_above_272k_input": {
                "input": 300,
                "cached_input": 30,
                "cache_write_30m": 375,
                "cache_write_12h": 750,
                "output": 1125,
            },
            "web_search": 15,
        },
    }
    assert {row["model"] for row in customer.me()["activeRates"]} == models.keys()


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4o-2031-01-01", "gpt-99"])
def test_retrieving_it_is_the_404_of_a_model_that_is_not_there(name: str, customer: Customer) -> None:
    answer = web.get(f"{customer.server.v1}/models/{name}", headers=customer.headers, timeout=10)
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": f"The model {name!r} does not exist or you do not have access to it.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_what_ends_within_30_days_is_shown_and_only_that(served: Tollkeeper) -> None:
    name = 'tollkeeper_model_shutdown_timestamp_seconds{model="gpt-4.1"}'
    wait_until(lambda: metric(served, name) % 86_400 == 0 < metric(served, name), 20, "its end is shown")
    text = web.get(f"{served.url}/metrics", timeout=10).text
    shown = [line for line in text.splitlines() if line.startswith("tollkeeper_model_shutdown_") and line[-2:] != " 0"]
    assert [line for line in shown if not line.endswith(" 0.0") and "gpt-4.1" not in line] == []
