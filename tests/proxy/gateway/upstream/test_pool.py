"""The connection pool against servers that are sockets in the test's own hand, on uvloop as it is served."""

import asyncio
import contextlib
import functools
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from config.settings import Upstream
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.interruption import Interrupted, Interruption, UpstreamError
from proxy.gateway.upstream.pool import UpstreamPool

KEY = "sk-test-upstream"
LINGER_ZERO = struct.pack("ii", 1, 0)
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test(*arguments, **named)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    return run


class Line:
    """The server's end of one connection: nothing is read, written or closed but by the test."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.received = b""

    async def read_request(self) -> bytes:
        """One whole request."""
        loop = asyncio.get_running_loop()
        while b"\r\n\r\n" not in self.received or len(self.received) < self._whole():
            part = await loop.sock_recv(self.socket, 65_536)
            assert part, f"the proxy hung up after {self.received!r}"
            self.received += part
        request, self.received = self.received[: self._whole()], self.received[self._whole() :]
        return request

    def _whole(self) -> int:
        head = self.received.partition(b"\r\n\r\n")[0]
        return len(head) + 4 + int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def hung_up(self) -> bool:
        """Wait until the proxy has closed the connection."""
        try:
            while await asyncio.get_running_loop().sock_recv(self.socket, 65_536):
                pass
        except ConnectionResetError:
            return True
        return True

    def close(self, *, rst: bool = False) -> None:
        """At once, without giving the loop a turn."""
        if rst:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.socket.close()


class Upstreamer:
    """A listener and the pool that is pointed at it."""

    def __init__(self, listener: socket.socket, pool: UpstreamPool) -> None:
        self.listener, self.pool = listener, pool
        self.lines: list[Line] = []

    async def accept(self) -> Line:
        end, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        end.setblocking(False)
        self.lines.append(Line(end))
        return self.lines[-1]

    def send(self, body: bytes = b"{}", interruption: Interruption | None = None) -> "asyncio.Task[Answer]":
        return asyncio.create_task(
            self.pool.send(
                "POST", "/chat/completions", b"X-A: b\r\n", body, interruption or Interruption(), lambda: None
            )
        )

    async def exchange(self, reply: bytes = HELLO) -> tuple[Line, Answer]:
        """One request on a new line, answered."""
        sending = self.send()
        line = await self.accept()
        await line.read_request()
        await line.say(reply)
        return line, await sending


@contextlib.asynccontextmanager
async def upstream(scheme: str = "http", **settings: Any) -> AsyncIterator[Upstreamer]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    pool = UpstreamPool(
        Upstream(base_url=f"{scheme}://127.0.0.1:{port}/v1", **settings),
        f"Authorization: Bearer {KEY}\r\n".encode(),
        "tollkeeper/test",
    )
    made = Upstreamer(listener, pool)
    try:
        yield made
    finally:
        await pool.close()
        for line in made.lines:
            line.close()
        listener.close()


async def read_all(answer: Answer) -> bytes:
    found = b""
    while part := await answer.read():
        found += part
    return found


async def body_of(answer: Answer) -> bytes:
    found = await read_all(answer)
    answer.close()
    return found


async def quiet(made: Upstreamer) -> None:
    """Prove that nobody connects: what the listener's queue holds is known at once."""
    for _ in range(20):
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        made.listener.accept()


# -- requests -------------------------------------------------------------------------------------


@on_uvloop
async def test_the_request_is_what_we_say_and_nothing_else() -> None:
    async with upstream() as made:
        sending = made.send(b'{"a":1}')
        line = await made.accept()
        port = made.listener.getsockname()[1]
        assert (
            await line.read_request()
            == (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {KEY}\r\n"
                f'User-Agent: tollkeeper/test\r\nAccept-Encoding: identity\r\nX-A: b\r\nContent-Length: 7\r\n\r\n{{"a":1}}'
            ).encode()
        )
        await line.say(b"HTTP/1.1 201 Made\r\nX-B: c\r\nx-b: d\r\ncontent-length: 0\r\n\r\n")
        answer = await sending
        assert (answer.head.status, answer.head.get(b"x-b"), await body_of(answer)) == (201, b"c", b"")


# -- keep-alive -----------------------------------------------------------------------------------


@on_uvloop
async def test_a_connection_carries_one_request_after_the_other() -> None:
    async with upstream() as made:
        line, answer = await made.exchange()
        assert await body_of(answer) == b"hello"
        for _ in range(5):
            sending = made.send()
            await line.read_request()
            await line.say(HELLO)
            assert await body_of(await sending) == b"hello"
        assert made.pool.connections == (1, 1)
        await quiet(made)


