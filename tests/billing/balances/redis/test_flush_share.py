"""Several jobs processes flush: each its part of the buckets, all of them together everything, and nothing twice."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_py
from sqlalchemy import event, text

from billing.accounting.reconcile import reconcile
from billing.balances.redis.flush_share import FlushShare, owner
from billing.balances.redis.servers.address import NodeAddress
from billing.balances.redis.servers.connection import RedisConnection
from billing.balances.redis.servers.serving import Servers
from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import TransferJobs, flush_once
from billing.ledger.ledger import Ledger
from billing.ledger.summaries.usage_days import PARTS
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database
from tests.support.servers import RedisServer
from tests.support.stores import Books, another, record, request, store_of, until

LEASE_MS = 400
LONG_MS = 60_000
PATIENCE = 0.3
"""Seconds without an answer of SQL's after which somebody does not flush."""


def share(books: Books, name: str, lease_ms: int = LONG_MS) -> FlushShare:
    return FlushShare(store_of(books).servers, store_of(books), books.ledger.reach, name, lease_ms, 60)


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


def test_every_bucket_has_one_owner_and_none_has_many_more_than_another() -> None:
    for number in range(1, 40):
        names = [f"p{one}" for one in range(number)]
        owners = [owner(bucket, names) for bucket in range(BUCKETS)]
        assert owners == [owner(bucket, list(reversed(names))) for bucket in range(BUCKETS)]
        counts = [owners.count(name) for name in names]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_buckets_that_add_to_the_same_sums_go_to_one_process(number: int) -> None:
    """Else a process that hangs in a transaction would hold up another one."""
    names = [f"p{one}" for one in range(number)]
    for bucket in range(BUCKETS - PARTS):
        assert owner(bucket, names) == owner(bucket + PARTS, names)


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
    assert len(staying.buckets) in (5, 6)
    await leaving.leave()
    await staying.look()
    assert len(staying.buckets) == BUCKETS // 2

    async def takes_all() -> bool:
        await staying.look()
        return len(staying.buckets) == BUCKETS

    await until(takes_all, 5, "the one that died is not counted any more")


async def until_all_are_left_to(other: FlushShare, cut_off: FlushShare) -> None:
    async def are_left() -> bool:
        with contextlib.suppress(StoreUnavailable):
            await cut_off.look()
        await other.look()
        return len(other.buckets) == BUCKETS

    await until(are_left, 5, "the other one books everything")
    with pytest.raises(StoreUnavailable, match="books no charges of this process"):
        await cut_off.look()


async def test_who_does_not_reach_sql_keeps_no_bucket_from_who_does(books: Books) -> None:
    away = False

    async def reach() -> None:
        if away:
            raise StoreUnavailable("sql", "is away")

    store = store_of(books)
    cut_off = FlushShare(store.servers, store, reach, "a", LEASE_MS, PATIENCE)
    await cut_off.look()
    other = share(books, "b")
    await other.look()
    assert len(other.buckets) == BUCKETS // 2
    away = True
    await until_all_are_left_to(other, cut_off)
    away = False
    await cut_off.look()
    assert len(cut_off.buckets) == BUCKETS // 2


async def test_who_may_not_write_to_sql_keeps_no_bucket_either(books: Books, fresh_postgres: str) -> None:
    """A server that was the primary once answers what it is asked."""
    database, store = Database(fresh_postgres, 2, 5), store_of(books)

    @event.listens_for(database.engine.sync_engine, "connect")
    def only_read(connection: Any, _record: object) -> None:
        connection.cursor().execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        connection.commit()

    async with database.write() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    reading = FlushShare(store.servers, store, Ledger(database).reach, "a", LEASE_MS, PATIENCE)
    await until_all_are_left_to(share(books, "b"), reading)
    await database.close()


async def test_slow_sql_leaves_no_bucket_to_nobody(books: Books) -> None:
    """It takes longer to answer than a name lasts, and is asked again and again meanwhile."""

    async def slow() -> None:
        await asyncio.sleep(2)

    store = store_of(books)
    parts = [FlushShare(store.servers, store, slow, name, 1_500, 60) for name in "abc"]

    async def go_on_looking(part: FlushShare) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await part.look()
            await asyncio.sleep(0.1)

    looking = [asyncio.create_task(go_on_looking(part)) for part in parts]
    await until(lambda: sum(len(part.buckets) for part in parts) == BUCKETS, 10, "all are shared out")
    for _ in range(60):
        assert {bucket for part in parts for bucket in part.buckets} == set(range(BUCKETS))
        await asyncio.sleep(0.05)
    for task in looking:
        task.cancel()


class CutOff(Servers):
    """What a machine sees of a cluster of which it does not reach a node."""

    def __init__(self, whole: Servers, away: range) -> None:
        down = RedisConnection(nowhere, 2, lambda _: None, lambda: None)
        self.of = [down if bucket in away else one for bucket, one in enumerate(whole.of)]


async def nowhere() -> NodeAddress:
    raise StoreUnavailable("redis", "is not reachable")


async def test_who_does_not_reach_a_node_leaves_its_buckets_to_who_does(books: Books) -> None:
    store = store_of(books)
    cut_off = FlushShare(CutOff(store.servers, range(5)), store, books.ledger.reach, "a", LONG_MS, 60)
    other = share(books, "b")
    for part in (cut_off, other, cut_off):
        await part.look()
    assert {*cut_off.buckets, *other.buckets} == set(range(BUCKETS))
    assert set(range(5)) <= set(other.buckets)
    assert set(cut_off.buckets).isdisjoint(other.buckets)


async def test_a_name_that_a_clock_made_last_for_an_hour_keeps_nothing(books: Books, redis_server: RedisServer) -> None:
    """The clock of Redis was set back, or that of a promoted replica is behind."""
    client = redis_py.Redis(port=redis_server.port)
    for bucket in range(BUCKETS):
        client.zadd(f"{{b{bucket}}}:flushers", {"gone": time.time() * 1_000 + 3_600_000})
    alone = share(books, "a", 3_000)
    await alone.look()
    assert len(alone.buckets) == BUCKETS


async def test_who_leaves_last_has_what_nobody_has(books: Books) -> None:
    first, last = share(books, "a"), share(books, "b")
    for part in (first, last, first):
        await part.look()
    await first.leave()
    assert len(first.buckets) == BUCKETS // 2, "the rest has an owner"
    await last.leave()  # without another look
    assert set(last.buckets) == set(range(BUCKETS))


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
    at_the_end: list[int] = []

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

        ledger = Ledger(books.database, lambda entries: at_the_end.__setitem__(slice(None), [len(entries), *beside]))
        return TransferJobs(
            store,
            ledger,
            flush_seconds=0.02,
            lead=lead,
            share=FlushShare(store.servers, store, books.ledger.reach, f"p{place}", LONG_MS, 60),
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
    await parts[1].stop()  # nobody leads any more, and nobody else is left
    assert beside[1] > at_the_end[2], "what goes with a flush goes with the last one, too"
    assert {(await books.ledger.posted(account)).balance for account in rest} == {990}
    await second.close()


async def test_whoever_stays_is_told_when_one_that_flushed_is_gone(books: Books) -> None:
    told: list[str] = []
    store = store_of(books)
    staying = FlushShare(store.servers, store, books.ledger.reach, "a", LONG_MS, 60, lambda: told.append("gone"))
    other = share(books, "b")
    for part in (staying, other, staying):
        await part.look()
    assert told == []
    await other.leave()
    await staying.look()
    await staying.look()
    assert told == ["gone"]
