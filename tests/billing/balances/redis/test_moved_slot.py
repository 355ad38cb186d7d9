"""A bucket's slot moves to another master: whatever is asked for first, the bucket is found where it is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from billing.balances.redis.store import RedisBalances
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Budget, Checkpoint, Held, KeyLimits, Reading, Refused, Settled
from tests.support.redis_groups import RedisCluster
from tests.support.stores import Books, close_books, open_books, record, request

pytestmark = [pytest.mark.served, pytest.mark.asyncio]


@pytest.fixture
async def books(emptied_cluster: RedisCluster, folder: Path) -> AsyncIterator[Books]:
    books = await open_books(folder, emptied_cluster.url)
    yield books
    await close_books(books)


async def first_hold(books: Books, account: str) -> None:
    assert await books.store.hold(request("new", account, 100)) == Held(900, 400)
    await books.store.release("new", account)


async def first_settle(books: Books, account: str) -> None:
    done = await books.store.settle("live", account, Millicredits(50), record("live", account))
    assert done.balance == 850  # settled by the rebuilding, which found it undelivered, or after it
    assert await books.store.hold(request("live", account, 300)) == Held(850, 300)


async def first_look(books: Books, account: str) -> None:
    assert await books.store.look(request("new", account, 600)) is None


async def first_resume(books: Books, account: str) -> None:
    assert await books.store.resume(request("live", account, 300)) == Held(900, 300)


async def first_read(books: Books, account: str) -> None:
    assert await books.store.read(account) == Reading(900, 300, 1)


async def first_credit(books: Books, account: str) -> None:
    assert await books.store.credit(account, 1, Millicredits(1_000)), "it was applied long ago"


async def first_limited_key(books: Books, account: str) -> None:
    limits = KeyLimits(budgets=(Budget("key_7:total", "total", Millicredits(500)),))
    assert isinstance(await books.store.hold(request("keyed", account, 100, limits, "key_7")), Held)
    await books.store.release("keyed", account)


@pytest.mark.parametrize(
    "first", [first_hold, first_settle, first_look, first_resume, first_read, first_credit, first_limited_key]
)
async def test_what_is_asked_for_first_after_a_move_is_done(
    first: Callable[[Books, str], Awaitable[None]], books: Books, emptied_cluster: RedisCluster
) -> None:
    """With an unflushed charge in the journal that moved, and a hold in flight."""
    account = await books.account(1_000)
    await books.store.hold(request("done", account, 100))
    await books.store.settle("done", account, Millicredits(100), record("done", account))
    await books.store.hold(request("live", account, 300))
    await asyncio.to_thread(emptied_cluster.move, bucket_of(account))
    await first(books, account)
    held = (await books.store.read(account)).held
    assert held == 300
    assert await books.store.release("live", account) == Settled(0, 0, (await books.store.read(account)).balance, 0)
    await books.flush()
    assert (await books.ledger.posted(account)).balance == (await books.store.read(account)).balance


async def test_a_slot_on_its_way_serves_nothing_and_loses_nothing(books: Books, emptied_cluster: RedisCluster) -> None:
    account = await books.account(1_000)
    bucket = bucket_of(account)
    assert isinstance(books.store, RedisBalances)
    books.store._timeout = 0.3  # noqa: SLF001 - as long as a call waits
    await books.store.hold(request("live", account, 300))
    move = await asyncio.to_thread(emptied_cluster.begin_move, bucket)
    await books.store._trim_bucket(bucket)  # noqa: SLF001 - its token is where it was, and its mark was never made
    with pytest.raises(StoreUnavailable) as caught:
        await books.store.hold(request("new", account, 100))
    assert not caught.value.in_doubt
    assert books.store.buckets_away() == 1
    books.store.checkpoint(Checkpoint("live", account, Millicredits(40), b""))
    with pytest.raises(StoreUnavailable):
        await books.store.settle("live", account, Millicredits(50), record("live", account))
    for _ in range(30):  # also while most of its keys are still where they were
        assert books.store.buckets_away() == 1
        await asyncio.sleep(0.01)
    await asyncio.to_thread(move.end)
    for _ in range(200):
        if await settled(books, account):
            break
        await asyncio.sleep(0.02)
    assert await books.store.read(account) == Reading(950, 0, 1), "its settling was queued, and delivered"


async def test_every_bucket_is_rebuilt_on_its_own_node(books: Books) -> None:
    """With what is in flight of limited keys, which each node is searched for."""
    accounts = [await books.account(1_000) for _ in range(8)]
    limits = KeyLimits(concurrency=1)
    for number, account in enumerate(accounts):
        assert isinstance(await books.store.hold(request(f"h{number}", account, 100, limits, f"key_{number}")), Held)
    assert isinstance(books.store, RedisBalances)
    books.store.rebuilt()
    await books.store.rebuild()
    assert books.store.rebuilt() == BUCKETS
    for number, account in enumerate(accounts):
        second = await books.store.hold(request(f"s{number}", account, 100, limits, f"key_{number}"))
        assert isinstance(second, Refused)
        assert second.source == "concurrency"
        assert await books.store.read(account) == Reading(1_000, 100, 1)


async def settled(books: Books, account: str) -> bool:
    try:
        return (await books.store.read(account)).held == 0
    except StoreUnavailable:
        return False