@on_uvloop
async def test_two_requests_at_once_take_two_connections() -> None:
    async with upstream() as made:
        first, second = made.send(), made.send()
        lines = [await made.accept(), await made.accept()]
        for line in lines:
            await line.read_request()
            await line.say(HELLO)
        assert [await body_of(await first), await body_of(await second)] == [b"hello", b"hello"]
        assert made.pool.connections == (2, 2)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello and what nobody asked for",
    ],
)
@on_uvloop
async def test_a_connection_that_cannot_be_trusted_again_is_not_used_again(reply: bytes) -> None:
    async with upstream() as made:
        line, answer = await made.exchange(reply)
        assert await body_of(answer) == b"hello"
        assert await line.hung_up()
        second, answer = await made.exchange()
        assert await body_of(answer) == b"hello"
        assert second is not line


@on_uvloop
async def test_what_arrives_on_an_idle_connection_closes_it() -> None:
    async with upstream() as made:
        line, answer = await made.exchange()
        await body_of(answer)
        await line.say(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        assert await line.hung_up()
        _, answer = await made.exchange()
        assert await body_of(answer) == b"hello"


@on_uvloop
async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async with upstream() as made:
        line, answer = await made.exchange()
        await body_of(answer)
        line.close()
        while made.pool.connections[1]:
            await asyncio.sleep(0.001)
        _, answer = await made.exchange()
        assert await body_of(answer) == b"hello"


@on_uvloop
async def test_an_idle_connection_is_not_used_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.gateway.upstream.pool.KEEPALIVE_SECONDS", 0.05)
    async with upstream() as made:
        line, answer = await made.exchange()
        await body_of(answer)
        before = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - before < 0.1:
            await asyncio.sleep(0.01)
        _, answer = await made.exchange()
        assert await body_of(answer) == b"hello"
        assert await line.hung_up()


@on_uvloop
async def test_a_request_that_raced_with_the_servers_close_is_sent_again() -> None:
    async with upstream() as made:
        line, answer = await made.exchange()
        await body_of(answer)
        line.close()  # and the loop gets no turn to notice: the request goes into a closed connection
        sending = made.send(b'{"only":"once"}')
        second = await made.accept()
        assert b'{"only":"once"}' in await second.read_request()
        await second.say(HELLO)
        assert await body_of(await sending) == b"hello"


@pytest.mark.parametrize("rst", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("read", [False, True], ids=["in the kernel", "read"])
@on_uvloop
async def test_a_request_of_which_a_byte_arrived_is_never_sent_again(read: bool, rst: bool) -> None:
    for _ in range(5):
        async with upstream() as made:
            line, answer = await made.exchange()
            await body_of(answer)
            sending = made.send()
            if read:
                await line.read_request()
            else:
                await asyncio.sleep(0)
                while not line.socket.recv(1, socket.MSG_PEEK):
                    await asyncio.sleep(0)
            line.close(rst=rst)
            with pytest.raises(UpstreamError) as caught:
                await sending
            assert (caught.value.reason, caught.value.sent) == ("closed", True)
            await quiet(made)


@on_uvloop
async def test_a_first_request_on_a_new_connection_is_never_sent_again() -> None:
    async with upstream() as made:
        sending = made.send()
        (await made.accept()).close()
        with pytest.raises(UpstreamError, match="closed"):
            await sending
        await quiet(made)


@on_uvloop
async def test_a_request_that_was_answered_in_part_is_never_sent_again() -> None:
    async with upstream() as made:
        line, answer = await made.exchange()
        await body_of(answer)
        sending = made.send()
        await line.read_request()
        await line.say(b"HTTP/1.1 200 OK\r\ncontent-")
        line.close()
        with pytest.raises(UpstreamError, match="closed"):
            await sending
        await quiet(made)


# -- bodies ---------------------------------------------------------------------------------------

FRAMED = {
    "length": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", b"helloworld", False),
    "chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n5;ext=1\r\nworld\r\n0\r\nx: y\r\n\r\n",
        False,
    ),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\n", b"helloworld", True),
    "informational": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
        b"helloworld",
        False,
    ),
}


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("piece", [1, 3, 1000])
@on_uvloop
async def test_every_framing_gives_the_same_body_however_it_is_cut(name: str, piece: int) -> None:
    head, body, closes = FRAMED[name]
    async with upstream() as made:
        sending = made.send()
        line = await made.accept()
        await line.read_request()
        whole = head + body

        async def talk() -> None:
            for start in range(0, len(whole), piece):
                await line.say(whole[start : start + piece])
                await asyncio.sleep(0)
            if closes:
                line.close()

        talking = asyncio.create_task(talk())
        answer = await sending
        assert answer.head.status == 200
        assert answer.head.get(b"link") == b""  # of the 103, not of the answer
        assert await read_all(answer) == b"helloworld"
        assert answer.finished
        answer.close()
        await talking
        while made.pool.connections[0] != made.pool.connections[1]:
            await asyncio.sleep(0.001)
        assert made.pool.connections == ((0, 0) if closes else (1, 1))


