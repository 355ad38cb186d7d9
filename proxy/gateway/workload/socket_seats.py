"""Seats of WebSockets in this process: how many a key and an address have open, and how fast a key opens more.

A socket holds nothing until a response is asked for on it, so no hold limits how many are open.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.web.rejections import Rejection, too_many

MINUTE = 60.0
MOST_KEYS = 10_000
"""Keys whose rate of handshakes is remembered; the one that opened a socket longest ago is forgotten."""
SEAT_MS = 5_000
"""Advice when to come again for a seat: nobody knows when one will be free."""


class SocketSeats:
    """Seats of one process."""

    def __init__(self) -> None:
        """Nobody sits."""
        self._keys: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._ahead: OrderedDict[str, float] = OrderedDict()

    @property
    def taken(self) -> int:
        """Seats that are taken now."""
        return self._keys.total()

    @contextmanager
    def seat(self, key_id: str, address: str, *, of_key: int, of_address: int) -> Iterator[None]:
        """Sit until the block ends; `of_key` and `of_address`: seats that each may have, 0 = any. Raises Rejection."""
        if of_key and self._keys[key_id] >= of_key:
            raise _full(f"This API key has {of_key} WebSockets open here, which is all it may have.")
        if of_address and address and self._addresses[address] >= of_address:
            raise _full(f"Your address has {of_address} WebSockets open here, which is all it may have.")
        self._keys[key_id] += 1
        self._addresses[address] += 1
        try:
            yield
        finally:
            for counter, name in ((self._keys, key_id), (self._addresses, address)):
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]

    def count_handshake(self, key_id: str, per_minute: int, now: float) -> None:
        """Count a handshake of a key, at most `per_minute`; 0 = any. `now` in monotonic seconds. Raises Rejection."""
        if not per_minute:
            return
        ahead = max(self._ahead.pop(key_id, now), now) + MINUTE / per_minute
        wait = ahead - now - MINUTE
        self._ahead[key_id] = ahead if wait <= 0 else ahead - MINUTE / per_minute
        if len(self._ahead) > MOST_KEYS:
            self._ahead.popitem(last=False)
        if wait > 0:
            message = f"Rate limit reached for WebSockets per minute of this API key. Try again in {wait:.1f}s."
            raise too_many(message, "rate_limit_exceeded", round(wait * 1_000))


def _full(message: str) -> Rejection:
    return too_many(f"{message} Close one first.", "too_many_sockets", SEAT_MS)
