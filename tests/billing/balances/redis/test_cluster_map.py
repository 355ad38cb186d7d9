"""Who serves a bucket: what nodes and Sentinels say, and which of them counts where they differ."""

import pytest

from billing.balances.redis.servers.cluster import ClusterView, read_view, serving_nodes
from billing.balances.redis.servers.sentinel import Sentinels
from billing.money.buckets import BUCKETS, SLOTS, slot_of_bucket
from billing.money.errors import StoreUnavailable
from config.store_urls import redis_place
from tests.support.redis_groups import OneSentinel


def node(name: str, port: int, epoch: int, flags: str = "master") -> str:
    return f"{name} 10.0.0.1:{port}@{port + 10_000},a.example.com {flags} - 0 0 {epoch} connected 0-16383"


def view(*claims: tuple[str | None, int, int], replicas: tuple[int, ...] = ()) -> ClusterView:
    """As a node tells it: every slot claimed by a host and port under an epoch."""
    slots = [
        [0, SLOTS - 1, [host.encode() if host is not None else None, port, f"n{port}".encode(), []]]
        + [[b"10.0.0.9", replica, b"nr", []] for replica in replicas]
        for host, port, _ in claims
    ]
    lines = "\n".join(node(f"n{port}", port, epoch) for _, port, epoch in claims)
    return read_view(slots, lines.encode(), ("asked.example.com", 7_000))


def test_the_newest_claim_counts_whoever_tells_it() -> None:
    frozen, others = view(("10.0.0.1", 7_001, 3)), view(("10.0.0.1", 7_004, 9))
    for views in ([frozen, others], [others, frozen]):
        assert serving_nodes(views) == [("10.0.0.1", 7_004)] * BUCKETS


@pytest.mark.parametrize("host", [None, "", "?"])
def test_a_node_without_a_name_is_the_one_that_was_asked(host: str | None) -> None:
    assert serving_nodes([view((host, 7_003, 1))]) == [("asked.example.com", 7_003)] * BUCKETS


def test_every_node_of_a_view_may_be_asked_next() -> None:
    assert view(("10.0.0.1", 7_001, 3), replicas=(7_004,)).nodes == {("10.0.0.1", 7_001), ("10.0.0.9", 7_004)}


def test_a_slot_that_nobody_claims_has_no_node() -> None:
    half = read_view([[0, 8_191, [b"h", 1, b"n1"]]], node("n1", 1, 1).encode(), ("h", 1))
    assert serving_nodes([half]) == [("h", 1) if slot_of_bucket(bucket) <= 8_191 else None for bucket in range(BUCKETS)]
    assert serving_nodes([]) == [None] * BUCKETS


def test_a_buckets_slot_is_that_of_its_tag() -> None:
    # CLUSTER KEYSLOT of `{b0}:` to `{b3}:`, as a Redis 6.2 answers it
    assert [slot_of_bucket(bucket) for bucket in range(4)] == [6_939, 2_874, 15_193, 11_128]


async def test_of_sentinels_the_newest_configuration_counts() -> None:
    former, newest, strange = OneSentinel("10.0.0.1", 1, 3), OneSentinel("10.0.0.2", 6_379, 4, 0.02), OneSentinel("")
    async with former, newest, strange:
        ports = (former.port, newest.port, strange.port, 1)
        url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/m"
        primary = await Sentinels(redis_place(url), 1).primary()
    assert (primary.host, primary.port) == ("10.0.0.2", 6_379)


async def test_where_no_sentinel_knows_the_service_each_says_why() -> None:
    async with OneSentinel("") as strange:
        url = f"redis+sentinel://127.0.0.1:{strange.port},127.0.0.1:1/m"
        with pytest.raises(StoreUnavailable, match="no Sentinel names 'm': ") as caught:
            await Sentinels(redis_place(url), 1).primary()
    assert f"127.0.0.1:{strange.port} answered No such master with that name" in str(caught.value)
    assert "127.0.0.1:1: " in str(caught.value)


async def test_what_does_not_answer_as_a_sentinel_is_named() -> None:
    async with OneSentinel("10.0.0.1", named=6_379) as odd:
        odd.fields = ("name", "m")
        url = f"redis+sentinel://127.0.0.1:{odd.port}/m"
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{odd.port} does not answer as a Sentinel"):
            await Sentinels(redis_place(url), 1).primary()
