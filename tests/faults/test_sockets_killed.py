"""kill -9 around a socket's response: what was shown is charged, what was never sent is not."""

import contextlib
import json

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.support.processes import locked
from tests.support.servers import INJECT, Account, RedisServer, Sandbox, Serve, Tollkeeper, wait_until
from tests.support.sockets import create, until

START = 1_000_000
CONNECTING = "proxy.gateway.sockets.upstream_link:UpstreamLink._connect_to:before:1"


def rich(server: Tollkeeper) -> Account:
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    return account


# I3
def test_nothing_of_a_response_is_shown_before_what_it_owes_is_on_disk(
    make_tollkeeper: Serve, sandbox: Sandbox
) -> None:
    """The journal cannot be written as the response is asked for: none of it is shown, or it is charged after a kill."""
    server = make_tollkeeper().start()
    account, shown = rich(server), 0
    url = f"{server.v1.replace('http://', 'ws://')}/realtime?model=gpt-realtime-2.1"
    with contextlib.ExitStack() as stack:
        socket = stack.enter_context(connect(url, additional_headers=account.headers))
        session = {"type": "realtime", "output_modalities": ["text"]}
        socket.send(json.dumps({"type": "session.update", "session": session}))
        until(socket, "session.updated")
        wait_until(lambda: account.held() > 0, 5, "it holds for what may come")
        stack.enter_context(locked(server.folder / "var" / "embedded.db"))
        socket.send(json.dumps({"type": "response.create"}))
        with contextlib.suppress(TimeoutError, WebSocketException):
            while True:
                shown += "delta" in json.loads(socket.recv(timeout=3))
        server.kill()
    server.start()
    wait_until(lambda: account.held() == 0, 10, "nothing is held")
    assert (shown > 0) <= bool(account.usage())
    assert account.balance() == START - sum(int(row["chargedMillicredits"]) for row in account.usage())


@pytest.mark.parametrize("store", ["embedded", "redis"])
def test_a_response_that_was_never_sent_is_not_charged(
    make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest, store: str
) -> None:
    """The upstream behind a Responses socket is connected with the first response, which may take its time."""
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "1"}
    if store == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    server = make_tollkeeper(**environment)
    mark = server.folder / "crashed"
    server.start(PYTHONPATH=INJECT, TK_CRASH_AT=CONNECTING, TK_CRASH_MARK=str(mark))
    account = rich(server)
    url = f"{server.v1.replace('http://', 'ws://')}/responses"
    with contextlib.suppress(OSError, WebSocketException), connect(url, additional_headers=account.headers) as socket:
        socket.send(create("x" * 4_000))
        until(socket, "response.completed")
    wait_until(mark.exists, 10, "it was killed")
    server.kill()
    server.start()
    wait_until(lambda: account.held() == 0, 15, "nothing is held")
    assert (sandbox.record(), account.usage(), account.balance()) == ([], [], START)
