"""Everything that is kept or runs at an upstream stays with it: while it is drained, given another key, away and back."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from config.watch import LOOK_SECONDS
from tests.support import web
from tests.support.servers import Account, RedisServer, Serve, Tollkeeper, sandbox_says, wait_until, within
from tests.support.sockets import create, until
from tests.support.upstreams import Place, ask, places, write
from tests.support.voice import TEXT, call_of, calls, hang_up

pytestmark = pytest.mark.served

MODEL = "gpt-4o-mini"
RICH = "10000000"
PATIENT = {
    "TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS": "10",
    "TOLLKEEPER_REDIS__TIMEOUT_SECONDS": "10",
    "TOLLKEEPER_ADVANCED__BATCH_POLL_SECONDS": "0.2",
}
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 20},
}


@pytest.fixture(scope="module")
def two() -> Iterator[list[Place]]:
    with places("openai", "second") as made:
        yield made


@pytest.fixture(params=["embedded", "redis"])
def server(request: pytest.FixtureRequest, make_tollkeeper: Serve, two: list[Place]) -> Tollkeeper:
    """A Tollkeeper over each store, with two upstreams."""
    for place in two:
        place.key = f"sk-canary-{place.name}-5d8b604"
        place.sandbox.clear()
        place.sandbox.settings(directive={}, new_key="", background_ms=150, batch_ms=200)
    made = make_tollkeeper(**PATIENT)
    del made.environment["TOLLKEEPER_UPSTREAM__BASE_URL"]
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        made.environment |= {"TOLLKEEPER_REDIS__URL": redis.url, "TOLLKEEPER_LISTEN__WORKERS": "2"}
    write(made, two)
    return made.start()


@dataclass
class Kept:
    """What one customer keeps at one upstream."""

    account: Account
    home: Place
    other: Place
    ids: dict[str, str]

    def call(self, method: str, path: str, **named: Any) -> httpx.Response:
        url = f"{self.account.server.v1}{path}"
        return web.request(method, url, headers=self.account.headers, timeout=60, **named)

    def made(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.call("POST", path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        found: dict[str, Any] = answer.json()
        return found

    def uses(self) -> dict[str, Callable[[], httpx.Response]]:
        """One use of everything that is kept, by its kind."""
        ids = self.ids
        responds = {"model": MODEL, "max_output_tokens": 40}
        named = {"type": "input_file", "file_id": ids["file"]}
        return {
            "response": lambda: self.call("GET", f"/responses/{ids['response']}"),
            "previous response": lambda: self.call(
                "POST", "/responses", json={**responds, "input": "and", "previous_response_id": ids["response"]}
            ),
            "conversation": lambda: self.call(
                "POST", "/responses", json={**responds, "input": "and", "conversation": ids["conversation"]}
            ),
            "items": lambda: self.call("GET", f"/conversations/{ids['conversation']}/items"),
            "stored chat": lambda: self.call("GET", f"/chat/completions/{ids['chat']}"),
            "file": lambda: self.call("GET", f"/files/{ids['file']}/content"),
            "file that is read": lambda: self.call(
                "POST", "/responses", json={**responds, "input": [{"role": "user", "content": [named]}]}
            ),
            "list of files": lambda: self.call("GET", "/files"),
            "vector store": lambda: self.call("GET", f"/vector_stores/{ids['store']}"),
            "search": lambda: self.call("POST", f"/vector_stores/{ids['store']}/search", json={"query": "whales"}),
            "batch": lambda: self.call("GET", f"/batches/{ids['batch']}"),
            "new batch": lambda: self.call(
                "POST",
                "/batches",
                json={
                    "input_file_id": ids["lines"],
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                },
            ),
            "speech": lambda: self.call("POST", "/chat/completions", json=speech(ids["speech"])),
            "streamed speech": lambda: self.call("POST", "/chat/completions", json=speech(ids["streamed speech"])),
        }

    def all_used(self) -> dict[str, int]:
        """Kind → status, of all uses."""
        return {kind: use().status_code for kind, use in self.uses().items()}

    def booked(self, seconds: float = 20) -> list[dict[str, Any]]:
        """The rows, once nothing is held."""
        wait_until(lambda: self.account.held() == 0, seconds, "nothing is held")
        return self.account.usage()


def speech(earlier: str = "", **more: Any) -> dict[str, Any]:
    history = [{"role": "assistant", "audio": {"id": earlier}}] if earlier else []
    said = {"role": "user", "content": f"hi {sandbox_says(output_tokens=20)}"}
    kind = {"model": "gpt-audio-1.5", "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
    return {**kind, "messages": [said, *history, said], "max_completion_tokens": 200, **more}


def upload(kept: Kept, name: str, data: bytes, purpose: str) -> str:
    sent = kept.call("POST", "/files", files={"file": (name, data)}, data={"purpose": purpose})
    assert sent.status_code == 200, sent.text
    return str(sent.json()["id"])


def at_home(server: Tollkeeper, home: Place, other: Place) -> Kept:
    """A customer whose new things are made at this upstream: the other one is drained."""
    kept = Kept(server.account(RICH), home, other, {})
    drain(kept, other)
    return kept


def drain(kept: Kept, place: Place) -> None:
    place.more["draining"] = True
    edit(kept, kept.home, kept.other)
    del place.more["draining"]
    wait_until(lambda: not any(_goes_to(kept, place) for _ in range(4)), 20, "it takes nothing new")
    time.sleep(within(5 * LOOK_SECONDS))  # another worker than those that were asked looks at the file a moment later


def undrain(kept: Kept) -> None:
    edit(kept, kept.home, kept.other)
    wait_until(lambda: all(_balanced(kept) for _ in range(2)), 20, "both take what is new")


def make_each(kept: Kept) -> None:
    """One of each kind that is kept."""
    ids = kept.ids
    ids["response"] = kept.made("/responses", model=MODEL, input="remember me", max_output_tokens=40)["id"]
    ids["conversation"] = kept.made("/conversations")["id"]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "store": True}
    ids["chat"] = kept.made("/chat/completions", **chat)["id"]
    ids["file"] = upload(kept, "a.pdf", b"%PDF-1.4 whales", "user_data")
    ids["lines"] = upload(kept, "in.jsonl", json.dumps(LINE).encode(), "batch")
    ids["store"] = kept.made("/vector_stores", name="docs")["id"]
    asked = {"input_file_id": ids["lines"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    ids["batch"] = kept.made("/batches", **asked)["id"]
    ids["speech"] = kept.made("/chat/completions", **speech())["choices"][0]["message"]["audio"]["id"]
    events = kept.call("POST", "/chat/completions", json=speech(stream=True)).text
    ids["streamed speech"] = "audio_" + events.partition('"id":"audio_')[2].partition('"')[0]


def _goes_to(kept: Kept, home: Place) -> bool:
    before = len(home.sandbox.record())
    assert ask(kept.account, stream=False).whole
    return len(home.sandbox.record()) > before


def _balanced(kept: Kept) -> bool:
    before = [len(place.sandbox.record()) for place in (kept.home, kept.other)]
    assert all(ask(kept.account, stream=False).whole for _ in range(8))
    return all(
        len(place.sandbox.record()) > number for place, number in zip((kept.home, kept.other), before, strict=True)
    )


def elsewhere(kept: Kept) -> list[str]:
    """Paths of what the other upstream was asked for, but for new chats without anything kept."""
    rows = kept.other.sandbox.record()
    return [row["path"] for row in rows if row["model"] != MODEL or row["path"] != "/v1/chat/completions"]


def edit(kept: Kept, *used: Place) -> None:
    write(kept.account.server, sorted(used, key=lambda place: place.name))


def rekey(kept: Kept) -> None:
    """The former key is not accepted any more."""
    kept.home.key = "sk-canary-rotated-91"
    kept.home.sandbox.settings(new_key=kept.home.key)
    edit(kept, kept.home, kept.other)


def remove(kept: Kept, used: Callable[[], httpx.Response]) -> None:
    edit(kept, kept.other)
    wait_until(lambda: all(used().status_code == 503 for _ in range(6)), 20, "it is removed")


def bring_back(kept: Kept, used: Callable[[], httpx.Response]) -> None:
    edit(kept, kept.home, kept.other)
    wait_until(lambda: all(used().status_code == 200 for _ in range(6)), 20, "it is back")


@pytest.mark.parametrize("which", [0, 1], ids=["openai", "second"])
def test_all_that_is_kept_is_used_where_it_is_while_that_is_drained_rekeyed_gone_and_back(
    server: Tollkeeper, two: list[Place], which: int
) -> None:
    kept = at_home(server, two[which], two[1 - which])
    make_each(kept)
    undrain(kept)
    for place in two:
        place.sandbox.clear()
    response = kept.uses()["response"]

    def used() -> set[int]:
        found = kept.all_used()
        assert len(set(found.values())) == 1, found
        assert elsewhere(kept) == []
        return set(found.values())

    assert used() == {200}
    drain(kept, kept.home)
    assert used() == {200}
    rekey(kept)
    wait_until(lambda: all(response().status_code == 200 for _ in range(6)), 20, "the new key is used")
    assert used() == {200}
    remove(kept, response)
    assert used() == {503}
    assert response().json()["error"]["code"] == "upstream_not_configured"
    bring_back(kept, response)
    assert used() == {200}
    rows = kept.booked()
    assert kept.account.server.cli("reconcile", code=None)["findings"] == []
    by = {row["endpoint"]: row["upstream"] for row in rows if row["endpoint"] != "/v1/chat/completions"}
    assert set(by.values()) == {kept.home.name}, by


def test_what_runs_goes_on_where_it_runs(server: Tollkeeper, two: list[Place]) -> None:
    kept = at_home(server, two[1], two[0])
    kept.home.sandbox.settings(background_ms=4_000)
    made = kept.made("/responses", model=MODEL, input="remember me", max_output_tokens=40)["id"]
    call_id = call_of(kept.account, **TEXT)
    undrain(kept)
    with socket_of(kept) as socket:
        socket.send(create("hi", model=MODEL, previous_response_id=made))
        until(socket, "response.completed")
        body = {"model": MODEL, "input": "hi", "max_output_tokens": 40, "background": True}
        background = kept.call("POST", "/responses", json={**body, "previous_response_id": made})
        drain(kept, kept.home)
        socket.send(create("and", model=MODEL, previous_response_id=made))
        until(socket, "response.completed")
        with socket_of(kept) as another:  # it is connected to by what its first response refers to
            another.send(create("hi", model=MODEL, previous_response_id=made))
            assert until(another, "response.completed", "error")[-1]["type"] == "response.completed"
        remove(kept, lambda: kept.call("GET", f"/responses/{made}"))
        socket.send(create("still", model=MODEL))
        until(socket, "response.completed")
        assert calls(kept.home.sandbox)[call_id]["running"]
        assert hang_up(kept.account, call_id).status_code == 200
        # whichever process was asked: the one that meters it is told by the records, where the other cannot reach it
        wait_until(lambda: not calls(kept.home.sandbox)[call_id]["running"], 10, "it is hung up")
    bring_back(kept, lambda: kept.call("GET", f"/responses/{made}"))
    rows = kept.booked(30)
    (row,) = [row for row in rows if row["requestId"] == background.headers["x-request-id"]]
    record = next(
        one for one in kept.home.sandbox.record() if one["responseId"] == background.json()["id"] and one["usage"]
    )
    usage = record["usage"]
    due = ceil(usage["input_tokens"] * Decimal("0.15") + usage["output_tokens"] * Decimal("0.6"))
    assert (int(row["chargedMillicredits"]), row["usageSource"]) == (due, "upstream")
    assert {row["upstream"] for row in rows if row["endpoint"] == "/v1/responses"} == {"second"}


def socket_of(kept: Kept) -> ClientConnection:
    url = kept.account.server.v1.replace("http://", "ws://") + "/responses"
    return connect(url, additional_headers=kept.account.headers, open_timeout=20)
