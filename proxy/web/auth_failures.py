"""Failures to authenticate, counted by address. Beyond a limit whoever fails is refused (429), for a minute.

Whoever proves himself never is, however often others fail behind the same address (an office, a proxy that is not in
`listen.trusted_proxies`). So what comes from such an address is looked up all the same, but in bounded work: API keys
together, a few times a second; anything else one at a time. Per process, bounded in memory. docs/adr/0034 says why
Stripe's deliveries are verified before this is asked.
"""

import asyncio
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any, Generic, Literal, TypeVar

from proxy.web.client_address import client_address, network_of
from proxy.web.rejections import Rejection, too_many

log = logging.getLogger("tollkeeper.auth")
Found = TypeVar("Found")

WINDOW_SECONDS = 60.0
MOST_ADDRESSES = 10_000
"""Addresses remembered, of all kinds together; the one that failed longest ago is forgotten."""
MOST_PROVEN = 10_000
GATHER_SECONDS = 0.05
MOST_TOGETHER, MOST_GATHERED = 500, 5_000
"""Keys that are looked up in one query, and that wait for one."""
MOST_WAITING = 100
"""Look-ups that wait for their turn, of all addresses together."""
FLOOD = (
    "from %s %d keys, tokens or signatures of a minute could not be verified: wrong ones get a 429 now; if that is a "
    "proxy of yours, name its network in listen.trusted_proxies, so that each client is counted by its own address"
)
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
        self._turns, self._waiting = asyncio.Lock(), 0
        self._told = -WINDOW_SECONDS

    def address_of(self, peer: Any, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Address of a request's sender: the peer (host and port, or None), or whom a proxy of ours names."""
        return client_address({"client": peer, "headers": headers}, self._trusted)

    def is_over(self, kind: Kind, address: str, digest: str = "") -> bool:
        """Tell whether the address has failed too often, unless this hash was proven before."""
        return self._left(kind, address) > 0 and digest not in self._proven

    def refusal(self, kind: Kind, address: str) -> Rejection:
        """Make the 429 of who failed once more where others had failed too often."""
        self._report(kind)
        return too_many(REFUSED, "too_many_failures", max(1, round(self._left(kind, address) * 1_000)))

    def check(self, kind: Kind, address: str) -> None:
        """Raise Rejection (429) while the address has failed too often."""
        if self.is_over(kind, address):
            raise self.refusal(kind, address)

    @asynccontextmanager
    async def turn(self, kind: Kind, address: str) -> AsyncIterator[None]:
        """Look something up for an address that has failed too often: one at a time. Raises Rejection (429)."""
        if self._waiting >= MOST_WAITING:
            raise self.refusal(kind, address)
        self._waiting += 1
        try:
            async with self._turns:
                yield
        finally:
            self._waiting -= 1

    def _left(self, kind: Kind, address: str) -> float:
        """Seconds for which an address is over the limit; not above 0: it is not."""
        since, times = self._failed.get((kind, network_of(address)), (0.0, 0)) if self._most else (0.0, 0)
        return since + WINDOW_SECONDS - time.monotonic() if times and times >= self._most else 0.0

    def count(self, kind: Kind, address: str) -> None:
        """Count a failure; without an address nobody is refused for it."""
        if not self._most or not address:
            return
        now, key = time.monotonic(), (kind, network_of(address))
        since, times = self._failed.pop(key, (now, 0))
        self._failed[key] = (since, times + 1) if now - since < WINDOW_SECONDS else (now, 1)
        if self._failed[key][1] == self._most and now - self._told >= WINDOW_SECONDS:
            self._told = now
            log.warning(FLOOD, address, self._most)
        if len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)

    def remember_proof(self, digest: str) -> None:
        """Remember a key or token that was proven, by its hash."""
        self._proven[digest] = None
        self._proven.move_to_end(digest)
        if len(self._proven) > MOST_PROVEN:
            self._proven.popitem(last=False)


class GatheredLookups(Generic[Found]):
    """Look-ups that are gathered for a moment and done together, so that a flood of them costs a few queries a second.

    `find` takes keys, at most MOST_TOGETHER, and returns what it found by key.
    """

    def __init__(self, find: Callable[[Sequence[str]], Awaitable[Mapping[str, Found]]]) -> None:
        """Nothing is gathered yet."""
        self._find = find
        self._gathered: dict[str, list[asyncio.Future[Found | None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, key: str) -> Found | None:
        """Look a key up with others; None also where too many wait already. Raises what `find` raises."""
        if key not in self._gathered and len(self._gathered) >= MOST_GATHERED:
            return None
        future = asyncio.get_running_loop().create_future()
        self._gathered.setdefault(key, []).append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        found: Found | None = await future
        return found

    async def _work(self) -> None:
        while self._gathered:
            await asyncio.sleep(GATHER_SECONDS)
            keys = list(itertools.islice(self._gathered, MOST_TOGETHER))
            waiting = [(key, future) for key in keys for future in self._gathered.pop(key)]
            looking = asyncio.ensure_future(self._find(keys))
            await asyncio.wait((looking,))
            error = looking.exception()  # whoever waits hears it
            for key, future in waiting:
                if future.done():
                    continue  # who asked has left
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(looking.result().get(key))
        self._task = None
