"""Answers out to whoever listens to a session, as frames: what a socket and a call have in common."""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from sandbox.openai.exchange.answer import Answer, Request
from sandbox.openai.exchange.record import Entry, Log
from sandbox.openai.exchange.simulator import Simulator
from sandbox.openai.wire.delivery import Delivery, Stopped, text_frames


class Host(Protocol):
    """Server as a socket sees it."""

    simulator: Simulator
    log: Log

    def request_id(self) -> str:
        """Return a fresh x-request-id."""

    def pace(self, answer: Answer) -> tuple[float, float]:
        """Latency and interval in seconds."""


class Speaker:
    """A Wire of whole frames, and the channel of a session that speaks on it."""

    def __init__(self, request: Request, host: Host) -> None:
        """Take the request that opened it."""
        self.request, self.simulator, self._host = request, host.simulator, host
        self._tasks: set[asyncio.Task[None]] = set()

    def write(self, data: bytes) -> None:
        """Hand over frames."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until they are read."""
        raise NotImplementedError

    def close(self, *, rst: bool = False) -> None:
        """Cut it, without a closing frame."""
        raise NotImplementedError

    async def hold(self) -> None:
        """Wait for its end, which cancels."""
        raise NotImplementedError

    def lost(self) -> None:
        """Cancel the work for who is gone."""
        for task in self._tasks:
            task.cancel()

    def send(self, value: dict[str, Any]) -> None:
        """Send one event outside of any answer."""
        data = msgspec.json.encode(value)
        self.write(b"".join(text_frames(data, len(data))))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the reading of messages; it ends with the socket."""
        task = asyncio.get_running_loop().create_task(_until_stopped(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_show_fault)

    def open_entry(self, raw: bytes, body: Any) -> Entry:
        """Begin the record of one answer: the handshake's headers, and the client's message as the body."""
        request = Request(
            "WS", self.request.path, self.request.query, self.request.headers, raw, keep_alive=True, http10=False
        )
        entry = self._host.log.open_entry(request, self._host.request_id())
        entry.body = body
        self._host.log.write(entry)
        return entry

    async def deliver(self, answer: Answer, entry: Entry) -> None:
        """Send an answer made of events. Raises Stopped when a directive cut it."""
        entry.answer = answer
        latency, interval = self._host.pace(answer)
        delivery = Delivery(self, entry.request, answer, entry, entry.request_id, frames=True)
        try:
            await delivery.run(latency, interval, time.perf_counter())
        finally:
            entry.finish("client_gone")


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run work that a directive may cut short."""
    with contextlib.suppress(Stopped):
        await work


def _show_fault(task: asyncio.Task[None]) -> None:
    """Show a fault of the simulator, which ends one answer and must not end the others of a socket."""
    fault = None if task.cancelled() else task.exception()
    if fault is not None:
        traceback.print_exception(fault)
