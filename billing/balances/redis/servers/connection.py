"""One Redis connection that many requests share: commands of one event-loop tick leave in one write.

redis-py costs 33-38 µs a command here; this costs 2-3 (docs/architecture.md#the-hot-path). EVALSHA by name, replies in
order, a bound on every wait (I9), reconnecting by itself. Only the checks at start-up and preflight use redis-py.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import hiredis
from hiredis import ReplyError

from billing.balances.redis.scripts import load_scripts
from billing.balances.redis.servers.address import NodeAddress
from billing.money.errors import BillingError, StoreUnavailable

log = logging.getLogger("tollkeeper.redis")

RECONNECT_SECONDS = 0.1
WATCH_SECONDS = 0.1
TELL_SECONDS = 0.001
"""How long what nobody waits for may wait for company: a write of its own costs as much as all else about it."""
MAX_QUEUED = 50_000

ELSEWHERE = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")
"""Begin the answer of a cluster's node that does not serve these keys, or not now. Nothing was carried out."""
OUTDATED = ("READONLY", "NOSCRIPT")
"""In the answer of a server that is not as it was greeted: it was made a replica, or forgot the scripts."""

Argument = bytes | str | int


class Elsewhere(StoreUnavailable):
    """A bucket is served by another node of the cluster, or on its way there; nothing was carried out."""


STALE = (b"epoch",)
"""Answer of a script whose token does not fit."""


async def answer_to(asked: Awaitable[Any]) -> Any:
    """Return a script's answer; as of a token that does not fit, where the bucket is elsewhere: it is entered anew."""
    try:
        return await asked
    except Elsewhere:
        return STALE


