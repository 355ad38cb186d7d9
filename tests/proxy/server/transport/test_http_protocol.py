"""A client that leaves while its requests wait: none of them is begun, so nothing is held or sent for nobody."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from config.load import parse_settings
from proxy.server.transport.client_connection import ClientConnection
from proxy.server.transport.http_protocol import MOST_PIPELINED, GuardedProtocol, guarded
from proxy.server.transport.limits import HttpLimits
from proxy.server.transport.turns import MOST_A_PASS

ASKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Wire(asyncio.Transport):
    """A connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write(self, data: Any) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Opened:
    """A protocol on a wire, and what it has begun to answer."""

    def __init__(self) -> None:
        self.answered: list[ClientConnection] = []
        self.limits = HttpLimits(parse_settings(b"", "x.toml", {}).listen, 60)

        async def answer(client: ClientConnection) -> None:
            self.answered.append(client)
            await client.respond(200, [], b"ok")

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
