"""The servers with balances behind a URL, found once: for the checks at a start and in preflight."""

from typing import NamedTuple

from billing.balances.redis.servers.address import NodeAddress, addresses_of, ask_once
from billing.balances.redis.servers.cluster import MAP, Place, read_view, serving_nodes
from billing.balances.redis.servers.sentinel import Sentinels
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable
from config.store_urls import redis_place


class DataServer(NamedTuple):
    """A server, and the buckets that it serves."""

    address: NodeAddress
    buckets: list[int]


async def find_data_servers(url: str, timeout_seconds: int | float) -> list[DataServer]:
    """Return them. Raises StoreUnavailable, also where a cluster has buckets that no node serves."""
    place = redis_place(url)
    try:
        addresses = addresses_of(place)
        if place.kind == "sentinel":
            addresses = [await Sentinels(place, timeout_seconds).primary()]
    except OSError as error:
        raise StoreUnavailable("redis", str(error)) from None
    if place.kind != "cluster":
        return [DataServer(addresses[0], list(range(BUCKETS)))]
    by_place: dict[Place, list[int]] = {}
    for bucket, node in enumerate(await _nodes(addresses, timeout_seconds)):
        if node is None:
            raise StoreUnavailable("redis", f"no node of the cluster serves bucket {bucket}")
        by_place.setdefault(node, []).append(bucket)
    return [DataServer(addresses[0].at(*node), buckets) for node, buckets in by_place.items()]


async def _nodes(addresses: list[NodeAddress], timeout_seconds: int | float) -> list[Place | None]:
    """Return the node of each bucket, as the first that answers knows it."""
    problems = []
    for address in addresses:
        try:
            slots, nodes = await ask_once(address, timeout_seconds, *MAP)
        except StoreUnavailable as error:
            problems.append(str(error).removeprefix("redis: "))
        else:
            return serving_nodes([read_view(slots, nodes, (address.host, address.port))])
    raise StoreUnavailable("redis", "; ".join(problems))
