"""Accepting clients' connections: as many in a pass of the event loop as its length leaves none waiting.

libuv accepts one a pass, so that processes that share a socket share its connections. Where streams fill the passes of
a worker that was next to none: with 20 ms a pass, of 200 that came at once the last waited for four seconds.
"""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable

log = logging.getLogger("tollkeeper.connections")

MOST_A_PASS = 64
ACCEPT_SECONDS = 0.0005
"""A pass accepts one for each of these that the one before took. While the loop is idle that is one: who is idle leaves
the next to another process.
"""
PAUSE_SECONDS = 0.5
"""Where none can be taken, as files or memory are short. They wait in the kernel's queue."""
ITS_OWN = (
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET),
)
"""Errors of one connection alone (accept(2)): it left before it was taken."""


class Acceptor:
    """Takes the connections of one listening socket, which does not block."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Accept from now on, each with a `protocol` of its own. `clock`: seconds."""
        self._listener, self._protocol, self._clock = listener, protocol, clock
        self._loop = asyncio.get_running_loop()
        self._most, self._since = 1, 0.0
        self._connecting: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._ready)

    async def close(self) -> None:
        """Accept nothing any more. Connections that were taken have their protocols when this returns."""
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener)
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _ready(self) -> None:
        if not self._since:
            self._since = self._clock()
            self._loop.call_soon(self._passed)
        for _ in range(self._most):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in ITS_OWN:
                    continue
                self._pause(error)
                return
            connecting = self._loop.create_task(self._connect(connection))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    def _passed(self) -> None:
        self._most = min(max(1, int((self._clock() - self._since) / ACCEPT_SECONDS)), MOST_A_PASS)
        self._since = 0.0

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()

    def _pause(self, error: OSError) -> None:
        log.error("connections cannot be taken: %s", error.strerror)
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(PAUSE_SECONDS, self._loop.add_reader, self._listener, self._ready)
