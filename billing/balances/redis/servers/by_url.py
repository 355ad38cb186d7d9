"""The servers that a URL names."""

from collections.abc import Callable

from billing.balances.redis.servers.address import NodeAddress, addresses_of
from billing.balances.redis.servers.cluster import ClusterServers
from billing.balances.redis.servers.connection import RedisConnection
from billing.balances.redis.servers.sentinel import SentinelServers
from billing.balances.redis.servers.serving import Servers
from config.store_urls import redis_place


def open_servers(
    url: str,
    timeout_seconds: int | float,
    on_connect: Callable[[RedisConnection], None],
    on_moved: Callable[[list[int]], None],
) -> Servers:
    """Return them, not yet started. Raises ValueError for no URL of Redis, OSError for files that cannot be read."""
    place = redis_place(url)
    if place.kind == "cluster":
        return ClusterServers(place, timeout_seconds, on_connect, on_moved)
    if place.kind == "sentinel":
        return SentinelServers(place, timeout_seconds, on_connect)
    (address,) = addresses_of(place)

    async def here() -> NodeAddress:
        return address

    return Servers(here, timeout_seconds, on_connect)
