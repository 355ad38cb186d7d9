"""A bucket of any size is rebuilt once, by whoever makes progress; a start waits for as long as there is some."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
import redis as redis_py

from billing.balances.redis import rebuild
from billing.balances.redis.rebuild import KeyScan
from billing.balances.redis.store import RedisBalances
from billing.ledger.ledger import Ledger, PostedBalance
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Budget, Held, KeyLimits, Reading, Settled
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request


class SlowLedger(Ledger):
    """A ledger of a bucket too large for its lock: each account is a page, and takes its time. Counts the fences."""

    def __init__(self, books: Books, seconds: float) -> None:
        super().__init__(books.database)
        self.seconds = seconds
        self.fences: Counter[int] = Counter()

    async def fence(self, bucket: int, epoch: str) -> None:
        self.fences[bucket] += 1
        await super().fence(bucket, epoch)

    async def posted_in(self, bucket: int, after: str, limit: int) -> list[PostedBalance]:
        found = await super().posted_in(bucket, after, 1)
        if found:
            await asyncio.sleep(self.seconds)
        return found


async def in_one_bucket(books: Books, number: int) -> list[str]:
    """So many accounts of 1,000 millicredits that share a bucket."""
    found: list[str] = []
    bucket = None
    while len(found) < number:
        account_id = await books.account()
        bucket = bucket_of(account_id) if bucket is None else bucket
        if bucket_of(account_id) == bucket:
            await books.correct(account_id, 1_000)
            found.append(account_id)
    return found


@pytest.fixture
async def emptied(redis_server: RedisServer, folder: Path) -> tuple[Books, list[str]]:
    """Eight accounts of a bucket in SQL, a closed store, and a Redis that lost everything."""
    books = await open_books(folder, redis_server.url)
    accounts = await in_one_bucket(books, 8)
    await books.store.close()
    redis_py.Redis(port=redis_server.port).flushall()
    return books, accounts


async def test_a_rebuilding_longer_than_its_lock_is_not_overtaken_while_it_progresses(
    emptied: tuple[Books, list[str]], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, accounts = emptied
    monkeypatch.setattr(rebuild, "LOCK_MS", 2_000)
    ledgers = [SlowLedger(books, 0.4), SlowLedger(books, 0.4)]  # 3.2 s for the bucket
    stores = [RedisBalances(redis_server.url, ledger, 2, 60_000) for ledger in ledgers]
    await asyncio.gather(*(store.open() for store in stores))
    fences = ledgers[0].fences + ledgers[1].fences
    assert fences[bucket_of(accounts[0])] == 1
    for store in stores:
        assert [await store.read(account) for account in accounts] == [Reading(1_000, 0, 1)] * 8
        await store.close()
    await books.database.close()


async def test_a_rebuilder_that_hangs_is_overtaken_and_writes_nothing_afterwards(
    emptied: tuple[Books, list[str]], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, accounts = emptied
    monkeypatch.setattr(rebuild, "LOCK_MS", 500)
    hanging = RedisBalances(redis_server.url, SlowLedger(books, 3), 2, 60_000)
    opening = asyncio.create_task(hanging.open())
    await asyncio.sleep(0.5)
    second = RedisBalances(redis_server.url, books.ledger, 2, 60_000)
    await second.open()
    assert await second.hold(request("r1", accounts[0], 400)) == Held(1_000, 400)
    settled = await second.settle("r1", accounts[0], Millicredits(400), record("r1", accounts[0]))
    assert isinstance(settled, Settled)
    await opening  # its page is here now, with the balance of before
    for store in (hanging, second):
        assert await store.read(accounts[0]) == Reading(600, 0, 1)
        await store.close()
    await books.database.close()


async def test_a_start_waits_for_a_rebuilding_that_progresses(
    emptied: tuple[Books, list[str]], redis_server: RedisServer
) -> None:
    books, _ = emptied
    store = RedisBalances(redis_server.url, SlowLedger(books, 0.5), 2, 60_000)  # 4 s for the bucket
    await store.open(wait_seconds=2)
    await store.ping()
    await store.close()
    await books.database.close()


async def test_a_start_that_waits_for_nothing_names_the_store(
    emptied: tuple[Books, list[str]], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, _ = emptied

    async def away(*_: object) -> None:
        raise StoreUnavailable("sql", "does not answer")

    monkeypatch.setattr(books.ledger, "fence", away)
    store = RedisBalances(redis_server.url, books.ledger, 2, 60_000)
    with pytest.raises(StoreUnavailable) as caught:
        await store.open(wait_seconds=1)
    assert str(caught.value) == "sql: does not answer"
    redis_server.kill()
    store = RedisBalances(redis_server.url, books.ledger, 2, 60_000)
    with pytest.raises(StoreUnavailable) as caught:
        await store.open(wait_seconds=1)
    assert str(caught.value).startswith("redis: cannot be reached: ")
    await books.database.close()


async def test_a_process_that_only_reads_sees_that_redis_was_emptied(redis_server: RedisServer, folder: Path) -> None:
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    assert (await books.store.read(account)).balance == 1_000
    redis_py.Redis(port=redis_server.port).flushall()
    assert (await books.store.read(account)).balance == 1_000
    await close_books(books)


async def test_limited_keys_and_budgets_of_every_bucket_are_rewritten_from_sql(
    redis_server: RedisServer, folder: Path
) -> None:
    """Their spending as booked, and what is in flight of the holds that are there."""
    books = await open_books(folder, redis_server.url)
    accounts = [await books.account(1_000) for _ in range(12)]
    assert len({bucket_of(account) for account in accounts}) > 1
    for number, account in enumerate(accounts):
        key = f"key_{number}"
        budgets = (
            Budget(f"{key}:total", "total", Millicredits(500)),
            Budget(f"{key}:month:x", "2026-11", Millicredits(500), ("gpt-4o*",)),
            Budget(f"{key}:month:y", "2026-11", Millicredits(500), ("o3",)),
        )
        limits = KeyLimits(concurrency=2, budgets=budgets)
        booked = record(f"c{number}", account).replace(b'"key_1"', f'"{key}"'.encode())
        await books.store.hold(request(f"c{number}", account, 300, limits, key))
        await books.store.settle(f"c{number}", account, Millicredits(300), booked)
        await books.store.hold(request(f"h{number}", account, 150, limits, key))
    await books.flush()
    raw = redis_py.Redis(port=redis_server.port)
    for name in raw.scan_iter("{b*}:k:*"):
        raw.hset(name, mapping={"inflight": 2})
    for name in raw.scan_iter("{b*}:s:*"):
        raw.hset(name, mapping={"spent": 7, "held": 9})
    assert isinstance(books.store, RedisBalances)
    await books.store.rebuild()
    assert [raw.hget(name, "inflight") for name in raw.scan_iter("{b*}:k:*")] == [b"1"] * 12
    for kind, spent in (("total", b"300"), ("month:x", b"300"), ("month:y", b"0")):
        found = [raw.hmget(name, "spent", "held") for name in raw.scan_iter(f"{{b*}}:s:key_*:{kind}")]
        assert found == [[spent, b"150"]] * 12, kind
    await close_books(books)


async def test_buckets_share_a_scan_that_began_after_their_fence() -> None:
    names = ["{b1}:k:a"]
    scans: list[asyncio.Event] = []

    async def scan(pattern: str) -> list[str]:
        found, done = list(names), asyncio.Event()
        scans.append(done)
        await done.wait()
        return found

    keys = KeyScan(scan, "k")
    first = asyncio.create_task(keys.of("{b1}:"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    names.append("{b2}:k:b")
    later = [asyncio.create_task(keys.of(f"{{b{bucket}}}:")) for bucket in (1, 2, 3)]
    await asyncio.sleep(0)
    scans[0].set()
    assert await first == ["{b1}:k:a"]
    scans[1].set()
    assert await asyncio.gather(*later) == [["{b1}:k:a"], ["{b2}:k:b"], []]
    assert len(scans) == 2
