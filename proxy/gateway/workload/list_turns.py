"""Turns of lists in this process: an account's own objects are looked up for one list after the other.

Each object of a list is asked for upstream by itself, and where a filter leaves most of them out there may be hundreds:
so an account asks for a few at a time, however many lists it wants at once.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.web.rejections import too_many

MOST_WAITING = 8
"""Lists of an account that are asked for at once; further ones are told to come again."""
AGAIN_MS = 1_000


class ListTurns:
    """Turns of one process."""

    def __init__(self) -> None:
        """Nobody lists."""
        self._asked: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def turn(self, account_id: str) -> AsyncIterator[None]:
        """Wait for the account's turn; it lasts until the block ends. Raises Rejection (429)."""
        if self._asked[account_id] >= MOST_WAITING:
            message = f"{MOST_WAITING} lists of this account are being looked up. Wait for one to finish."
            raise too_many(message, "too_many_lists", AGAIN_MS)
        self._asked[account_id] += 1
        try:
            async with self._locks.setdefault(account_id, asyncio.Lock()):
                yield
        finally:
            self._asked[account_id] -= 1
            if not self._asked[account_id]:
                del self._asked[account_id], self._locks[account_id]
