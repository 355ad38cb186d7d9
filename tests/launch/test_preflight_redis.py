"""Preflight's rows of Redis where it is more than one server: each server is asked, and whether another could take over."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from billing.balances.redis.servers.address import NodeAddress
from config.secrets import Secret
from proxy.cli.preflight.redis import Known, _cluster_check, redis_checks
from proxy.cli.preflight.site import Check, Offset, Site
from tests.support.money_api import settings
from tests.support.redis_groups import RedisCluster, SentinelGroup, ask, started
from tests.support.stores import Books, close_books, open_books

pytestmark = [pytest.mark.served, pytest.mark.asyncio]


@pytest.fixture
def group(folder: Path) -> Iterator[SentinelGroup]:
    group = SentinelGroup(folder)
    with started(group):
        yield group


@pytest.fixture
async def on_cluster(emptied_cluster: RedisCluster, folder: Path) -> AsyncIterator[Books]:
    books = await open_books(folder, emptied_cluster.url)
    yield books
    await close_books(books)


def site(books: Books, url: str) -> Site:
    conf = settings(redis={"url": url})
    return Site(conf, books.database, (), Secret(""), None, cast("httpx.AsyncClient", None), "", None, 26, 1)  # type: ignore[arg-type]


def rows(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def one(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


GOOD = {
    "version": "PASS",
    "maxmemory-policy": "PASS",
    "appendonly": "PASS",
    "appendfsync": "WARN",
    "epoch": "PASS",
}


async def test_every_node_of_a_cluster_is_asked(on_cluster: Books, emptied_cluster: RedisCluster) -> None:
    here = site(on_cluster, emptied_cluster.url)
    checks = await redis_checks(here)
    assert rows(checks) == {**GOOD, "cluster": "PASS"}
    assert one(checks, "cluster").found == "3 nodes serve the 16 buckets, each with a replica"
    masters = {emptied_cluster.master_of(bucket).port for bucket in range(16)}
    assert {offset.clock for offset in here.clocks} == {f"Redis 127.0.0.1:{port}" for port in masters}
    last = emptied_cluster.master_of(15)
    ask(last, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        checks = await redis_checks(here)
    finally:
        ask(last, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert one(checks, "maxmemory-policy").state == "FAIL"
    assert f"127.0.0.1:{last.port} allkeys-lru" in one(checks, "maxmemory-policy").found
    ask(last, "SET", "{b15}:epoch", "somebody:else")
    assert one(await redis_checks(here), "epoch").found == "1 buckets are not under the epoch that SQL knows"


async def test_a_node_that_is_away_is_named(on_cluster: Books, emptied_cluster: RedisCluster) -> None:
    node = emptied_cluster.master_of(0)
    node.kill()
    (check,) = await redis_checks(site(on_cluster, emptied_cluster.url))
    assert (check.name, check.state) == ("reachable", "FAIL")
    assert str(node.port) in check.found
    emptied_cluster.wait_whole()


def known(port: int, replicas: int) -> Known:
    address = NodeAddress("10.0.0.1", port, "", None, (), 0)
    return Known(address, {"connected_slaves": str(replicas)}, Offset("Redis", 0), {}, {})


async def test_a_node_without_a_replica_is_named() -> None:
    check = _cluster_check([known(7_000, 1), known(7_001, 0)])
    assert (check.state, check.found) == ("WARN", "2 nodes serve the 16 buckets, without a replica: 10.0.0.1:7001")


async def test_the_sentinels_are_counted_and_their_primary_is_asked(group: SentinelGroup, folder: Path) -> None:
    books = await open_books(folder, group.url)
    here = site(books, group.url)
    checks = await redis_checks(here)
    assert rows(checks) == {**GOOD, "sentinel": "PASS"}
    assert [offset.clock for offset in here.clocks] == ["Redis"]
    assert one(checks, "sentinel").found.startswith("3 of 3 Sentinels name 127.0.0.1:")
    group.sentinels[2].kill()
    check = one(await redis_checks(here), "sentinel")
    assert (check.state, check.found[:19]) == ("WARN", "2 of 3 Sentinels na")
    await close_books(books)