@pytest.mark.parametrize("name", ["length", "chunked", "informational"])
@pytest.mark.parametrize("rst", [False, True], ids=["fin", "rst"])
@on_uvloop
async def test_a_truncated_body_is_an_error_after_what_came(name: str, rst: bool) -> None:
    head, body, _ = FRAMED[name]
    async with upstream() as made:
        line, answer = await made.exchange(head + body[:8])
        found = await answer.read()
        assert b"helloworld".startswith(found)
        line.close(rst=rst)
        with pytest.raises(UpstreamError, match="closed"):
            await read_all(answer)
        answer.close()
        await quiet(made)
        assert made.pool.connections[1] == 0


@on_uvloop
async def test_a_body_until_close_that_is_reset_is_not_whole() -> None:
    async with upstream() as made:
        line, answer = await made.exchange(b"HTTP/1.1 200 OK\r\n\r\nhello")
        assert await answer.read() == b"hello"
        line.close(rst=True)
        with pytest.raises(UpstreamError, match="closed"):
            await read_all(answer)
        answer.close()


@on_uvloop
async def test_an_answer_without_a_body_is_whole_at_once() -> None:
    async with upstream() as made:
        _, answer = await made.exchange(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert await body_of(answer) == b""
        assert made.pool.connections == (1, 1)


# -- back-pressure --------------------------------------------------------------------------------


@pytest.mark.slow
@on_uvloop
async def test_a_reader_that_waits_makes_the_server_wait() -> None:
    size = 64_000_000
    async with upstream() as made:
        line, answer = await made.exchange(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        sent = 0

        async def talk() -> None:
            nonlocal sent
            while sent < size:
                sent += await asyncio.get_running_loop().run_in_executor(
                    None, _send_some, line.socket, min(1_000_000, size - sent)
                )

        talking = asyncio.create_task(talk())
        # until the server has not been able to send anything for a while
        seen = -1
        while sent != seen or not sent:
            seen = sent
            await asyncio.sleep(0.3)
        assert sent < 40_000_000  # the sockets' own buffers, and not what nobody reads
        assert sum(map(len, answer._connection.chunks)) < 1_000_000
        assert len(await read_all(answer)) == size
        await talking
        answer.close()


def _send_some(end: socket.socket, count: int) -> int:
    import select

    _, writable, _ = select.select([], [end], [], 0.05)
    try:
        return end.send(b"x" * count) if writable else 0
    except BlockingIOError:
        return 0


# -- pump -----------------------------------------------------------------------------------------


@on_uvloop
async def test_pumping_hands_over_every_byte_in_order_and_stops_when_told() -> None:
    async with upstream() as made:
        line, answer = await made.exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 26\r\n\r\nabc")
        found: list[bytes] = []

        def sink(data: bytes) -> bool:
            found.append(data)
            return b"m" not in data

        pumping = asyncio.create_task(answer.pump(sink))
        for part in (b"defgh", b"ijklm"):
            await line.say(part)
        assert await pumping is True
        await line.say(b"nopqrstuvwxyz")
        while await answer.pump(sink):
            pass
        assert b"".join(found) == b"abcdefghijklmnopqrstuvwxyz"
        answer.close()
        assert made.pool.connections == (1, 1)


@on_uvloop
async def test_a_failing_sink_fails_its_own_pump_and_no_other() -> None:
    async with upstream() as made:
        line, answer = await made.exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        pumping = asyncio.create_task(answer.pump(lambda data: {}[data]))  # type: ignore[index]
        await asyncio.sleep(0)
        await line.say(b"abc")
        with pytest.raises(KeyError):
            await pumping
        answer.close()
        assert await line.hung_up()


# -- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reply", "reason"),
    [
        ({"first_byte_timeout_seconds": 0.2}, b"", "first_byte_timeout"),
        ({"first_byte_timeout_seconds": 0.2}, b"HTTP/1.1 200 OK\r\ncontent-le", "first_byte_timeout"),
        ({"first_byte_timeout_seconds": 0.2}, b"HTTP/1.1 100 Continue\r\n\r\n", "first_byte_timeout"),
        ({"idle_timeout_seconds": 0.2}, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "idle_timeout"),
        ({"total_timeout_seconds": 0.3}, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "total_timeout"),
    ],
)
@on_uvloop
async def test_every_wait_has_a_bound(settings: dict[str, float], reply: bytes, reason: str) -> None:
    async with upstream(**settings) as made:
        sending = made.send()
        line = await made.accept()
        await line.read_request()
        await line.say(reply)
        with pytest.raises(UpstreamError) as caught:
            await read_all(await sending)
        assert caught.value.reason == reason


@on_uvloop
@pytest.mark.slow
async def test_a_slow_stream_is_not_a_silent_one() -> None:
    async with upstream(idle_timeout_seconds=2.0) as made:
        line, answer = await made.exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        reading = asyncio.create_task(read_all(answer))
        for letter in b"abcdef":
            await line.say(bytes([letter]))
            await asyncio.sleep(0.4)
        assert await reading == b"abcdef"
        answer.close()


@on_uvloop
async def test_a_handshake_that_never_ends_is_a_failed_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.gateway.upstream.pool.CONNECT_SECONDS", 0.3)
    async with upstream("https") as made:
        sending = made.send()
        await made.accept()
        with pytest.raises(UpstreamError) as caught:
            await sending
        assert (caught.value.reason, caught.value.sent, made.pool.connections) == ("connect", False, (0, 0))


@on_uvloop
async def test_above_max_connections_a_request_is_told_at_once() -> None:
    async with upstream(max_connections=1) as made:
        first = made.send()
        line = await made.accept()
        await line.read_request()
        with pytest.raises(UpstreamError) as caught:
            await made.send()
        assert (caught.value.reason, caught.value.sent) == ("busy", False)
        await line.say(HELLO)
        assert await body_of(await first) == b"hello"


# -- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"], ids=["before the head", "in the body"]
)
@on_uvloop
async def test_an_interruption_hangs_up_on_the_server(reply: bytes) -> None:
    async with upstream() as made:
        interruption = Interruption()
        sending = made.send(interruption=interruption)
        line = await made.accept()
        await line.read_request()
        await line.say(reply)
        if reply:
            answer = await sending
            assert await answer.read() == b"abc"
            reading = asyncio.create_task(answer.read())
            await asyncio.sleep(0)
            interruption.fire("client_gone")
            with pytest.raises(Interrupted):
                await reading
            answer.close()
        else:
            interruption.fire("client_gone")
            with pytest.raises(Interrupted):
                await sending
        assert await line.hung_up()
        assert made.pool.connections == (0, 0)


