"""The charges of a bucket that Redis has and SQL does not yet: what this process settles again if Redis loses them.

Commonly a few hundred, for the second until the flush. While SQL is away they are all that was served, so what waits
longer is put together: as objects a charge takes 2.5 kB, in a pack some 100 bytes.
"""

import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import msgspec

from billing.balances.redis.script_calls import Resolution

LOOSE = 256
"""Charges that are kept as they are: more than wait in a bucket while the flush keeps up."""
PACK = 64
"""Charges in a pack. Packing takes a fraction of a millisecond, in the request that fills it."""
QUICK = 1
"""zlib's level: rows of one process are much alike, so 6 gains a tenth and takes three times as long."""

WRITER, READER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Resolution])


class _Pack(NamedTuple):
    last: tuple[int, int]
    charges: int
    data: bytes


class KeptCharges:
    """Charges in the order of the bucket's journal, or nearly. Nothing here awaits."""

    __slots__ = ("_loose", "_packs")

    def __init__(self) -> None:
        """Nothing is kept."""
        self._loose: dict[str, tuple[str, Resolution]] = {}
        self._packs: deque[_Pack] = deque()

    def __len__(self) -> int:
        """Charges that are kept."""
        return len(self._loose) + sum(pack.charges for pack in self._packs)

    def add(self, position: str, wanted: Resolution) -> None:
        """Keep a charge that is in the journal at this position."""
        self._loose[wanted.request.hold_id] = (position, wanted)
        if len(self._loose) >= LOOSE + PACK:
            self._pack()

    def trim(self, flushed: str) -> None:
        """Let go of charges that SQL has: those up to this position. A pack goes when all of it has been flushed.

        What comes after a later one goes with that.
        """
        until = _place(flushed)
        while self._packs and self._packs[0].last <= until:
            self._packs.popleft()
        if self._packs:
            return
        done = []
        for hold_id, (position, _) in self._loose.items():
            if _place(position) > until:
                break
            done.append(hold_id)
        for hold_id in done:
            del self._loose[hold_id]

    def take_all(self) -> Iterator[Resolution]:
        """Keep nothing any more; yield what was kept."""
        packs, loose = self._packs, self._loose
        self._packs, self._loose = deque(), {}
        for pack in packs:
            yield from READER.decode(zlib.decompress(pack.data))
        for _, wanted in loose.values():
            yield wanted

    def _pack(self) -> None:
        oldest = list(islice(self._loose.values(), PACK))
        last = max(_place(position) for position, _ in oldest)
        data = zlib.compress(WRITER.encode([wanted for _, wanted in oldest]), QUICK)
        self._packs.append(_Pack(last, len(oldest), data))
        for _, wanted in oldest:  # only now: what cannot be packed is kept as it is
            del self._loose[wanted.request.hold_id]


def _place(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)
