"""One answer of the upstream being read, within its times."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from config.settings import Upstream
from proxy.gateway.upstream.coding import Decoder, decoder_of
from proxy.gateway.upstream.connection import Head, UpstreamConnection
from proxy.gateway.upstream.interruption import Interruption, UpstreamError

AnswerLate = Callable[[], Awaitable[None]]
"""What to do once when the head of an answer is late, instead of giving it up."""


class Early(NamedTuple):
    """A look, again and again, at an upstream whose head does not come in so many seconds.

    It raises UpstreamError to give it up; else the head is waited for as ever.
    """

    seconds: float
    look: AnswerLate


NO_HEAD = Head(0, [])
MAX_RESPONSE_BYTES = 268_435_456
"""Of an answer that is not streamed: it is collected whole."""


class Answer:
    """One answer being read. Not for concurrent readers. Always end with `close()`."""

    __slots__ = (
        "_connection",
        "_deadline",
        "_decoder",
        "_first_byte_seconds",
        "_interruption",
        "_late",
        "_loop",
        "_patient",
        "_peeked",
        "_settings",
        "_started",
        "_waiting",
        "head",
    )

    def __init__(
        self,
        waiting: "set[Answer]",
        connection: UpstreamConnection,
        settings: Upstream,
        interruption: Interruption,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Join `waiting`, the answers whose times somebody looks after, until it is closed."""
        self._waiting, self._connection, self._settings = waiting, connection, settings
        self._loop = loop
        self._started = self._loop.time()
        self._deadline = self._started + settings.total_timeout_seconds
        self._first_byte_seconds = settings.first_byte_timeout_seconds
        waiting.add(self)
        self._interruption = interruption
        interruption.attach(connection.wake)
        self.head = NO_HEAD
        self._decoder: Decoder | None = None
        self._peeked = b""
        self._late = self._patient = False

    async def wait_head(self, answer_late: AnswerLate | None = None, early: Early | None = None) -> None:
        """Wait for status and headers: as long as `first_byte_timeout_seconds`, or, where `answer_late` is called then,
        on to the total timeout. `early`: look before. Raises UpstreamError, Interrupted.
        """
        if early is not None:
            self._first_byte_seconds = min(early.seconds, self._first_byte_seconds)
        connection = self._connection
        while not connection.has_head:
            if connection.failure:
                raise UpstreamError(connection.failure, sent=True)
            if self._late and not self._patient:
                if early is not None:
                    try:
                        await early.look()
                    except UpstreamError:
                        if not connection.has_head:  # it may have come while we looked
                            raise
                    self._late, most = False, self._settings.first_byte_timeout_seconds
                    self._first_byte_seconds = min(self._loop.time() - self._started + early.seconds, most)
                    early = early if self._first_byte_seconds < most else None
                    continue
                if answer_late is None:
                    raise UpstreamError("first_byte_timeout", sent=True)
                self._patient = True
                await answer_late()
                continue
            await self._wait()
        self.head = Head(connection.status, connection.headers)
        if coding := self.head.get(b"content-encoding"):
            self._decoder = decoder_of(coding)
        connection.last_data = self._loop.time()

    async def read(self) -> bytes:
        """Read the next bytes of the body, as much as is there; empty at its end. Raises UpstreamError, Interrupted."""
        if self._peeked:
            data, self._peeked = self._peeked, b""
            return data
        connection = self._connection
        while True:
            while not connection.chunks:
                if connection.complete:
                    self._check_end()
                    return b""
                if connection.failure:
                    raise UpstreamError(connection.failure, sent=True)
                await self._wait()
            if data := self._take():
                return data

    async def collect(self, limit: int = MAX_RESPONSE_BYTES) -> bytes:
        """Read the whole body. Raises UpstreamError when it is cut, or larger than `limit` bytes; Interrupted."""
        parts, size = [], 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                raise UpstreamError("too_large", sent=True)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def peek(self, are_too_few: Callable[[bytes], bool] | None = None) -> bytes:
        """Look at the first bytes of the body, which stay to be read; empty for an empty body.

        `are_too_few`: which bytes say too little, so that more are waited for. Raises UpstreamError, Interrupted.
        """
        seen = await self.read()
        while are_too_few is not None and are_too_few(seen) and (more := await self.read()):
            seen += more
        self._peeked = seen
        return seen

    def put_back(self, data: bytes) -> None:
        """Let bytes that were read be read again."""
        self._peeked = data + self._peeked

    def _take(self) -> bytes:
        data = self._connection.take()
        return data if self._decoder is None else self._decoder.decode(data, MAX_RESPONSE_BYTES)

    def _check_end(self) -> None:
        if self._decoder is not None and self.received and not self._decoder.whole:
            raise UpstreamError("malformed", sent=True)

    async def pump(self, sink: Callable[[bytes], bool]) -> bool:
        """Hand every piece of the body to `sink` as it arrives, from the socket's own callback.

        Returns True when `sink` returned False (call again to go on), False at the body's end. Raises UpstreamError,
        Interrupted, and whatever `sink` raises.
        """
        connection, decoder = self._connection, self._decoder
        if self._peeked:
            data, self._peeked = self._peeked, b""
            if not sink(data):
                return True

        def decoded(data: bytes) -> bool:
            plain = decoder.decode(data, MAX_RESPONSE_BYTES) if decoder is not None else data
            return sink(plain) if plain else True

        pour = sink if decoder is None else decoded
        while True:
            if connection.chunks:
                if not pour(connection.take()):
                    return True
            elif connection.complete:
                self._check_end()
                return False
            elif connection.failure:
                raise UpstreamError(connection.failure, sent=True)
            else:
                connection.sink, connection.stopped = pour, False
                try:
                    await self._wait()
                finally:
                    connection.sink = None
                if connection.stopped:
                    return True

    @property
    def received(self) -> int:
        """Bytes of the body so far."""
        return self._connection.received

    @property
    def finished(self) -> bool:
        """True once the whole body has arrived and been read."""
        return self._connection.complete and not self._connection.chunks

    @property
    def heard_at(self) -> float:
        """Time of the loop's clock at which the upstream last said something."""
        return self._connection.last_data

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else cut it."""
        self._waiting.discard(self)
        self._interruption.attach(None)
        connection = self._connection
        if connection.started:
            if connection.complete and not connection.chunks:
                connection.finish()
            else:
                connection.abort()
                connection.started = False

    async def _wait(self) -> None:
        connection = self._connection
        self._interruption.check()
        connection.waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            connection.waiter = None
        self._interruption.check()

    def overdue(self, now: float) -> str:
        """Name the bound of time that is passed, "" for none.

        Silence counts only while we wait for the upstream, not while our client reads slowly.
        """
        connection = self._connection
        if now >= self._deadline:
            return "total_timeout"
        if not connection.has_head:
            late = not self._patient and now - self._started >= self._first_byte_seconds
            return "first_byte_timeout" if late else ""
        if connection.waiter is None:
            connection.last_data = now
            return ""
        return "idle_timeout" if now - connection.last_data >= self._settings.idle_timeout_seconds else ""

    def fail(self, reason: str) -> None:
        """Make the reader raise UpstreamError(reason); a head that is only late is for who waits for it to judge."""
        if reason == "first_byte_timeout":
            self._late = True
            self._connection.wake()
        else:
            self._connection.fail(reason)