@on_uvloop
async def test_a_muted_interruption_lets_the_answer_be_read_to_its_end() -> None:
    async with upstream() as made:
        interruption = Interruption()
        interruption.muted = True
        sending = made.send(interruption=interruption)
        line = await made.accept()
        await line.read_request()
        interruption.fire("client_gone")
        await line.say(HELLO)
        assert await body_of(await sending) == b"hello"
        assert interruption.reason == "client_gone"


# -- TLS ------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, san: str) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=upstream", "-addext", f"subjectAltName={san}"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize(
    ("san", "trusted", "works"),
    [("IP:127.0.0.1", True, True), ("IP:127.0.0.1", False, False), ("DNS:api.openai.com", True, False)],
    ids=["right", "self-signed", "another name"],
)
@on_uvloop
async def test_only_a_certificate_that_is_trusted_and_for_this_host_is_talked_to(
    san: str, trusted: bool, works: bool, tmp_path: Path
) -> None:
    import ssl

    cert, key = certificate(tmp_path, "upstream", san)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            requests.append(await reader.readuntil(b"{}"))
            writer.write(HELLO)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    pool = UpstreamPool(
        Upstream(base_url=f"https://127.0.0.1:{port}/v1", ca_file=str(cert) if trusted else ""),
        f"Authorization: Bearer {KEY}\r\n".encode(),
        "tollkeeper/test",
    )
    try:
        sending = pool.send("POST", "/x", b"", b"{}", Interruption(), lambda: None)
        if works:
            assert await body_of(await sending) == b"hello"
        else:
            with pytest.raises(UpstreamError) as caught:
                await sending
            assert (caught.value.reason, caught.value.sent, requests) == ("connect", False, [])
    finally:
        await pool.close()
        server.close()
        await server.wait_closed()
