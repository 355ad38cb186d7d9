"""Holds that this process made and has not resolved, and a watch over those whose request is gone.

Whoever makes a hold resolves it, however its request ends; a hold that outlives its request is a fault of ours that
would keep money from its owner until a restart. So somebody looks.
"""

import time
from collections.abc import Container
from typing import Protocol

GRACE_SECONDS = 30.0
"""Time that a request may take to resolve its hold after it has left the list of those that live."""


class OpenHold(Protocol):
    """A hold, as the watch sees it. `owner`: its request; None where it needs none."""

    request_id: str
    owner: object | None

    async def settle_stray(self) -> None:
        """Charge what is owed for sure, or release it: nobody else will."""
        ...


class OpenHolds:
    """The open holds of this process."""

    def __init__(self) -> None:
        """Nothing is held."""
        self.by_id: dict[str, OpenHold] = {}
        """Whoever makes a hold puts it here, and takes it out when it is resolved, or detached."""
        self._gone_since: dict[str, float] = {}

    def stray(self, living: Container[object], now: float | None = None) -> list[OpenHold]:
        """Return the holds whose owner has not been among the living for longer than the grace."""
        moment = time.monotonic() if now is None else now
        self._gone_since = {name: since for name, since in self._gone_since.items() if name in self.by_id}
        found = []
        for request_id, hold in self.by_id.items():
            if hold.owner is None or hold.owner in living:
                self._gone_since.pop(request_id, None)
            elif moment - self._gone_since.setdefault(request_id, moment) > GRACE_SECONDS:
                found.append(hold)
        return found
