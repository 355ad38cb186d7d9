"""Ways for an exchange with the upstream to stop short: its failure, and the switch that stops it from outside."""

import errno
import socket
import ssl
from collections.abc import Callable

BY_NUMBER = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.EADDRNOTAVAIL: "local",
    errno.EMFILE: "local",
    errno.ENFILE: "local",
    errno.EACCES: "local",
    errno.EPERM: "local",
}


def connect_cause(error: BaseException) -> str:
    """Kind of a failure to connect, of metrics.CONNECT_CAUSES: it says where to look, and names no address.

    `local`: this machine has no port or file left, or may not connect.
    """
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, TimeoutError):
        return "timeout"
    return BY_NUMBER.get(getattr(error, "errno", None) or 0, "other")


class UpstreamError(Exception):
    """The upstream did not give a whole answer. `sent` = it may have begun to work on the request."""

    def __init__(self, reason: str, *, sent: bool, cause: str = "") -> None:
        """`reason` is for logs: connect, busy, closed, malformed, first_byte_timeout, idle_timeout, total_timeout.

        `cause`: of `connect`, see connect_cause.
        """
        super().__init__(reason)
        self.reason, self.sent, self.cause = reason, sent, cause


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
        """`client_gone`, `answered_late` (we gave the client a 504 and it reads no more) or `shutdown`."""
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
