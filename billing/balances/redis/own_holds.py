"""The holds this process lives by, and the resolutions that Redis may lose or has not been told of yet.

A resolution moves from `undelivered` (decided here) to `kept` (Redis has it, SQL not yet) to nothing (SQL has it); a
release to `released` for as long as Redis may still lose it. When a bucket has to be rebuilt, whatever of these is its
own becomes `lost`, until it is settled again (I3: a Redis that lost its last second loses no charge while the
processes live).
"""

import time
from collections import deque

from billing.balances.redis.kept_charges import KeptCharges
from billing.balances.redis.script_calls import LiveHold, Resolution, rest_after_reaping
from billing.money.buckets import BUCKETS, bucket_of

RELEASED_SECONDS = 10.0


class OwnHolds:
    """All that this process knows of its holds. Nothing here awaits."""

    def __init__(self) -> None:
        """Nothing is held yet."""
        self.live: dict[str, LiveHold] = {}
        self.undelivered: dict[str, Resolution] = {}
        self._kept = [KeptCharges() for _ in range(BUCKETS)]
        self._lost: list[dict[str, Resolution]] = [{} for _ in range(BUCKETS)]
        self._released: deque[tuple[float, Resolution]] = deque()

    def keep(self, bucket: int, wanted: Resolution, position: bytes) -> None:
        """Take a delivered resolution off the queue: a charge is kept until it is flushed, a release while Redis may
        lose it.
        """
        hold_id = wanted.request.hold_id
        self.undelivered.pop(hold_id, None)
        live = self.live.pop(hold_id, None)
        if wanted.record:
            self._kept[bucket].add(position.decode(), wanted)
        elif live is not None and live.checkpoint:
            self._released.append((time.monotonic(), wanted))

    def replace_by_rest(self, wanted: Resolution, charged: int, booked: bytes) -> Resolution | None:
        """Put what is still due after reaping in the place of what was; None when nothing is."""
        rest = rest_after_reaping(wanted, charged, booked)
        self.undelivered.pop(wanted.request.hold_id, None)
        self.live.pop(wanted.request.hold_id, None)
        if rest is not None:
            self.undelivered[rest.request.hold_id] = rest
        return rest

    def drop(self, hold_id: str) -> None:
        """Forget a hold whose charge SQL has."""
        self.undelivered.pop(hold_id, None)
        self.live.pop(hold_id, None)

    def lose(self, bucket: int) -> dict[str, Resolution]:
        """Return the bucket's resolutions that may have to be made again; those that are made are taken off it."""
        lost = self._lost[bucket]
        lost.update(
            {
                one.request.hold_id: one
                for one in self.undelivered.values()
                if bucket_of(one.request.account_id) == bucket
            }
        )
        lost.update(
            {one.request.hold_id: one for _, one in self._released if bucket_of(one.request.account_id) == bucket}
        )
        lost.update({one.request.hold_id: one for one in self._kept[bucket].take_all()})
        return lost

    def live_in(self, bucket: int) -> list[LiveHold]:
        """Return the live holds of a bucket."""
        return [one for one in self.live.values() if bucket_of(one.request.account_id) == bucket]

    def in_use(self, bucket: int, buckets_of_live: set[int]) -> bool:
        """Return whether anything of this process depends on what became of the bucket."""
        return bool(self._kept[bucket]) or bucket in buckets_of_live

    def trim(self, bucket: int, flushed: str) -> None:
        """Let go of charges that SQL has: those up to this position of the bucket's journal."""
        self._kept[bucket].trim(flushed)

    def trim_released(self) -> None:
        """Let go of releases that Redis cannot lose any more."""
        while self._released and self._released[0][0] < time.monotonic() - RELEASED_SECONDS:
            self._released.popleft()
