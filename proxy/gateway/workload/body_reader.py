"""Reading bodies beside the event loop where it takes more than a moment, one at a time.

One thread: however many large bodies arrive, they share the processor with the event loop as one competitor.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.gateway.workload.body_shape import check_shape, is_heavy

Read = TypeVar("Read")
MULTIPART = b"multipart/"


class BodyReader:
    """The one reader of a process. Its thread begins with the first heavy body."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._thread = ThreadPoolExecutor(1, "bodies")
        self.read_beside = 0
        """Bodies that were read beside the event loop."""

    async def read(self, body: bytes, content_type: bytes, read: Callable[[bytes, bytes], Read]) -> Read:
        """Return `read(body, content_type)`; a heavy body is judged by its shape first. Raises Rejection, and what it
        raises.
        """
        if not is_heavy(body):
            return read(body, content_type)
        return await self.beside(_judged, body, content_type, read)

    async def beside(self, work: Callable[..., Read], *arguments: object) -> Read:
        """Do work in proportion to a body beside the event loop, after whatever is being done there."""
        self.read_beside += 1
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _judged(body: bytes, content_type: bytes, read: Callable[[bytes, bytes], Read]) -> Read:
    if content_type[: len(MULTIPART)].lower() != MULTIPART:
        check_shape(body)
    return read(body, content_type)
