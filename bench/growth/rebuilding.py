"""An emptied Redis and so many accounts in PostgreSQL: how long until all serve, and until the first does."""

import asyncio
import time
from typing import NamedTuple

from bench.growth.data import with_redis
from billing.balances.redis.store import RedisBalances
from billing.ledger.ledger import Ledger

LOOK_SECONDS = 0.01


class Rebuilt(NamedTuple):
    """Seconds until every bucket served, and until the first one did."""

    seconds: float
    first: float


def rebuild(accounts: int) -> Rebuilt:
    """Empty a Redis that a store is open on, and wait."""
    return asyncio.run(_rebuild(accounts))


async def _rebuild(accounts: int) -> Rebuilt:
    async with with_redis(accounts) as (redis, database):
        store = RedisBalances(redis.url, Ledger(database), 2, 60_000)
        opening = asyncio.create_task(store.open(60))
        began, first = time.perf_counter(), 0.0
        while not opening.done():
            if not first and any(store._epochs.open):  # noqa: SLF001 - nobody else asks for one bucket
                first = time.perf_counter() - began
            await asyncio.sleep(LOOK_SECONDS)
        await opening
        seconds = time.perf_counter() - began
        await store.close()
    return Rebuilt(seconds, first or seconds)
