"""Connections are accepted at the pace of the loop's passes, whatever becomes of one of them."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest

from proxy.server.transport import accepting
from proxy.server.transport.accepting import ACCEPT_SECONDS, MOST_A_PASS, Acceptor


class Listener(socket.socket):
    """A listening socket that counts its accepts, and fails as it is told."""

    failures: list[int]
    taken = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise OSError(self.failures.pop(0), "made to fail")
        found = super().accept()
        self.taken += 1
        return found


class Greeting(asyncio.Protocol):
    """Says hello."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


class Clock:
    """Passes take so long."""

    now = 100.0
    a_pass = 0.0

    def __call__(self) -> float:
        self.now += self.a_pass
        return self.now


@pytest.fixture
def listener() -> Listener:
    found = Listener()
    found.failures = []
    found.bind(("127.0.0.1", 0))
    found.listen(500)
    found.setblocking(False)
    return found


@pytest.fixture
async def clock(listener: Listener) -> AsyncIterator[Clock]:
    """The clock of an acceptor at work."""
    clock = Clock()
    acceptor = Acceptor(listener, Greeting, clock)
    yield clock
    await acceptor.close()
    listener.close()


async def came(listener: Listener, number: int) -> list[socket.socket]:
    """So many clients that are connected, as far as the kernel has to do with it."""
    return [socket.create_connection(listener.getsockname()) for _ in range(number)]


async def taken_a_pass(listener: Listener, passes: int) -> list[int]:
    """How many were accepted in each of the next passes that accepted any."""
    found: list[int] = []
    for _ in range(50 * passes):
        before = listener.taken
        await asyncio.sleep(0)
        if listener.taken > before:
            found.append(listener.taken - before)
        if len(found) == passes:
            break
    return found


async def greeted(clients: list[socket.socket]) -> bool:
    def read(client: socket.socket) -> bytes:
        with client:
            client.settimeout(20)
            return client.recv(5)

    return [await asyncio.to_thread(read, client) for client in clients] == [b"hello"] * len(clients)


@pytest.mark.parametrize(
    ("a_pass", "taken"),
    [
        pytest.param(0.0, [1, 1, 1], id="an idle loop leaves the next to another process"),
        pytest.param(10 * ACCEPT_SECONDS + 1e-6, [1, 10, 10], id="a busy one takes as many as came meanwhile"),
        pytest.param(0.2, [1, MOST_A_PASS, MOST_A_PASS], id="a very busy one not all at once"),
    ],
)
async def test_as_many_are_accepted_as_passes_are_long(
    listener: Listener, clock: Clock, a_pass: float, taken: list[int]
) -> None:
    clock.a_pass = a_pass
    clients = await came(listener, 200)
    assert await taken_a_pass(listener, 3) == taken
    assert await greeted(clients)


@pytest.mark.parametrize("failure", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_whoever_comes_while_files_are_short_is_served_afterwards(
    listener: Listener, clock: Clock, failure: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE_SECONDS", 0.05)
    listener.failures = [failure, failure]
    clock.a_pass = 0.2
    assert await greeted(await came(listener, 3))
    assert listener.failures == []


@pytest.mark.usefixtures("clock")
async def test_a_client_that_left_before_it_was_taken_holds_up_nobody(listener: Listener) -> None:
    listener.failures = [errno.ECONNABORTED, errno.EHOSTUNREACH]
    assert await greeted(await came(listener, 2))


async def test_nobody_is_accepted_after_the_end(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "PAUSE_SECONDS", 0.05)
    listener.failures = [errno.EMFILE]
    acceptor = Acceptor(listener, Greeting)
    clients = await came(listener, 1)
    while listener.failures:
        await asyncio.sleep(0.01)
    await acceptor.close()
    await asyncio.sleep(0.2)
    assert listener.taken == 0
    listener.close()
    assert len(clients) == 1


async def test_who_was_taken_has_a_protocol_at_the_end(listener: Listener) -> None:
    """Or nobody would tell the connection that the server stops, and the server would wait for it."""
    made: list[asyncio.BaseTransport] = []

    class Noting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)

    acceptor = Acceptor(listener, Noting)
    clients = await came(listener, 1)
    while not listener.taken:
        await asyncio.sleep(0)
    assert made == []
    await acceptor.close()
    assert len(made) == len(clients)
    made[0].abort()
    listener.close()
