"""Client connections of a worker, counted: by address, those that are idle, and the last few kept for health checks.

Nobody fills a worker alone, and who asks for nothing makes room for who asks for something.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Literal, NamedTuple

from proxy.web.client_address import network_of

RESERVED_SHARE, MOST_RESERVED = 16, 32
"""A sixteenth of a worker's connections, at most so many, is for health checks alone."""
RESERVED_PER_ADDRESS = 4
TOLD_SECONDS = 60.0

Place = Literal["any", "health", "address", "full"]
"""What a connection may do: anything, ask for health; or why it may do nothing."""
Close = Callable[[], None]


class ConnectionCaps(NamedTuple):
    """Connections that a worker has at once, from one address (0 = any), and the networks of our own proxies."""

    most: int
    per_address: int = 0
    trusted: Sequence[str] = ()


class Connections:
    """All client connections of one process. A connection is any hashable object."""

    def __init__(self, caps: ConnectionCaps, report: Callable[[str], None] = lambda _: None) -> None:
        """`report` is told of an address that has too many, at most once a minute."""
        self._caps, self._report = caps, report
        self._trusted = [ip_network(network) for network in caps.trusted]
        self._reserved = min(caps.most // RESERVED_SHARE, MOST_RESERVED)
        self._of: dict[Hashable, str] = {}
        self._counts: Counter[str] = Counter()
        self._health: Counter[str] = Counter()
        self._in_reserve: dict[Hashable, str] = {}
        self._idle: OrderedDict[Hashable, Close] = OrderedDict()
        self._told = -TOLD_SECONDS

    def __len__(self) -> int:
        """Count those there are."""
        return len(self._of)

    def enter(self, connection: Hashable, peer: str, close: Close) -> Place:
        """Count a new connection, idle until it asks for something; where there is no place, it is not counted.

        `close` ends it. `peer`: its address, "" for none.
        """
        address = self._address(peer)
        if address and self._caps.per_address and self._counts[address] >= self._caps.per_address:
            self._tell(address)
            if not self._close_idle(address):
                return "address"
        place: Place = "any"
        if len(self._of) >= self._caps.most - self._reserved and not self._close_idle():
            if len(self._of) >= self._caps.most or self._health[address] >= RESERVED_PER_ADDRESS:
                return "full"
            place = "health"
            self._health[address] += 1
            self._in_reserve[connection] = address
        self._of[connection] = address
        self._counts[address] += 1
        self._idle[connection] = close
        return place

    def rest(self, connection: Hashable, close: Close) -> None:
        """Take note that a connection waits for its next request."""
        if connection in self._of:
            self._idle[connection] = close

    def work(self, connection: Hashable) -> None:
        """Take note that a connection asks for something."""
        self._idle.pop(connection, None)

    def leave(self, connection: Hashable) -> None:
        """Forget a connection that is gone, or was never counted."""
        self._idle.pop(connection, None)
        for kept, counts in ((self._of, self._counts), (self._in_reserve, self._health)):
            address = kept.pop(connection, None)
            if address is not None:
                counts[address] -= 1
                if counts[address] <= 0:
                    del counts[address]

    def _close_idle(self, address: str | None = None) -> bool:
        """Close the connection that has been idle longest, of an address or of any; False when there is none."""
        found = next((one for one in self._idle if address in (None, self._of[one])), None)
        if found is None:
            return False
        close = self._idle[found]
        self.leave(found)
        close()
        return True

    def _address(self, peer: str) -> str:
        """Address as it is counted: of IPv6 its network, "" for what is not counted by its address."""
        try:
            found = ip_address(peer.partition("%")[0])
        except ValueError:
            return ""
        if isinstance(found, IPv6Address):
            found = found.ipv4_mapped or found
        if any(found in network for network in self._trusted):
            return ""
        return network_of(str(found))

    def _tell(self, address: str) -> None:
        if time.monotonic() - self._told >= TOLD_SECONDS:
            self._told = time.monotonic()
            self._report(address)
