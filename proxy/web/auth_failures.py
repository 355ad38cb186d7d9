"""Failures to authenticate, counted by address. Beyond a limit it is refused (429) instead of looked up.

Only failures count, and what was proven once is let through, however often others fail behind the same address (an
office, a proxy that is not in `listen.trusted_proxies`): they lose nothing but the first request of a new key, for a
minute at most. Per process, bounded in memory. docs/adr/0034 says why Stripe's deliveries are verified before this is
asked.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from proxy.web.client_address import client_address
from proxy.web.rejections import too_many

WINDOW_SECONDS = 60.0
MOST_ADDRESSES = 10_000
"""Addresses remembered, of all kinds together; the one that failed longest ago is forgotten."""
MOST_PROVEN = 10_000
IPV6_PREFIX = 64
"""Length of the prefix that one customer of a provider is given, and may choose addresses from."""
REFUSED = "Too many requests from your address failed to authenticate. Wait a minute."

Kind = Literal["key", "admin", "webhook"]
"""The thing not proven: an API key, an admin's key or token, a signature of Stripe's. Each is counted apart."""


class AuthFailures:
    """Failures of one process."""

    def __init__(
        self, most: int = 0, trusted: Sequence[str] = (), report: Callable[[Kind], None] = lambda _: None
    ) -> None:
        """`most` in a minute, 0: no limit. `trusted`: networks of our own proxies. `report` is told of each refusal."""
        self._most, self._trusted, self._report = most, [ip_network(network) for network in trusted], report
        self._failed: OrderedDict[tuple[Kind, str], tuple[float, int]] = OrderedDict()
        self._proven: OrderedDict[str, None] = OrderedDict()

    def address_of(self, peer: Any, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Address of a request's sender: the peer (host and port, or None), or whom a proxy of ours names."""
        return client_address({"client": peer, "headers": headers}, self._trusted)

    def check(self, kind: Kind, address: str, digest: str = "") -> None:
        """Raise Rejection (429) while the address has failed too often, unless this hash was proven before."""
        since, times = self._failed.get((kind, _counted(address)), (0.0, 0)) if self._most else (0.0, 0)
        left = since + WINDOW_SECONDS - time.monotonic()
        if times and times >= self._most and left > 0 and digest not in self._proven:
            self._report(kind)
            raise too_many(REFUSED, "too_many_failures", round(left * 1_000))

    def count(self, kind: Kind, address: str) -> None:
        """Count a failure; without an address nobody is refused for it."""
        if not self._most or not address:
            return
        now, key = time.monotonic(), (kind, _counted(address))
        since, times = self._failed.pop(key, (now, 0))
        self._failed[key] = (since, times + 1) if now - since < WINDOW_SECONDS else (now, 1)
        if len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)

    def remember_proof(self, digest: str) -> None:
        """Remember a key or token that was proven, by its hash."""
        self._proven[digest] = None
        self._proven.move_to_end(digest)
        if len(self._proven) > MOST_PROVEN:
            self._proven.popitem(last=False)


def _counted(address: str) -> str:
    if ":" not in address:
        return address
    return str(ip_network((int(ip_address(address)) >> (128 - IPV6_PREFIX) << (128 - IPV6_PREFIX), IPV6_PREFIX)))
