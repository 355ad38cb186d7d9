"""A backlog of charges in Redis, booked into PostgreSQL by one jobs process, or by several side by side."""

import asyncio
import multiprocessing
import time
from multiprocessing.synchronize import Barrier

import redis as redis_py
import uvloop

from bench.growth.data import with_redis
from bench.growth.measure import new_charges
from billing.balances.redis.flush_share import FlushShare
from billing.balances.redis.journal import PREFIXES
from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import FLUSH_BATCH, flush_once
from billing.ledger.ledger import Ledger
from billing.money.buckets import BUCKETS
from billing.storage.database import Database
from proxy.server.supervisor import tune_process
from tests.support.servers import RedisServer

ACCOUNTS = 10_000
CHARGES = 100_000
LEASE_MS = 60_000
LOOK_SECONDS = 0.02
START_SECONDS = 60
TIMEOUT_SECONDS = 10
SPAWN = multiprocessing.get_context("spawn")


def flushed(processes: int) -> float:
    """Return charges booked a second by so many jobs processes."""
    return asyncio.run(_flushed(processes))


async def _flushed(processes: int) -> float:
    async with with_redis(ACCOUNTS) as (redis, database):
        store = RedisBalances(redis.url, Ledger(database), TIMEOUT_SECONDS, LEASE_MS)
        await store.open()
        _fill(redis)
        url, begin = database.url.render_as_string(hide_password=False), SPAWN.Barrier(processes + 1)
        flushers = [
            SPAWN.Process(target=_flush, args=(url, redis.url, str(number), processes, begin))
            for number in range(processes)
        ]
        for one in flushers:
            one.start()
        await asyncio.to_thread(begin.wait, START_SECONDS)
        began = time.perf_counter()
        while (await store.depth())[0]:
            await asyncio.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - began
        for one in flushers:
            one.join()
        await store.close()
    return CHARGES / seconds


def _fill(redis: RedisServer) -> None:
    """Put charges into the journal, as settling does."""
    with redis_py.Redis(port=redis.port).pipeline(transaction=False) as pipeline:
        for entry in new_charges(CHARGES, ACCOUNTS):
            fields: dict[str, bytes | int] = {"r": entry.record, "c": entry.charged, "l": entry.loss}
            pipeline.xadd(f"{PREFIXES[entry.bucket]}log", fields)  # type: ignore[arg-type]
        pipeline.execute()


def _flush(url: str, redis_url: str, name: str, processes: int, begin: Barrier) -> None:
    """Flush its share in a process as the jobs' is, until nothing is left of it."""

    async def run() -> None:
        database = Database(url, 5, TIMEOUT_SECONDS)
        own = Ledger(database)
        store = RedisBalances(redis_url, own, TIMEOUT_SECONDS, LEASE_MS)
        await store.open()
        share = FlushShare(store.servers, store, own.reach, name, LEASE_MS, TIMEOUT_SECONDS)
        while len(share.buckets) not in (BUCKETS // processes, -(-BUCKETS // processes)):
            await share.look()
        await asyncio.to_thread(begin.wait, START_SECONDS)
        while await flush_once(share, own, FLUSH_BATCH):
            """There is more."""
        await store.close()
        await database.close()

    tune_process()
    uvloop.run(run())
