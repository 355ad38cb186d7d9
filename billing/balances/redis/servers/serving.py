"""The connection that serves each bucket: one for all where there is one server (sentinel.py, cluster.py: others)."""

from collections.abc import Awaitable, Callable, Sequence

from billing.balances.redis.servers.address import NodeAddress
from billing.balances.redis.servers.connection import RedisConnection
from billing.money.buckets import BUCKETS

LOOK_SECONDS = 1.0
"""How often Sentinels or nodes are asked who serves, where nothing else tells."""


class Servers:
    """One server with every bucket."""

    divided = False
    """Whether buckets may be on several servers, of which some may be away."""

    def __init__(
        self,
        locate: Callable[[], Awaitable[NodeAddress]],
        timeout_seconds: int | float,
        on_connect: Callable[[RedisConnection], None],
    ) -> None:
        """`on_connect` is told of each server that was reached."""
        self._timeout, self._on_connect = timeout_seconds, on_connect
        self._connection = RedisConnection(locate, timeout_seconds, on_connect, self.heard_elsewhere)
        self.of = [self._connection] * BUCKETS
        """Connection of each bucket; the list itself stays the same."""

    def start(self) -> None:
        """Keep connected from now on."""
        self._connection.start()

    async def close(self) -> None:
        """Disconnect for good."""
        await self._connection.close()

    @property
    def connections(self) -> Sequence[RedisConnection]:
        """Those that serve a bucket, each once."""
        return list(dict.fromkeys(self.of))

    @property
    def any_ready(self) -> bool:
        """True while at least one server with a bucket is connected."""
        return any(connection.ready for connection in self.of)

    @property
    def failure(self) -> str:
        """Reason why a server is not reached; "" where each is."""
        return next((one.failure for one in self.of if one.failure), "")

    def buckets_of(self, connection: RedisConnection) -> list[int]:
        """Return the buckets that a connection serves."""
        return [bucket for bucket, one in enumerate(self.of) if one is connection]

    def lease_of(self, name: str) -> tuple[RedisConnection, str]:
        """Return where the lease of that name is kept: a connection, and the name of the key."""
        return self._connection, f"tollkeeper:{name}"

    def heard_elsewhere(self) -> None:
        """Hear that a bucket is not served where it was asked for. Of one server there is nothing to look up."""
