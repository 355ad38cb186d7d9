"""Requests that wait, and clients that leave meanwhile; what a body takes; heads of answers."""

import asyncio
import tracemalloc
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from config.load import parse_settings
from proxy.server.transport.client_connection import ClientConnection
from proxy.server.transport.http_protocol import MOST_PIPELINED, GuardedProtocol, guarded
from proxy.server.transport.limits import HttpLimits
from proxy.server.transport.turns import MOST_A_PASS
from proxy.web.rejections import Rejection

ASKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Wire(asyncio.Transport):
    """A connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = self.paused = False
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Opened:
    """A protocol on a wire, and what it has begun to answer."""

    def __init__(self) -> None:
        self.answered: list[ClientConnection] = []
        self.bodies: list[bytes] = []
        self.limits = HttpLimits(parse_settings(b"", "x.toml", {}).listen, 60)

        async def answer(client: ClientConnection) -> None:
            self.answered.append(client)
            try:
                self.bodies.append(await client.read_body())
            except Rejection as refusal:
                await client.respond(refusal.status, [], b"")
                return
            await client.respond(204 if client.method == "OPTIONS" else 200, [], b"")

        async def app(*_: Any) -> None:
            raise AssertionError("not for ASGI")

        config = uvicorn.Config(app, log_config=None, proxy_headers=False)
        config.load()
        self.wire = Wire()
        self.protocol: GuardedProtocol = guarded(self.limits, answer)(
            config=config, server_state=ServerState(), app_state={}
        )
        self.protocol.connection_made(self.wire)

    def fill_the_pass(self) -> None:
        for _ in range(MOST_A_PASS):
            self.limits.turns.take(asyncio.get_running_loop(), lambda: None)

    def leave(self) -> None:
        self.wire.close()  # as uvloop's is by then
        self.protocol.connection_lost(None)


@pytest.mark.parametrize("pipelined", [1, 2])
async def test_whoever_leaves_before_its_turn_is_not_begun(pipelined: int) -> None:
    opened = Opened()
    opened.fill_the_pass()
    opened.protocol.data_received(ASKED * pipelined)
    opened.leave()
    for _ in range(5):
        await asyncio.sleep(0)
    assert opened.answered == []


async def test_requests_behind_each_other_are_answered_in_their_order() -> None:
    opened = Opened()
    opened.fill_the_pass()
    opened.protocol.data_received(ASKED + ASKED.replace(b"/chat/completions", b"/completions"))
    assert opened.answered == []
    for _ in range(8):
        await asyncio.sleep(0)
    assert [client.path for client in opened.answered] == [b"/v1/chat/completions", b"/v1/completions"]
    opened.leave()


async def test_a_client_that_sends_ahead_is_seen_to_leave_and_not_read_for_ever() -> None:
    opened = Opened()
    opened.fill_the_pass()
    opened.protocol.data_received(ASKED * MOST_PIPELINED)
    assert not opened.wire.paused
    opened.protocol.data_received(ASKED)
    assert opened.wire.paused
    for _ in range(6 * MOST_PIPELINED):
        await asyncio.sleep(0)
    assert (len(opened.answered), opened.wire.paused) == (MOST_PIPELINED + 1, False)
    opened.leave()


async def test_whoever_asks_for_something_else_ahead_is_seen_to_leave() -> None:
    opened = Opened()
    opened.fill_the_pass()
    opened.protocol.data_received(ASKED + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not opened.wire.paused
    opened.leave()


@pytest.mark.parametrize("size", [2, 5_000])
async def test_a_body_in_small_pieces_takes_little_more_room_than_its_bytes(size: int) -> None:
    opened, pieces = Opened(), 100_000 // size
    sent = b"".join(b"%0*d" % (size, number % 10**size) for number in range(pieces))
    opened.protocol.data_received(ASKED.replace(b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n"))
    await asyncio.sleep(0)
    tracemalloc.start()
    for place in range(0, len(sent), 1_000 * size):
        several = sent[place : place + 1_000 * size]
        chunks = (several[at : at + size] for at in range(0, len(several), size))
        opened.protocol.data_received(b"".join(b"%x\r\n%b\r\n" % (size, chunk) for chunk in chunks))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1.5 * len(sent) + 50_000
    opened.protocol.data_received(b"0\r\n\r\n")
    for _ in range(5):
        await asyncio.sleep(0)
    assert opened.bodies == [sent]
    opened.leave()


async def test_an_answer_without_content_says_no_length() -> None:
    opened = Opened()
    opened.protocol.data_received(ASKED.replace(b"POST", b"OPTIONS"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert opened.wire.written.startswith(b"HTTP/1.1 204 ")
    assert b"content-length" not in opened.wire.written
    opened.leave()


async def test_each_answer_lets_in_no_more_than_it_takes_away() -> None:
    opened = Opened()
    opened.protocol.data_received(ASKED * 5 * MOST_PIPELINED)
    while len(opened.answered) < 3 * MOST_PIPELINED:
        await asyncio.sleep(0)
        assert opened.wire.paused
    opened.leave()


async def test_of_a_body_that_is_refused_no_more_is_kept_while_its_client_reads_nothing() -> None:
    opened = Opened()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    opened.protocol.data_received(head)
    await asyncio.sleep(0)
    chunk = b"%x\r\n%b\r\n" % (1_048_576, b" " * 1_048_576)
    opened.protocol.data_received(chunk * (opened.limits.body_bytes // 1_048_576))
    assert not opened.wire.paused
    opened.protocol.pause_writing()
    opened.protocol.data_received(chunk)
    for _ in range(3):
        await asyncio.sleep(0)
    opened.protocol.data_received(chunk)
    assert opened.wire.paused
    opened.leave()
