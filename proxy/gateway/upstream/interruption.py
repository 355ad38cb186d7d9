"""Ways for an exchange with the upstream to stop short: its failure, and the switch that stops it from outside."""

from collections.abc import Callable


class UpstreamError(Exception):
    """The upstream did not give a whole answer. `sent` = it may have begun to work on the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        """`reason` is for logs: connect, busy, closed, malformed, first_byte_timeout, idle_timeout, total_timeout."""
        super().__init__(reason)
        self.reason, self.sent = reason, sent


class Interrupted(Exception):
    """Reading was stopped from outside: the client left, or the server is shutting down."""


class Interruption:
    """The one switch that stops an exchange from outside. Fires once; the first reason stays."""

    __slots__ = ("_wake", "muted", "reason")

    def __init__(self) -> None:
        """Not fired."""
        self.reason = ""
        self.muted = False
        self._wake: Callable[[], None] | None = None

    def fire(self, reason: str) -> None:
        """`client_gone` or `shutdown`."""
        if not self.reason:
            self.reason = reason
        if self._wake is not None:
            self._wake()

    def attach(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` when it fires; None = nobody waits."""
        self._wake = wake

    def check(self) -> None:
        """Raise Interrupted if it fired, unless whoever reads has muted it to drain the answer."""
        if self.reason and not self.muted:
            raise Interrupted(self.reason)
