"""Beginnings of requests, a few at a time.

A thousand requests that come at once would all be begun in one pass of the event loop, and every stream that runs would
wait for it. So a pass begins a few, and the sockets are looked at between.
"""

import asyncio
from collections import deque
from collections.abc import Callable

MOST_A_PASS = 16
"""Requests that begin in one pass of the loop: 2 to 5 ms of work."""

Begin = Callable[[], None]


class Turns:
    """The requests of one process that wait for their beginning, in their order."""

    __slots__ = ("_begun", "_waiting")

    def __init__(self) -> None:
        """Nothing waits."""
        self._begun = 0
        self._waiting: deque[Begin] = deque()

    def take(self, loop: asyncio.AbstractEventLoop, begin: Begin) -> None:
        """Begin now, or in one of the next passes."""
        if self._begun >= MOST_A_PASS or self._waiting:
            self._waiting.append(begin)
            return
        if not self._begun:
            loop.call_soon(self._next_pass, loop)
        self._begun += 1
        begin()

    def _next_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = min(MOST_A_PASS, len(self._waiting))
        if self._begun:  # first: a beginning that fails holds up nobody behind it
            loop.call_soon(self._next_pass, loop)
        for _ in range(self._begun):
            self._waiting.popleft()()
