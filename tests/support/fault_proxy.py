"""A TCP proxy that loses and delays what a server answers: between the product and Redis, SQL, Stripe or the upstream.

It does what a bad network does at the worst moment: the server has carried the command out, and nobody hears of it. Or
it lets nothing through either way, without a word, until it is mended: what was under way then arrives late, as TCP sends
it again.
"""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from typing import Self

from tests.support.servers import free_port, wait_until

MOST_DELAY_SECONDS = 0.3
KINDS = ("reply lost", "reply cut", "request lost", "reply late")


class FaultProxy:
    """Forwards to a port of this machine, or a socket's path; of all pieces that pass, about one in `every` meets a fault
    between `begin` and `end`.
    """

    def __init__(self, target: int | str, every: int, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
        self.port, self.target, self.every, self.kinds = free_port(), target, every, kinds
        self.faults: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._active = False
        self._whole = asyncio.Event()
        self._whole.set()
        self._serving: set[asyncio.Task[None] | None] = set()
        """Held here, as a loop alone does not hold its tasks."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop
        ).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def begin(self) -> None:
        """Let faults happen from now on."""
        self._active = True

    def end(self) -> None:
        """Forward everything from now on."""
        self._active = False

    def cut(self) -> None:
        """Let nothing through in either direction, and close nothing: whoever is there waits."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """Let everything through again, beginning with what waits."""
        self._loop.call_soon_threadsafe(self._whole.set)

    @property
    def made(self) -> int:
        """How many faults there were."""
        return sum(self.faults.values())

    def wait_for(self, number: int, seconds: float) -> None:
        """Wait until so many faults happened."""
        wait_until(lambda: self.made >= number, seconds, f"{number} faults (there were {dict(self.faults)})")

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            await self._forward(client_in, client_out)
        finally:
            self._serving.discard(task)

    async def _forward(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            if isinstance(self.target, str):
                server_in, server_out = await asyncio.open_unix_connection(self.target)
            else:
                server_in, server_out = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            client_out.transport.abort()
            return
        both = (client_out, server_out)
        pumps = [
            asyncio.create_task(self._pump(client_in, server_out, both, answers=False)),
            asyncio.create_task(self._pump(server_in, client_out, both, answers=True)),
        ]
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the end of the proxy
                await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            for writer in both:
                writer.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, ...],
        *,
        answers: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self._whole.wait()
                fault = self._fault(answers=answers)
                if fault == "reply late":
                    await asyncio.sleep(self._dice.random() * MOST_DELAY_SECONDS)
                elif fault:
                    if fault == "reply cut":
                        sink.write(data[: len(data) // 2])
                        await sink.drain()
                    for writer in both:
                        writer.transport.abort()
                    return
                sink.write(data)
                await sink.drain()
            await self._whole.wait()
            if sink.can_write_eof():
                sink.write_eof()

    def _fault(self, *, answers: bool) -> str:
        if not self._active or self._dice.randrange(self.every):
            return ""
        fault = self._dice.choice(self.kinds)
        if answers == (fault == "request lost"):
            return ""
        self.faults[fault] += 1
        return fault
