"""No id is shown without an owner (I8): the ledger database is locked just when an answer that is stored comes back."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support import web
from tests.support.processes import locked
from tests.support.served import metric
from tests.support.servers import UPSTREAM_KEY, Account, Sandbox, Serve, Tollkeeper, sandbox_says, wait_until

START = 100_000_000
SLOWLY = {"input": "hello " + sandbox_says(latency_ms=700, output_tokens=20), "max_output_tokens": 50}
CODE = {
    "model": "gpt-5.1",
    "input": "hello " + sandbox_says(latency_ms=700, calls=["code_interpreter"], reasoning_tokens=0),
    "max_output_tokens": 200,
    "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
}
CHAT = {
    "model": "gpt-4.1",
    "messages": [{"role": "user", "content": SLOWLY["input"]}],
    "store": True,
    "max_completion_tokens": 50,
}


@pytest.fixture
def server(make_tollkeeper: Serve) -> Tollkeeper:
    tools = '["code_interpreter"]'
    environment = {"TOLLKEEPER_DATABASE__TIMEOUT_SECONDS": "1", "TOLLKEEPER_BILLING__ALLOWED_TOOLS": tools}
    return make_tollkeeper(**environment).start()


@pytest.fixture
def account(server: Tollkeeper) -> Account:
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    assert account.chat(max_tokens=1).status_code == 200  # its key is known from here on
    wait_until(account.usage, 10, "the first charge is booked")
    return account


def ledger(server: Tollkeeper) -> Path:
    return server.folder / "var" / "tollkeeper.db"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("responses", {"model": "gpt-4.1", **SLOWLY}),
        ("responses", CODE),
        ("responses", CODE | {"store": False}),
        ("chat/completions", CHAT),
    ],
    ids=["response", "container", "container of what is not stored", "chat"],
)
def test_a_whole_answer_is_given_without_the_ids_that_nobody_owns(
    server: Tollkeeper, account: Account, sandbox: Sandbox, path: str, body: dict[str, Any]
) -> None:
    before = START - int(account.usage()[0]["chargedMillicredits"])
    errors = metric(server, "tollkeeper_store_errors_total", store="sql")
    with locked(ledger(server)):
        answer = web.post(f"{server.v1}/{path}", json=body, headers=account.headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-stored"] == "false"
    shown = [answer.json()["id"]]
    for item in answer.json().get("output", ()):
        shown.append(item["id"])
        shown += [item["container_id"]] if "container_id" in item else []
    wait_until(lambda: metric(server, "tollkeeper_store_errors_total", store="sql") > errors, 5, "it is counted")
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    booked = wait_until(lambda: len(rows := account.usage()) > 1 and rows, 20, "it is booked")
    assert booked[0]["usageSource"] == "upstream"
    assert account.balance() == before - int(booked[0]["chargedMillicredits"])
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as database:
        owned = {found[0] for found in database.execute("SELECT id FROM upstream_objects")}
    assert not owned & set(shown)
    for one in shown:  # what was made up is nobody's either
        asked = web.get(f"{server.v1}/{path}/{one}", headers=account.headers, timeout=10)
        assert asked.status_code == 404
    kept = web.get(f"{sandbox.url}/{path}/{shown[0]}", headers={"Authorization": f"Bearer {UPSTREAM_KEY}"}, timeout=10)
    assert kept.status_code == 404, "nor is it what the upstream calls it"


def test_an_answer_whose_ids_are_owned_is_passed_as_it_is(account: Account) -> None:
    answer = web.post(
        f"{account.server.v1}/responses", json={"model": "gpt-4.1", **SLOWLY}, headers=account.headers, timeout=30
    )
    assert "x-stored" not in answer.headers
    asked = web.get(f"{account.server.v1}/responses/{answer.json()['id']}", headers=account.headers, timeout=10)
    assert asked.json()["output"] == answer.json()["output"]


def test_a_stream_is_refused_before_its_first_byte(server: Tollkeeper, account: Account) -> None:
    before = account.balance()
    with locked(ledger(server)):
        answer = web.post(
            f"{server.v1}/responses",
            json={"model": "gpt-4.1", **SLOWLY, "stream": True},
            headers=account.headers,
            timeout=30,
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert "resp_" not in answer.text
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    assert account.balance() == before


def test_a_response_on_a_socket_is_not_shown_and_costs_nothing(server: Tollkeeper, account: Account) -> None:
    before = account.balance()
    url = server.v1.replace("http://", "ws://") + "/responses"
    frames = []
    with connect(url, additional_headers=account.headers, open_timeout=10) as socket:
        with locked(ledger(server)):
            socket.send(json.dumps({"type": "response.create", "model": "gpt-4.1", "stream_id": "a", **SLOWLY}))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    frames.append(json.loads(socket.recv(timeout=20)))
    assert [(frame["type"], frame["stream_id"], frame["error"]["code"]) for frame in frames] == [
        ("error", "a", "store_unavailable")
    ]
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "store_unavailable")
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    assert account.balance() == before
    assert len(account.usage()) == 1, "no row says that an upstream had failed"


def test_another_response_of_that_socket_is_charged_what_passed(server: Tollkeeper, account: Account) -> None:
    before = account.balance()
    url = server.v1.replace("http://", "ws://") + "/responses"
    spoken = {"input": "hello " + sandbox_says(output_tokens=400, chunk_interval_ms=20), "max_output_tokens": 500}
    passed = 0
    with connect(url, additional_headers=account.headers, open_timeout=10) as socket:
        socket.send(json.dumps({"type": "response.create", "model": "gpt-4.1", "stream_id": "a", **spoken}))
        while passed < 5:
            passed += json.loads(socket.recv(timeout=20))["type"] == "response.output_text.delta"
        with locked(ledger(server)), pytest.raises(ConnectionClosed):
            socket.send(json.dumps({"type": "response.create", "model": "gpt-4.1", "stream_id": "b", **SLOWLY}))
            while True:
                passed += json.loads(socket.recv(timeout=20))["type"] == "response.output_text.delta"
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    (row, _) = wait_until(lambda: len(rows := account.usage()) == 2 and rows, 20, "it is booked")
    assert (row["usageSource"], row["outcome"]) == ("counted", "shutdown")
    assert int(row["chargedMillicredits"]) >= passed * 8 * 9 // 10
    assert account.balance() == before - int(row["chargedMillicredits"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_background_response_that_cannot_be_written_down_is_cancelled(
    server: Tollkeeper, account: Account, sandbox: Sandbox, stream: bool
) -> None:
    before = account.balance()
    said = sandbox_says(latency_ms=700, background_ms=60_000)
    body = {"model": "gpt-4.1", "input": f"hello {said}", "max_output_tokens": 50, "background": True, "stream": stream}
    with locked(ledger(server)):
        answer = web.post(f"{server.v1}/responses", json=body, headers=account.headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    (job,) = [row for row in sandbox.record() if row.get("jobStatus")]
    assert job["jobStatus"] == "cancelled"
    assert job["responseId"] not in answer.text
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    assert account.balance() == before
