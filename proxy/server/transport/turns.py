"""Beginnings of requests, a few at a time.

A thousand requests that come at once would all be begun in one pass of the event loop, and every stream that runs would
wait for it. So a pass begins a few, and the sockets are looked at between. Where those alone fill the core, a few are
next to nothing: then beginnings have as much of it as all the rest.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

LEAST_A_PASS, MOST_A_PASS = 16, 48
"""Requests that may begin in one pass of the loop, whatever else it does: 5 ms of work, and 20."""
BEGINNING_SECONDS = 0.0004
"""About what a request takes until it waits for its upstream."""

Begin = Callable[[], None]


class Turns:
    """The requests of one process that wait for their beginning, in their order."""

    __slots__ = ("_begun", "_clock", "_seen", "_waiting")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing waits. `clock`: seconds."""
        self._begun = 0
        self._clock, self._seen = clock, 0.0
        self._waiting: deque[Begin] = deque()

    def take(self, loop: asyncio.AbstractEventLoop, begin: Begin) -> None:
        """Begin now, or in one of the next passes."""
        if self._begun >= LEAST_A_PASS or self._waiting:
            self._waiting.append(begin)
            return
        if not self._begun:
            self._seen = self._clock()
            loop.call_soon(self._next_pass, loop)
        self._begun += 1
        begin()

    def _next_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock()
        others = now - self._seen - self._begun * BEGINNING_SECONDS
        share = min(max(LEAST_A_PASS, int(others / BEGINNING_SECONDS)), MOST_A_PASS)
        self._seen, self._begun = now, min(share, len(self._waiting))
        if self._begun:  # first: a beginning that fails holds up nobody behind it
            loop.call_soon(self._next_pass, loop)
        for _ in range(self._begun):
            self._waiting.popleft()()