class RedisConnection:
    """A self-healing connection to one server. `call()` returns a future."""

    def __init__(
        self,
        locate: Callable[[], Awaitable[NodeAddress]],
        timeout_seconds: int | float,
        on_connect: "Callable[[RedisConnection], None]",
        on_elsewhere: Callable[[], None],
    ) -> None:
        """`locate()` names the server, anew each time; `on_connect` is told when one was reached (see `run_id`),
        `on_elsewhere` of each answer that keys are not served there.
        """
        self._locate, self._timeout = locate, timeout_seconds
        self._on_connect, self._on_elsewhere = on_connect, on_elsewhere
        self.address: NodeAddress | None = None
        """The server that was reached last."""
        self.run_id = ""
        """Of its process: another at each start."""
        self.failure = ""
        """What kept us from reaching one."""
        self._scripts = load_scripts()
        self._hashes: dict[str, bytes] = {}
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        """Who gets the next replies; None: nobody."""
        self._replies = 0
        self._out: list[bytes] = []
        self._flush_due = self._late_flush_due = False
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._ready = False
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """True while calls are let through."""
        return self._ready

    def start(self) -> None:
        """Keep the connection up from now on."""
        self._task = asyncio.create_task(self._keep(), name="redis-connection")

    async def close(self) -> None:
        """Drop the connection for good."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop("closed")

    def run(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> "asyncio.Future[Any]":
        """Run a script by name. Raises StoreUnavailable at once when the connection is down."""
        if not self._ready:
            raise StoreUnavailable("redis", "is not reachable")
        return self._send((b"EVALSHA", self._hashes[name], len(keys), *keys, *arguments))

    def tell(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        """Run a script whose reply nobody waits for, with what is sent next, at most `TELL_SECONDS` later.

        Raises StoreUnavailable at once when the connection is down.
        """
        if not self._ready or self._transport is None or len(self._waiting) >= MAX_QUEUED:
            raise StoreUnavailable("redis", "is not reachable")
        self._waiting.append(None)
        self._pack((b"EVALSHA", self._hashes[name], len(keys), *keys, *arguments))
        if not self._late_flush_due:
            self._late_flush_due = True
            self._loop.call_later(TELL_SECONDS, self._flush_late)

    def push(self) -> None:
        """Send at once what would wait for company; nothing, where there is nothing."""
        if self._out:
            self._flush()

    def call(self, *command: Argument) -> "asyncio.Future[Any]":
        """Run a plain command. Raises StoreUnavailable at once when the connection is down."""
        if not self._ready:
            raise StoreUnavailable("redis", "is not reachable")
        return self._send(command)

    def _send(self, command: Sequence[Argument]) -> "asyncio.Future[Any]":
        if self._transport is None or len(self._waiting) >= MAX_QUEUED:
            raise StoreUnavailable("redis", "is not reachable")
        future = self._loop.create_future()
        self._waiting.append(future)
        self._pack(command)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        return future

    def _pack(self, command: Sequence[Argument]) -> None:
        self._out.append(hiredis.pack_command(tuple(command)))  # type: ignore[arg-type]

    def _flush(self) -> None:
        self._flush_due = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _flush_late(self) -> None:
        self._late_flush_due = False
        self._flush()

    async def _keep(self) -> None:
        """Connect, greet, watch; again for ever."""
        while True:
            try:
                where = await self._locate()
                async with asyncio.timeout(self._timeout):
                    await self._connect(where)
                    self.run_id = await self._greet(where)
                self.address, self._ready, self.failure = where, True, ""
                watch = asyncio.create_task(self._watch())
                try:
                    self._on_connect(self)
                    await self._lost.wait()
                finally:
                    watch.cancel()
            except (OSError, TimeoutError, BillingError, hiredis.HiredisError) as error:
                self.failure = str(error) or type(error).__name__
                self._drop(self.failure)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connect(self, where: NodeAddress) -> None:
        self._lost.clear()
        self._reader = hiredis.Reader()
        make = partial(_Protocol, self)
        if where.path:
            transport, _ = await self._loop.create_unix_connection(make, where.path)
        else:
            transport, _ = await self._loop.create_connection(make, where.host, where.port, ssl=where.tls)
        self._transport = transport

    async def _greet(self, where: NodeAddress) -> str:
        """AUTH, SELECT, load the scripts; return the server's run id, which changes at every restart.

        A replica is refused: it was promoted a moment too late, or its address is still an old primary's.
        """
        if where.credentials:
            await self._send((b"AUTH", *where.credentials))
        if where.database:
            await self._send((b"SELECT", where.database))
        for name, source in self._scripts.items():
            self._hashes[name] = await self._send((b"SCRIPT", b"LOAD", source))
        info: bytes = await self._send((b"INFO", b"replication"))
        if b"role:master" not in info:
            raise StoreUnavailable("redis", f"{where} is a replica, which takes no writes")
        info = await self._send((b"INFO", b"server"))
        return next(line[7:] for line in info.decode().splitlines() if line.startswith("run_id:"))

    async def _watch(self) -> None:
        """Drop a connection whose oldest command has waited too long; probe an idle one.

        Time is counted in looks, at each of which replies could have been read: a process that was itself not running
        for a second (a busy machine, a suspended one) does not take Redis for dead.
        """
        waited, replies, looks = False, 0, 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            looks = looks + 1 if waited and self._replies == replies else 0
            waited, replies = bool(self._waiting), self._replies
            if looks * WATCH_SECONDS >= self._timeout:
                self._drop("does not answer in time")
                return
            if not self._waiting and self._ready:
                with contextlib.suppress(StoreUnavailable):
                    self._send((b"PING",)).add_done_callback(_ignore)

    def received(self, data: bytes) -> None:
        """Hand replies to those that wait for them, in order."""
        next_reply, waiting = self._reader.gets, self._waiting
        self._reader.feed(data)
        self._replies += 1
        while (reply := next_reply()) is not False:
            if not waiting:
                self._drop("sent a reply nobody asked for")
                return
            future = waiting.popleft()
            if isinstance(reply, ReplyError):
                self._refused(future, str(reply))
            elif future is not None and not future.done():
                future.set_result(reply)

    def _refused(self, future: "asyncio.Future[Any] | None", answer: str) -> None:
        """Hand an error to who waits for it, and look into what it says of the server."""
        elsewhere = answer.startswith(ELSEWHERE)
        if elsewhere:
            self._on_elsewhere()
        elif any(word in answer for word in OUTDATED) and self._transport is not None:
            self._loop.call_soon(self.lost, self._transport)
        if future is not None and not future.done():
            future.set_exception(
                Elsewhere("redis", f"a node of a cluster answered {answer}")
                if elsewhere
                else StoreUnavailable("redis", answer)
            )

    def drop(self, reason: str) -> None:
        """Leave this server, and look for one anew."""
        log.warning("%s is left: %s", self.address, reason)
        self._drop(reason)

    def lost(self, transport: asyncio.BaseTransport) -> None:
        """Drop a connection that broke, if it is still ours."""
        if transport is self._transport:
            self._drop("closed the connection")

    def _drop(self, reason: str) -> None:
        """Close; what was on its way may have been carried out: in doubt."""
        self._ready = False
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._out.clear()
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(StoreUnavailable("redis", reason, in_doubt=True))
                future.add_done_callback(_ignore)
        self._lost.set()


class _Protocol(asyncio.Protocol):
    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._connection.received(data)
        except hiredis.ProtocolError:
            self._connection.lost(self._transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._connection.lost(self._transport)


def _ignore(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
