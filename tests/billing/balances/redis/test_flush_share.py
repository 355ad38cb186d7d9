"""Several jobs processes flush: each its part of the buckets, all of them together everything, and nothing twice."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from billing.accounting.reconcile import reconcile
from billing.balances.redis.flush_share import FlushShare, buckets_of
from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import TransferJobs, flush_once
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import StoreUnavailable
from tests.support.servers import RedisServer
from tests.support.stores import Books, another, close_books, open_books, record, request, until

LEASE_MS = 400
LONG_MS = 60_000


@pytest.fixture
async def books(redis_server: RedisServer, folder: Path, fresh_postgres: str) -> AsyncIterator[Books]:
    books = await open_books(folder, redis_server.url, fresh_postgres)
    yield books
    await close_books(books)


def store_of(books: Books) -> RedisBalances:
    assert isinstance(books.store, RedisBalances)
    return books.store


def share(books: Books, name: str, lease_ms: int = LONG_MS) -> FlushShare:
    return store_of(books).flush_share(books.ledger.epochs, name, lease_ms)


async def charge_each_bucket(books: Books, prefix: str) -> dict[str, int]:
    """Settle a charge of 10 millicredits in every bucket; account → bucket."""
    found: dict[str, int] = {}
    while len(found) < BUCKETS:
        account = await books.account(1_000)
        if (bucket := bucket_of(account)) not in found.values():
            found[account] = bucket
    for account in found:
        name = f"{prefix} {account}"
        await books.store.hold(request(name, account, 100))
        await books.store.settle(name, account, Millicredits(10), record(name, account))
    return found


def test_every_bucket_has_one_owner_and_none_many_more_than_another() -> None:
    for parts in range(1, 40):
        names = [f"p{number}" for number in range(parts)]
        shares = [list(buckets_of(name, names)) for name in names]
        assert sorted(itertools.chain(*shares)) == list(range(BUCKETS))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert buckets_of("p0", list(reversed(names))) == buckets_of("p0", names)


async def test_each_flushes_its_part_and_together_they_flush_everything(books: Books) -> None:
    one, other = share(books, "one"), share(books, "other")
    for part in (one, other, one):
        await part.look()
    accounts = await charge_each_bucket(books, "r")
    assert await flush_once(one, books.ledger, 500) == BUCKETS // 2
    booked = {a for a in accounts if (await books.ledger.posted(a)).balance == 990}
    assert {accounts[account] for account in booked} == set(one.buckets)
    assert (await one.depth())[0] == BUCKETS // 2
    assert await flush_once(other, books.ledger, 500) == BUCKETS // 2
    assert (await store_of(books).depth())[0] == 0
    assert [(await books.ledger.posted(account)).balance for account in accounts] == [990] * BUCKETS


async def test_alone_it_flushes_everything_and_nothing_before_it_has_looked(books: Books) -> None:
    alone = share(books, "alone")
    await charge_each_bucket(books, "r")
    assert await flush_once(alone, books.ledger, 500) == 0
    await alone.look()
    assert await flush_once(alone, books.ledger, 500) == BUCKETS


async def test_who_dies_or_leaves_has_its_part_taken_over(books: Books) -> None:
    staying, leaving, dying = share(books, "a"), share(books, "b"), share(books, "c", LEASE_MS)
    for part in (leaving, dying, staying):
        await part.look()
    assert len(staying.buckets) == BUCKETS // 3
    await leaving.leave()
    await staying.look()
    assert len(staying.buckets) == BUCKETS // 2

    async def takes_all() -> bool:
        await staying.look()
        return len(staying.buckets) == BUCKETS

    await until(takes_all, 5, "the one that died is not counted any more")


async def test_who_does_not_reach_sql_keeps_no_bucket_from_who_does(books: Books) -> None:
    away = False

    async def reach() -> None:
        if away:
            raise StoreUnavailable("sql", "is away")

    cut_off = store_of(books).flush_share(reach, "a", LEASE_MS)
    await cut_off.look()
    other = share(books, "b")
    await other.look()
    assert len(other.buckets) == BUCKETS // 2
    away = True

    async def is_left_to_the_other() -> bool:
        with pytest.raises(StoreUnavailable):
            await cut_off.look()
        await other.look()
        return len(other.buckets) == BUCKETS

    await until(is_left_to_the_other, 5, "the other one books everything")
    away = False
    await cut_off.look()
    assert len(cut_off.buckets) == BUCKETS // 2


# I4
async def test_while_two_think_that_a_bucket_is_theirs_each_charge_is_booked_once(books: Books) -> None:
    stale, fresh = share(books, "stale"), share(books, "fresh")
    await stale.look()
    await fresh.look()
    assert len(stale.buckets) == BUCKETS, "it has not looked again"
    accounts: dict[str, int] = {}
    for turn in range(5):
        accounts |= await charge_each_bucket(books, f"r{turn}")
        moved = await asyncio.gather(*(flush_once(part, books.ledger, 500) for part in (stale, fresh)))
        assert sum(moved) >= BUCKETS
        assert (await store_of(books).depth())[0] == 0
    assert [(await books.ledger.posted(account)).balance for account in accounts] == [990] * len(accounts)
    assert await reconcile(books.database, store_of(books).all_figures) == []


async def test_jobs_that_do_not_lead_flush_their_part_too(books: Books) -> None:
    """Nothing else is theirs: but what goes with a flush is done wherever there is one."""
    second = another(books)
    await second.open()
    led, beside = [0, 0], [0, 0]

    def counting(counts: list[int], place: int) -> Callable[[], "asyncio.Future[int]"]:
        def step() -> "asyncio.Future[int]":
            counts[place] += 1
            done = asyncio.get_running_loop().create_future()
            done.set_result(0)
            return done

        return step

    def jobs(store: RedisBalances, place: int) -> TransferJobs:
        async def lead() -> bool:
            return place == 0

        return TransferJobs(
            store,
            books.ledger,
            flush_seconds=0.02,
            lead=lead,
            share=store.flush_share(books.ledger.epochs, f"p{place}", LONG_MS),
            reap=None,
            beside=[(counting(beside, place), 0.02, "beside")],
            more=[(counting(led, place), 0.02, "more")],
        )

    parts = [jobs(store_of(books), 0), jobs(second, 1)]
    for one in parts:
        one.start()
    accounts = await charge_each_bucket(books, "r")

    async def all_booked() -> bool:
        return {(await books.ledger.posted(account)).balance for account in accounts} == {990}

    await until(all_booked, 10, "everything is flushed")
    await until(lambda: led[0] and min(beside), 5, "steps were taken")
    assert led[1] == 0
    await parts[0].stop()
    rest = await charge_each_bucket(books, "s")
    await parts[1].stop()  # its own part is flushed at the end, though nobody leads any more
    left = {account for account in rest if (await books.ledger.posted(account)).balance == 1_000}
    assert len(left) in (0, BUCKETS // 2), "by whether it had looked since the first one left"
    await second.close()
