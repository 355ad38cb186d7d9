"""Health of one upstream as this process sees it: a circuit for all of it, rests for single models. Pure.

    closed ──refusal of our key or quota, or three failures in a row──▶ open
    open   ──its pause is over, and its list of models (which costs nothing) is answered──▶ on trial
    trial  ──it serves──▶ closed;   ──the next failure──▶ open, for twice as long

Times are seconds of the loop's clock.
"""

from math import inf

FAILURES = 3
"""Failures in a row that open it."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
LONGEST_REST = 120.0
"""A model rests no longer, whatever a header says."""
QUOTA = ("quota", "billing")
"""Refusals that a list of models does not show the end of."""
QUOTA_PAUSE = 15.0


class Circuit:
    """Open: others are asked first. It never forbids anything."""

    __slots__ = ("_failures", "_opened", "_pause", "_rests", "_until", "on_trial", "reason")

    def __init__(self) -> None:
        """Begin closed."""
        self._failures, self._pause, self._until = 0, FIRST_PAUSE, 0.0
        self._opened = 0.0
        self._rests: dict[str, float] = {}
        self.on_trial = False
        self.reason = ""
        """Why it is open, "" while it is not."""

    def served(self, began: float = inf) -> None:
        """Take note of an answer to what began then: one from before it was opened says nothing of now."""
        if (self._failures or self.reason or self.on_trial) and began > self._opened:
            self._failures, self._pause = 0, FIRST_PAUSE
            self.reason, self.on_trial = "", False

    def failed(self, reason: str, now: float, *, at_once: bool = False) -> None:
        """Take note of a failure; `at_once`: one is enough."""
        self._failures += 1
        if self.reason or not (at_once or self.on_trial or self._failures >= FAILURES):
            return
        if self.on_trial:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        self.reason, self.on_trial, self._opened = reason, False, now
        self._until = now + max(self._pause, QUOTA_PAUSE if reason in QUOTA else 0.0)

    def wants_probe(self, now: float) -> bool:
        """Tell whether it is open, and its pause over."""
        return bool(self.reason) and now >= self._until

    def probed(self, now: float, *, answered: bool) -> None:
        """Take the outcome of a probe."""
        if answered:
            self.reason, self.on_trial = "", True
        else:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            self._until = now + self._pause

    def rest(self, model: str, now: float, seconds: float) -> None:
        """Ask others first for a model, for so long."""
        self._rests[model] = now + min(seconds, LONGEST_REST)

    def rests(self, model: str, now: float) -> bool:
        """Tell whether a model rests."""
        until = self._rests.get(model)
        if until is None:
            return False
        if until <= now:
            del self._rests[model]
            return False
        return True
