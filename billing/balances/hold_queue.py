"""Requests that wait a moment for their account's holds in flight, in the order they came.

The first of an account tries; the others wait for their turn. It is told when a hold of the account ends in this
process, and looks by itself for those that end in others.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator

LONGEST = 32
"""Requests of one account that wait at most: what comes then is refused at once."""
LOOK_SECONDS = 0.1
"""Between looks at the store for what ended in another process."""


class HoldQueue:
    """The waiting requests of every account."""

    def __init__(self) -> None:
        """Nobody waits."""
        self.waiting: dict[str, deque[asyncio.Event]] = {}
        """Account → its requests that wait."""

    def ended(self, account_id: str) -> None:
        """Let who waits first try: a hold of that account has ended."""
        if queue := self.waiting.get(account_id):
            queue[0].set()

    async def turns(self, account_id: str, seconds: float) -> AsyncGenerator[None, None]:
        """Yield each time it may be worth trying, for so many seconds. Close it when it was."""
        queue = self.waiting.setdefault(account_id, deque())
        if len(queue) >= LONGEST:
            return
        mine, deadline = asyncio.Event(), time.monotonic() + seconds
        queue.append(mine)
        try:
            while (left := deadline - time.monotonic()) > 0:
                first = queue[0] is mine
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_SECONDS) if first else left):
                        await mine.wait()
                mine.clear()
                if queue[0] is mine:
                    yield
        finally:
            queue.remove(mine)
            if queue:
                queue[0].set()
            else:
                del self.waiting[account_id]
