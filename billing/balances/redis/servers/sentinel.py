"""The primary that Sentinels name: asked before each connecting, and every second beside it.

A failover is a new server with another run id, so that every bucket is rebuilt from SQL (head of ../rebuild.py); a
replica that lacks the last writes is no special case. A primary that was cut off from the Sentinels goes on answering
whoever still reaches it: it is left as soon as any Sentinel, or SQL (epochs.py `verify`), knows another.
"""

import asyncio
import contextlib
from collections.abc import Callable

from billing.balances.redis.servers.address import NodeAddress, addresses_of, ask_once, credentials_of
from billing.balances.redis.servers.connection import RedisConnection
from billing.balances.redis.servers.serving import LOOK_SECONDS, Servers
from billing.money.errors import StoreUnavailable
from config.store_urls import RedisPlace

OTHERS_SECONDS = 0.1
"""How long the other Sentinels are waited for once one has answered."""


class Sentinels:
    """The Sentinels of a URL."""

    def __init__(self, place: RedisPlace, timeout_seconds: int | float) -> None:
        """Raise OSError for files that cannot be read."""
        self._primaries = addresses_of(place)
        own = credentials_of(place.fields.get("sentinel_username", ""), place.fields.get("sentinel_password", ""))
        self._sentinels = [one._replace(credentials=own, database=0) for one in self._primaries]
        self._service, self._timeout = place.service, timeout_seconds

    async def primary(self, present: NodeAddress | None = None) -> NodeAddress:
        """Return the primary's address: `present`, where it still is that one's. Raises StoreUnavailable.

        All are asked at once, and the newest configuration counts: one that was cut off still names the former primary.
        """
        asked = {asyncio.create_task(self._ask(sentinel)) for sentinel in self._sentinels}
        waiting, found, failures = set(asked), list[tuple[int, NodeAddress]](), list[str]()
        patience: float | None = None
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    try:
                        found.append(task.result())
                        patience = OTHERS_SECONDS
                    except StoreUnavailable as error:
                        failures.append(str(error).removeprefix("redis: "))
        finally:
            for task in waiting:
                task.cancel()
        if not found:
            raise StoreUnavailable("redis", f"no Sentinel names {self._service!r}: {'; '.join(sorted(failures))}")
        newest = max(epoch for epoch, _ in found)
        named = [address for epoch, address in found if epoch == newest]
        if present is not None and present in named:
            return present  # Sentinels may spell one server in two ways
        return named[0]

    async def answering(self) -> int:
        """Return how many of them answer, and know the service."""
        asked = await asyncio.gather(*map(self._ask, self._sentinels), return_exceptions=True)
        return len([one for one in asked if isinstance(one, tuple)])

    async def _ask(self, sentinel: NodeAddress) -> tuple[int, NodeAddress]:
        """Return (configuration epoch, primary's address), as one Sentinel knows them."""
        (reply,) = await ask_once(sentinel, self._timeout, ("SENTINEL", "MASTER", self._service))
        try:
            known: dict[bytes, bytes] = dict(zip(reply[::2], reply[1::2], strict=True))
            address = self._primaries[0].at(known[b"ip"].decode(), int(known[b"port"]))
            return int(known.get(b"config-epoch", 0)), address
        except (KeyError, TypeError, ValueError):
            raise StoreUnavailable("redis", f"{sentinel} does not answer as a Sentinel") from None


class SentinelServers(Servers):
    """One server with every bucket, and another after a failover."""

    def __init__(
        self, place: RedisPlace, timeout_seconds: int | float, on_connect: Callable[[RedisConnection], None]
    ) -> None:
        """Raise OSError for files that cannot be read."""
        self._sentinels = Sentinels(place, timeout_seconds)
        super().__init__(self._sentinels.primary, timeout_seconds, on_connect)
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """See Servers."""
        super().start()
        self._following = asyncio.create_task(self._follow(), name="redis-sentinels")

    async def close(self) -> None:
        """See Servers."""
        if self._following:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await super().close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._connection.ready:
                with contextlib.suppress(StoreUnavailable):
                    primary = await self._sentinels.primary(self._connection.address)
                    if primary != self._connection.address:
                        self._connection.drop(f"the Sentinels name {primary}")
