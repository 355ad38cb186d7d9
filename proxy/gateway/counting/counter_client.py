"""A worker's side of the counting process, and the words that both sides speak.

    worker → counter    length, 4 bytes; then msgpack of [encoding, [text, ...]], in UTF-8, lone surrogates too
    counter → worker    tokens of all texts together, 8 bytes

Over a stream socket of this machine whose name has no place in the file system: nothing cleans it away. Its listener is
the supervisor's: who asks while the counter is started again waits in its backlog for the moment that this takes.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

LENGTH, COUNT = struct.Struct(">I"), struct.Struct(">Q")
LARGEST_BYTES = 1 << 26
"""Of one asking; more is counted where it is."""
ANSWER_SECONDS = 5.0
"""For any asking, and as many more as it has megabytes: 64 kB of one letter take 10 ms, and others may be before it."""
AWAY_SECONDS = 60.0
"""Without asking again, once there was no answer: each asking would wait for its time to be over."""
MOST_IDLE = 8
BACKLOG = 256

log = logging.getLogger("tollkeeper.counting")


class Asking(msgspec.Struct, array_like=True):
    """Texts to be counted in the encoding of that name."""

    encoding: str
    texts: list[bytes]


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, frame: bytes) -> int:
        """Send a frame and return the answer. Raises OSError, EOFError; the connection is of no use then."""
        self.writer.write(frame)
        await self.writer.drain()
        (counted,) = COUNT.unpack(await self.reader.readexactly(COUNT.size))
        return int(counted)


class CounterClient:
    """Asks the counting process, over as many connections as there are askings at once."""

    def __init__(self, address: bytes) -> None:
        """`address`: of listening(). Nothing is connected yet."""
        self._address = address
        self._idle: list[_Connection] = []
        self._away_until = 0.0  # of time.monotonic

    async def count(self, encoding: str, texts: Sequence[str]) -> int | None:
        """Tokens of all texts together; None where the counter does not answer or is not asked."""
        if time.monotonic() < self._away_until:
            return None
        packed = msgspec.msgpack.encode(Asking(encoding, [text.encode("utf-8", "surrogatepass") for text in texts]))
        if len(packed) > LARGEST_BYTES:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS + len(packed) / 1e6):
                return await self._ask(LENGTH.pack(len(packed)) + packed)
        except (OSError, EOFError) as error:  # a time that is over is an OSError
            self._away_until = time.monotonic() + AWAY_SECONDS
            log.warning("tk-counter does not answer (%r): counting in this worker for %d s", error, AWAY_SECONDS)
            return None

    async def _ask(self, frame: bytes) -> int:
        """Ask twice where it must be: an idle connection, or a counter, may have just ended."""
        with contextlib.suppress(ConnectionError, EOFError):
            return await self._ask_over(self._idle.pop() if self._idle else await self._connect(), frame)
        return await self._ask_over(await self._connect(), frame)

    async def _ask_over(self, connection: _Connection, frame: bytes) -> int:
        kept = False
        try:
            counted = await connection.ask(frame)
            kept = len(self._idle) < MOST_IDLE
        finally:  # also who is cancelled: the answer would be the next one's
            if kept:
                self._idle.append(connection)
            else:
                connection.writer.close()
        return counted

    async def _connect(self) -> _Connection:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.setblocking(False)
        try:
            plain.connect(self._address)  # at once, or BlockingIOError: the backlog is full
        except OSError:
            plain.close()
            raise
        return _Connection(*await asyncio.open_unix_connection(sock=plain))

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().writer.close()


def listening() -> socket.socket:
    """Make a socket for the counting process; its name is its address. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0tollkeeper-counter-{secrets.token_hex(16)}")
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
