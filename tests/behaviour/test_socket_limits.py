"""WebSockets count: by key, by address, by time, among the upstream's connections; and say nothing in logs but a line."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.served import Customer, MakeCustomer, metric
from tests.support.servers import Sandbox, Serve, Tollkeeper, sandbox_says, wait_until
from tests.support.sockets import create, opened, until

REALTIME = "/realtime?model=gpt-realtime-2.1"
PATHS = ("/responses", REALTIME)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as open_now:
        yield open_now


def tried(customer: Customer, path: str, stack: contextlib.ExitStack) -> tuple[int, str]:
    """(101, "") for an open socket, else status and code."""
    try:
        stack.enter_context(opened(customer, path))
    except InvalidStatus as refused:
        return refused.response.status_code, json.loads(refused.response.body or b"{}")["error"]["code"]
    return 101, ""


@pytest.mark.parametrize("path", PATHS)
def test_a_key_without_money_opens_none_and_nobody_is_dialled(
    path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, stack: contextlib.ExitStack
) -> None:
    poor = new_customer(served(), "0")
    dialled = metric(poor.server, "tollkeeper_upstream_connections", state="open")
    assert {tried(poor, path, stack) for _ in range(10)} == {(402, "insufficient_credits")}
    assert metric(poor.server, "tollkeeper_upstream_connections", state="open") <= dialled


@pytest.mark.parametrize("path", PATHS)
def test_a_keys_rate_and_concurrency_hold_for_sockets(
    path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, stack: contextlib.ExitStack
) -> None:
    slow = new_customer(served(), requests_per_minute=2)
    answers = [tried(slow, path, stack) for _ in range(10)]
    assert answers == [(101, "")] * 2 + [(429, "rate_limit_exceeded")] * 8
    alone = new_customer(served(), concurrency=1)
    answers = [tried(alone, path, stack) for _ in range(5)]
    assert (answers[0], {status for status, _ in answers[1:]}) == ((101, ""), {429})


@pytest.mark.parametrize("path", PATHS)
def test_a_key_and_an_address_have_so_many_sockets(
    path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, stack: contextlib.ExitStack
) -> None:
    server = served(TOLLKEEPER_LISTEN__MAX_SOCKETS_PER_KEY="3", TOLLKEEPER_LISTEN__MAX_SOCKETS_PER_ADDRESS="5")
    first, second = new_customer(server), new_customer(server)
    full = (429, "too_many_sockets")
    assert [tried(first, path, stack) for _ in range(5)] == [(101, "")] * 3 + [full] * 2
    assert [tried(second, path, stack) for _ in range(4)] == [(101, "")] * 2 + [full] * 2
    stack.close()
    wait_until(lambda: tried(first, path, stack)[0] == 101, 10, "a seat is free again")


def test_sockets_count_among_the_connections_to_the_upstream(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox, stack: contextlib.ExitStack
) -> None:
    customer = new_customer(served(TOLLKEEPER_UPSTREAM__MAX_CONNECTIONS="3"))
    assert customer.post(customer.body(max_tokens=5)).status_code == 200  # its connection stays, idle
    answers = [tried(customer, REALTIME, stack) for _ in range(5)]
    assert answers == [(101, "")] * 3 + [(503, "upstream_busy")] * 2
    assert customer.post(customer.body(max_tokens=5)).json()["error"]["code"] == "upstream_busy"
    stack.close()
    wait_until(lambda: customer.post(customer.body(max_tokens=5)).status_code == 200, 15, "there is room again")


def test_the_upstream_is_dialled_when_the_first_frame_needs_it(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox, stack: contextlib.ExitStack
) -> None:
    customer = new_customer(served(TOLLKEEPER_UPSTREAM__MAX_CONNECTIONS="1"))
    assert [tried(customer, "/responses", stack) for _ in range(20)] == [(101, "")] * 20
    with opened(customer, "/responses") as socket:
        socket.send(json.dumps({"type": "nonsense"}))
        until(socket, "error")
        assert customer.post(customer.body(max_tokens=5)).status_code == 200  # the one connection was free
        for _ in range(2):
            socket.send(create())
            until(socket, "response.completed")
    stack.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_socket_on_which_nothing_is_asked_for_is_closed(
    path: str, served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    customer = new_customer(served(TOLLKEEPER_LISTEN__SOCKET_IDLE_SECONDS="1"))
    with opened(customer, path) as socket, pytest.raises(ConnectionClosed) as closed:
        while True:
            socket.recv(timeout=20)
    assert (closed.value.rcvd.code, "Nothing was asked for" in closed.value.rcvd.reason) == (1000, True)  # type: ignore[union-attr]
    wait_until(lambda: customer.held() == 0, 10, "nothing is held")


def test_a_socket_that_waits_for_an_answer_is_not_idle(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    customer = new_customer(served(TOLLKEEPER_LISTEN__SOCKET_IDLE_SECONDS="1"))
    with opened(customer, "/responses") as socket:
        socket.send(create(sandbox_says(latency_ms=3_000)))
        assert until(socket, "response.completed")[-1]["response"]["status"] == "completed"


SECRET = "tk-customersecret"


def refused(server: Tollkeeper, query: str, **headers: str) -> int:
    try:
        with connect(server.v1.replace("http", "ws") + query, additional_headers=headers, open_timeout=10):
            return 101
    except InvalidStatus as answer:
        return answer.response.status_code


def test_a_refused_socket_is_one_line_without_its_query(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper(TOLLKEEPER_LOG__LEVEL="debug").start()
    poor = server.account()
    key = {"Authorization": f"Bearer {poor.api_key}"}
    before = len(server.log().splitlines())
    statuses = [
        refused(server, f"/realtime?model=gpt-realtime-2.1&api_key={SECRET}"),
        refused(server, f"/responses?api_key={SECRET}", **key),
        refused(server, f"/realtime?model=x%0d%0aINJECTED&{SECRET}", **key),
        refused(server, f"/realtime?{'&'.join(f'{SECRET}{n}=1' for n in range(50))}", **key),
    ]
    assert statuses == [401, 402, 400, 400]
    lines = wait_until(lambda: (found := server.log().splitlines()[before:]) and len(found) >= 4 and found, 10, "lines")
    time.sleep(0.3)  # whatever else would be logged is
    lines = [json.loads(line) for line in server.log().splitlines()[before:]]
    sockets = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in sockets] == statuses
    others = [line for line in lines if line["event"] != "request" and line.get("logger", "").startswith("uvicorn")]
    assert others == []
    assert SECRET not in server.log()
    assert poor.api_key not in server.log()
    assert "INJECTED" not in server.log()


def test_an_open_socket_leaves_no_query_either(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper(TOLLKEEPER_LOG__LEVEL="debug").start()
    account = server.account("1000")
    account.wait_balance(1_000_000)
    customer = Customer(server, account.account_id, account.api_key, None)  # type: ignore[arg-type]
    with opened(customer, f"/responses?api_key={SECRET}") as socket:
        socket.send(create())
        until(socket, "response.completed")
    wait_until(lambda: '"endpoint":"/v1/responses"' in server.log(), 10, "the response's line")
    time.sleep(0.3)
    for never in (SECRET, account.api_key, "WebSocket /v1", "connection open", "sk-canary"):
        assert never not in server.log(), never


def test_a_stream_that_is_broken_off_on_purpose_is_no_error_line(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    customer = new_customer(served())
    before = len(customer.server.log())
    with customer.stream(customer.body({"cut": {"after_chunks": 3}})) as wire:
        wire.read_all()
    time.sleep(0.5)
    errors = re.findall(r'"level":"error"[^\n]*', customer.server.log()[before:])
    assert errors == []
