"""A bucket that closes while it is being opened opens again, and what looks after epochs outlives SQL's refusals."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import ProgrammingError

from billing.balances.redis.store import RedisBalances
from billing.money.buckets import bucket_of
from billing.money.holds import Held
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, request

pytestmark = [pytest.mark.served, pytest.mark.asyncio]
PATIENCE_SECONDS = 15


@pytest.fixture
async def books(redis_server: RedisServer, folder: Path) -> AsyncIterator[Books]:
    books = await open_books(folder, redis_server.url)
    yield books
    await close_books(books)


async def until_open(store: RedisBalances, bucket: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not store._epochs.open[bucket]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_bucket_that_is_rebuilt_again_while_it_opens_is_served(
    books: Books, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = books.store
    assert isinstance(store, RedisBalances)
    other = RedisBalances(redis_server.url, books.ledger, 1.0, 30_000)
    await other.open()
    account = await books.account(1_000_000)
    bucket = bucket_of(account)
    assert isinstance(await store.hold(request("h1", account, 1_000)), Held)
    inside, go_on, renew = asyncio.Event(), asyncio.Event(), store._renew

    async def slow(of: int, ids: Sequence[str]) -> None:
        await renew(of, ids)
        if of == bucket and not inside.is_set():
            inside.set()
            await go_on.wait()

    monkeypatch.setattr(store, "_renew", slow)
    await other._epochs.rebuild_and_enter(bucket)
    await asyncio.wait_for(inside.wait(), PATIENCE_SECONDS)
    await other._epochs.rebuild_and_enter(bucket)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while store._epochs.open[bucket]:  # noqa: ASYNC110 - until its stale token is seen
            await asyncio.sleep(0.02)
    go_on.set()
    await until_open(store, bucket)
    assert isinstance(await store.hold(request("h2", account, 1_000)), Held)
    await other.close()


async def test_a_database_that_is_being_restored_ends_nothing_that_looks_after_epochs(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = books.store
    assert isinstance(store, RedisBalances)
    asked = asyncio.Event()

    async def no_table() -> dict[int, str]:
        asked.set()
        raise ProgrammingError("SELECT", {}, Exception('relation "buckets" does not exist'))

    with monkeypatch.context() as restoring:
        restoring.setattr(books.ledger, "epochs", no_table)
        await asyncio.wait_for(asked.wait(), PATIENCE_SECONDS)
        await asyncio.sleep(0.1)
    before = store._epochs.tokens[3]
    await books.ledger.fence(3, "deadbeef")  # somebody has rebuilt elsewhere
    async with asyncio.timeout(PATIENCE_SECONDS):
        while store._epochs.tokens[3] == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await until_open(store, 3)
