"""Client connections over the wire: how many an address has, whom idle ones make room for, who is always answered."""

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support import web
from tests.support.served import MakeCustomer
from tests.support.servers import Sandbox, Tollkeeper, wait_until
from tests.support.sockets import opened

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: tollkeeper.test\r\n"


def said(server: Tollkeeper, head: bytes = b"") -> http.client.HTTPResponse:
    """What a new connection is answered, with its body read."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.body = answer.read()  # type: ignore[attr-defined]
    return answer


@contextlib.contextmanager
def half_sent(server: Tollkeeper, number: int) -> Iterator[list[socket.socket]]:
    """Connections with a part of a head on each, which the server has read: one that it has not is idle to it."""
    with contextlib.ExitStack() as open_now:
        made = []
        for _ in range(number):
            connection = open_now.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            connection.sendall(LINE + HOST)
            made.append(connection)
        wait_until(lambda: not any(unread(server.port)), 5, "the server reads them")
        yield made


def unread(port: int) -> list[int]:
    """Bytes that wait to be read on each connection to a port of this machine, accepted or not (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}")]


def test_an_address_with_too_many_connections_is_refused_and_the_log_says_what_to_set(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    limits = {"MAX_CONNECTIONS_PER_ADDRESS": "8", "HEADER_TIMEOUT_SECONDS": "60"}
    server = served(**{f"TOLLKEEPER_LISTEN__{name}": value for name, value in limits.items()})
    customer = new_customer(server, "10")
    with half_sent(server, 8):
        answer = wait_until(lambda: said(server), 5, "the ninth is refused")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
    wait_until(lambda: customer.post(customer.body(max_tokens=1)).status_code == 200, 10, "a place is free again")
    assert "listen.trusted_proxies" in server.log()


def test_a_proxy_of_ours_is_not_counted_by_its_address(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer
) -> None:
    limits = {"MAX_CONNECTIONS_PER_ADDRESS": "4", "TRUSTED_PROXIES": '["127.0.0.1/32"]'}
    server = served(**{f"TOLLKEEPER_LISTEN__{name}": value for name, value in limits.items()})
    with half_sent(server, 30):
        assert web.get(f"{server.url}/healthz", timeout=10).status_code == 200


def test_idle_connections_make_room_and_health_is_answered_while_all_others_are_taken(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer, sandbox: Sandbox
) -> None:
    limits = {"MAX_CONNECTIONS": "32", "HEADER_TIMEOUT_SECONDS": "60"}
    server = served(**{f"TOLLKEEPER_LISTEN__{name}": value for name, value in limits.items()})
    asked = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    with contextlib.ExitStack() as open_now:
        for _ in range(90):  # three times as many as there may be: each is idle once it was answered
            connection = open_now.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            connection.sendall(asked)
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200 ")
        assert web.get(f"{server.v1}/models", timeout=10).status_code == 401
    with half_sent(server, 30):
        wait_until(lambda: said(server, LINE + HOST + b"\r\n").status == 503, 5, "it is full")
        assert web.get(f"{server.url}/healthz", timeout=10).status_code == 200
        assert web.get(f"{server.url}/readyz", timeout=10).status_code == 200


def test_a_socket_counts_among_its_addresses_connections_until_it_is_closed(
    served: Callable[..., Tollkeeper], new_customer: MakeCustomer
) -> None:
    customer = new_customer(served(TOLLKEEPER_LISTEN__MAX_CONNECTIONS_PER_ADDRESS="3"))
    server = customer.server
    with opened(customer, "/responses"), opened(customer, "/responses"), opened(customer, "/responses"):
        assert said(server).status == 429
    wait_until(lambda: web.get(f"{server.url}/healthz", timeout=10).status_code == 200, 10, "a place is free again")
    for _ in range(10):  # refused handshakes leave nothing
        with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{server.port}/v1/responses"):
            pass
    assert web.get(f"{server.url}/healthz", timeout=10).status_code == 200
