"""A server takes another's place, as a managed failover does it behind one address, and neither is restarted.

Run ids do not tell: the former server comes back as the process that it was, under the tokens that it had.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as redis_py

from billing.balances.redis.epochs import Epochs
from billing.balances.redis.store import RedisBalances
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry, Gone, Held, Reading, Settled
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_groups import OneSentinel
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request, store_of

pytestmark = [pytest.mark.served, pytest.mark.asyncio]


@pytest.fixture
def second_server(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder / "second")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def address(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """The address of whichever server is the primary: the first, at the beginning."""
    with FaultProxy(redis_server.port, 1, 1) as proxy:
        yield proxy


@pytest.fixture
async def books(address: FaultProxy, folder: Path) -> AsyncIterator[Books]:
    books = await open_books(folder, f"redis://127.0.0.1:{address.port}/0")
    yield books
    await close_books(books)


def fail_over(books: Books, address: FaultProxy, to: RedisServer) -> None:
    """The address leads elsewhere, and the connections to where it led are ended."""
    address.target = to.port
    store_of(books)._of[0].drop("a failover")  # noqa: SLF001


async def charge(books: Books, account: str, hold_id: str, due: int) -> None:
    for _ in range(50):
        try:
            assert isinstance(await books.store.hold(request(hold_id, account, due)), Held)
            break
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    assert isinstance(await books.store.settle(hold_id, account, Millicredits(due), record(hold_id, account)), Settled)


async def reading(books: Books, account: str) -> Reading:
    for _ in range(100):
        try:
            return await books.store.read(account)
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    return await books.store.read(account)


# I6
async def test_a_server_that_comes_back_with_its_own_tokens_is_rebuilt(
    books: Books, address: FaultProxy, redis_server: RedisServer, second_server: RedisServer
) -> None:
    account = await books.account(1_000)
    await charge(books, account, "r1", 100)
    fail_over(books, address, second_server)
    await charge(books, account, "r2", 200)
    await books.flush()
    fail_over(books, address, redis_server)
    assert await reading(books, account) == Reading(700, 0, 1)
    await charge(books, account, "r3", 50)
    await books.flush()
    assert (await books.ledger.posted(account)).balance == 650


# I1
async def test_a_new_process_does_not_believe_a_server_whose_tokens_sql_does_not_know(
    books: Books, address: FaultProxy, redis_server: RedisServer, second_server: RedisServer
) -> None:
    account = await books.account(1_000)
    await charge(books, account, "r1", 100)
    fail_over(books, address, second_server)
    await charge(books, account, "r2", 800)
    await books.flush()
    fresh = RedisBalances(redis_server.url, books.ledger, 2, 60_000)
    await fresh.open()
    assert await fresh.read(account) == Reading(100, 0, 1)
    await fresh.close()


# I1
async def test_a_process_that_still_reaches_the_former_server_leaves_it(
    books: Books, redis_server: RedisServer, second_server: RedisServer, folder: Path
) -> None:
    """Nobody told it: its connection stays, and so does the token. SQL knows what the others have rebuilt."""
    account = await books.account(1_000)
    await charge(books, account, "r1", 100)
    await books.flush()
    with FaultProxy(redis_server.port, 1, 1) as apart:
        cut_off = RedisBalances(f"redis://127.0.0.1:{apart.port}/0", books.ledger, 2, 60_000)
        await cut_off.open()
        apart.target = second_server.port  # from the next connection on
        other = RedisBalances(second_server.url, books.ledger, 2, 60_000)
        await other.open()
        assert isinstance(await other.hold(request("r2", account, 900)), Held)
        await books.store.close()  # it would take the former server for the primary, and rebuild it
        for _ in range(300):
            if cut_off._of[0].run_id == other._of[0].run_id and not cut_off.buckets_away():  # noqa: SLF001
                break
            await asyncio.sleep(0.02)
        assert await cut_off.read(account) == Reading(900, 900, 1)
        for store in (cut_off, other):
            await store.close()
    await books.reopen()


# I1
async def test_a_primary_that_the_sentinels_name_no_longer_is_left_although_it_answers(
    redis_server: RedisServer, second_server: RedisServer, folder: Path
) -> None:
    async with OneSentinel("127.0.0.1", redis_server.port) as sentinel:
        books = await open_books(folder, f"redis+sentinel://127.0.0.1:{sentinel.port}/m")
        account = await books.account(1_000)
        await charge(books, account, "r1", 100)
        sentinel.named, sentinel.epoch = second_server.port, 2
        with redis_py.Redis(port=second_server.port) as raw:
            for _ in range(300):
                if raw.get(f"{{b{bucket_of(account)}}}:epoch"):
                    break
                await asyncio.sleep(0.02)
        await charge(books, account, "r2", 200)
        await books.flush()
        assert (await books.ledger.posted(account)).balance == 700
        await close_books(books)
    with redis_py.Redis(port=second_server.port) as raw:
        assert raw.hget(f"{{b{bucket_of(account)}}}:a:{account}", "balance") == b"700"


# I3
async def test_a_charge_is_not_forgotten_because_another_server_had_one_at_its_position(
    books: Books, redis_server: RedisServer
) -> None:
    """What a flush read from one server is acknowledged at the next, where the same position is another charge's."""
    account = await books.account(1_000)
    await charge(books, account, "r1", 100)
    (entry,) = await books.store.pending(10)
    stranger = Entry(entry.position, 7, 0, entry.record, entry.bucket, "another epoch")
    await books.store.acknowledge([stranger])
    assert await books.store.pending(10) == [entry]
    await books.store.acknowledge([entry])
    assert await books.store.pending(10) == []


