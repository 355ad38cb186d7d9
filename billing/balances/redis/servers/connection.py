"""One Redis connection that many requests share: commands of one event-loop tick leave in one write.

redis-py costs 33-38 µs a command here; this costs 2-3 (docs/architecture.md#the-hot-path). EVALSHA by name, replies in
order, a bound on every wait (I9), reconnecting by itself. Only the checks at start-up and preflight use redis-py.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
from hiredis import ReplyError

from billing.balances.redis.scripts import load_scripts
from billing.money.errors import BillingError, StoreUnavailable
from config.store_urls import fields_of

RECONNECT_SECONDS = 0.1
WATCH_SECONDS = 0.1
TELL_SECONDS = 0.001
"""How long what nobody waits for may wait for company: a write of its own costs as much as all else about it."""
MAX_QUEUED = 50_000

Argument = bytes | str | int


class RedisConnection:
    """A self-healing connection. `call()` returns a future; `on_connect` runs before calls are let through."""

    def __init__(self, url: str, timeout_seconds: int | float, on_connect: Callable[[str], Awaitable[None]]) -> None:
        """`on_connect(run_id)` is told which server process we reached; until it returns, `call` refuses."""
        self._address = _Address(url)
        self._timeout = timeout_seconds
        self._on_connect = on_connect
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
                async with asyncio.timeout(self._timeout):
                    await self._connect()
                    run_id = await self._greet()
                self._ready = True
                watch = asyncio.create_task(self._watch())
                try:
                    await self._on_connect(run_id)
                    await self._lost.wait()
                finally:
                    watch.cancel()
            except (OSError, TimeoutError, BillingError, hiredis.HiredisError) as error:
                self._drop(str(error) or type(error).__name__)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connect(self) -> None:
        self._lost.clear()
        self._reader = hiredis.Reader()
        where, make = self._address, lambda: _Protocol(self)
        if where.path:
            transport, _ = await self._loop.create_unix_connection(make, where.path)
        else:
            transport, _ = await self._loop.create_connection(make, where.host, where.port, ssl=where.tls)
        self._transport = transport

    async def _greet(self) -> str:
        """AUTH, SELECT, load the scripts; return the server's run id, which changes at every restart."""
        if where := self._address.credentials:
            await self._send((b"AUTH", *where))
        if self._address.database:
            await self._send((b"SELECT", self._address.database))
        for name, source in self._scripts.items():
            self._hashes[name] = await self._send((b"SCRIPT", b"LOAD", source))
        info: bytes = await self._send((b"INFO", b"server"))
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
            if future is None or future.done():
                continue
            if isinstance(reply, ReplyError):
                future.set_exception(StoreUnavailable("redis", str(reply)))
            else:
                future.set_result(reply)

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


class _Address:
    """redis://[user[:password]@]host[:port][/db], rediss:// for TLS, unix:///path?db=0.

    Fields of TLS are called as in redis-py (config/store_urls.py).
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.tls = _tls(fields_of(url)) if parts.scheme == "rediss" else None
        self.path = parts.path if parts.scheme == "unix" else ""
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 6379
        number = parse_qs(parts.query).get("db", ["0"])[0] if self.path else parts.path.strip("/") or "0"
        self.database = int(number)
        password, user = unquote(parts.password or ""), unquote(parts.username or "")
        self.credentials: tuple[str, ...] = (user, password) if user and password else ((password,) if password else ())


def _tls(fields: Mapping[str, str]) -> ssl.SSLContext:
    """Return the TLS of a URL. Raises OSError for files that cannot be read."""
    context = ssl.create_default_context(cafile=fields.get("ssl_ca_certs"))
    context.check_hostname = fields.get("ssl_check_hostname") != "false" and fields.get("ssl_cert_reqs") != "none"
    if fields.get("ssl_cert_reqs") == "none":
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in fields:
        context.load_cert_chain(fields["ssl_certfile"], fields.get("ssl_keyfile"))
    return context


def _ignore(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
