"""A node of a cluster that is away, and nobody takes over: its buckets are not served, everything else is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import flush_once, relay_once
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Held, Reading, Settled
from config.errors import ConfigError
from proxy.server.startup_checks import check_redis
from tests.support.money_api import settings
from tests.support.redis_groups import RedisCluster, ask, started
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request, store_of

pytestmark = [pytest.mark.served, pytest.mark.asyncio]

JOBS_BUCKET = bucket_of("jobs")


@pytest.fixture(scope="module")
def three_nodes(new_folder: Callable[[str], Path]) -> Iterator[RedisCluster]:
    cluster = RedisCluster(new_folder("three"), copies=0)
    with started(cluster):
        yield cluster


@pytest.fixture
async def books(three_nodes: RedisCluster, folder: Path) -> AsyncIterator[Books]:
    three_nodes.wait_whole()
    three_nodes.clear()
    books = await open_books(folder, three_nodes.url)
    yield books
    await close_books(books)


async def account_on(books: Books, cluster: RedisCluster, node: RedisServer, *, other: bool = False) -> str:
    """An account of 1,000 millicredits on that node, or on any other."""
    while True:
        account = await books.account()
        if (cluster.master_of(bucket_of(account)) is node) is not other:
            await books.correct(account, 1_000)
            return account


async def until_away(store: RedisBalances) -> None:
    for _ in range(200):
        if store.buckets_away():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the node is not missed")


async def until_whole(store: RedisBalances) -> None:
    for _ in range(400):
        if not store.buckets_away():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(store.away())


# I9
async def test_others_are_served_and_their_charges_and_credits_reach_where_they_go(
    books: Books, three_nodes: RedisCluster
) -> None:
    node, store = three_nodes.master_of(JOBS_BUCKET), store_of(books)
    lost = await account_on(books, three_nodes, node)
    served = await account_on(books, three_nodes, node, other=True)
    assert await store.lead("jobs", "one", 3_000)
    assert isinstance(await store.hold(request("r0", lost, 100)), Held)
    assert isinstance(await store.settle("r0", lost, Millicredits(60), record("r0", lost)), Settled)
    node.kill()
    await until_away(store)
    with pytest.raises(StoreUnavailable):
        await store.hold(request("r1", lost, 100))
    assert isinstance(await store.hold(request("r2", served, 100)), Held)
    assert isinstance(await store.settle("r2", served, Millicredits(70), record("r2", served)), Settled)
    await store.ping()
    assert f"{store.buckets_away()} of 16 buckets of balances are not served" in store.away()
    with pytest.raises(StoreUnavailable):
        await store.depth()
    assert (await store.depth_within_reach())[0] == 1
    assert await store.lead("jobs", "one", 3_000), "no job would run"
    assert await flush_once(store, books.ledger, 500) == 1
    for account in (lost, served):
        await books.ledger.grant(account, Millicredits(500), f"late {account}", "test", "late")
    with pytest.raises(StoreUnavailable):  # it says that some were left
        await relay_once(store, books.ledger)
    assert await store.read(served) == Reading(1_430, 0, 2)
    node.start()
    await until_whole(store)
    assert store.away() == ""
    assert await store.read(lost) == Reading(1_440, 0, 2), "rebuilt from a ledger that has the grant"
    assert await relay_once(store, books.ledger) == 1
    await books.flush()
    assert await store.read(lost) == Reading(1_440, 0, 2)
    assert (await books.ledger.posted(lost)).balance == 1_440


# I9
async def test_a_process_that_starts_meanwhile_serves_the_rest(books: Books, three_nodes: RedisCluster) -> None:
    node = three_nodes.master_of(0)
    served = await account_on(books, three_nodes, node, other=True)
    node.kill()
    await until_away(store_of(books))
    await check_redis(settings(redis={"url": three_nodes.url}))
    fresh = RedisBalances(three_nodes.url, books.ledger, 2, 60_000)
    await fresh.open(wait_seconds=0.5)
    assert isinstance(await fresh.hold(request("r1", served, 100)), Held)
    node.start()
    await until_whole(fresh)
    await fresh.close()


async def test_a_start_looks_at_every_node(books: Books, three_nodes: RedisCluster) -> None:
    last = three_nodes.nodes[-1]
    ask(last, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigError, match="may throw balances away"):
            await check_redis(settings(redis={"url": three_nodes.url}))
    finally:
        ask(last, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    await check_redis(settings(redis={"url": three_nodes.url}))