# I3
async def test_a_charge_found_settled_is_kept_until_all_that_was_written_before_is_flushed(
    books: Books, redis_server: RedisServer
) -> None:
    """A promoted replica numbers on from its last entry, also where its clock is behind it."""
    account = await books.account(1_000)
    bucket = bucket_of(account)
    await books.store.hold(request("r1", account, 100))
    with redis_py.Redis(port=redis_server.port) as raw:
        raw.xadd(f"{{b{bucket}}}:log", {"r": record("r0", account), "c": 1, "l": 0}, id="99999999999999-5")
    store = store_of(books)
    await store._of[bucket].run(  # as a settle whose reply was lost  # noqa: SLF001
        "settle",
        *settle_past(store._epochs, bucket, account),  # noqa: SLF001
    )
    assert isinstance(await store.settle("r1", account, Millicredits(60), record("r1", account)), Gone)
    own = store._own  # noqa: SLF001
    own.trim(bucket, "99999999999999-5")
    assert "r1" in own.lose(bucket)


def settle_past(epochs: Epochs, bucket: int, account: str) -> tuple[tuple[str, ...], tuple[str | int | bytes, ...]]:
    prefix = f"{{b{bucket}}}:"
    names = ("epoch", f"a:{account}", "h:r1", "leases", "log", "k:", "t:r1")
    return tuple(prefix + name for name in names), (epochs.tokens[bucket], "r1", 60, record("r1", account), -1)


# I9
async def test_a_primary_that_was_made_a_replica_is_left_until_it_is_one_again(
    books: Books, redis_server: RedisServer
) -> None:
    account = await books.account(1_000)
    await charge(books, account, "r1", 100)
    with redis_py.Redis(port=redis_server.port) as raw:
        raw.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable):
            await books.store.hold(request("r2", account, 100))
        for _ in range(100):
            if "is a replica" in store_of(books).servers.failure:
                break
            await asyncio.sleep(0.02)
        with pytest.raises(StoreUnavailable):
            await books.store.ping()
        assert "is a replica" in store_of(books).servers.failure
        raw.replicaof("NO", "ONE")
    await charge(books, account, "r3", 100)
    assert await books.store.read(account) == Reading(800, 0, 1)


# I9
async def test_a_server_that_forgot_the_scripts_is_given_them_again(books: Books, redis_server: RedisServer) -> None:
    account = await books.account(1_000)
    await charge(books, account, "r1", 100)
    with redis_py.Redis(port=redis_server.port) as raw:
        raw.script_flush()
    with pytest.raises(StoreUnavailable):
        await books.store.hold(request("r2", account, 100))
    await charge(books, account, "r3", 100)
    assert await books.store.read(account) == Reading(800, 0, 1)


async def test_one_server_of_a_cluster_is_refused_with_what_to_write(folder: Path) -> None:
    node = RedisServer(folder / "node", extra=("--cluster-enabled", "yes"))
    node.start()
    try:
        with pytest.raises(StoreUnavailable, match=r"a cluster needs redis\+cluster://"):
            await open_books_within(folder, node.url, 1)
    finally:
        node.kill()


async def open_books_within(folder: Path, url: str, seconds: float) -> None:
    books = await open_books(folder, "")
    store = RedisBalances(url, books.ledger, 2, 60_000)
    try:
        await store.open(wait_seconds=seconds)
    finally:
        await close_books(books)


async def test_a_server_without_a_cluster_is_refused_as_one_of_a_cluster(
    redis_server: RedisServer, folder: Path
) -> None:
    url = f"redis+cluster://127.0.0.1:{redis_server.port}/"
    with pytest.raises(StoreUnavailable, match="cluster support disabled"):
        await open_books_within(folder, url, 1)
