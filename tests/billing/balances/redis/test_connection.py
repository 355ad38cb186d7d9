"""What nobody waits for: it is said all the same, soon, in its place, and its reply is nobody else's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis as redis_py

from billing.balances.redis.store import RedisBalances
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.holds import Checkpoint, Held, Reading, Settled
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request


@pytest.fixture
async def books(redis_server: RedisServer, folder: Path) -> AsyncIterator[Books]:
    books = await open_books(folder, redis_server.url)
    yield books
    await close_books(books)


async def held(books: Books) -> str:
    """An account of 1,000 millicredits of which 400 are held, as r1."""
    account = await books.account(1_000)
    assert isinstance(await books.store.hold(request("r1", account, 400)), Held)
    return account


def marked(redis_server: RedisServer, account: str) -> bytes | None:
    """What the hold says an orphan owes, past our own connection."""
    name = f"{{b{bucket_of(account)}}}:h:r1"
    with redis_py.Redis(port=redis_server.port) as other:
        found: bytes | None = other.hget(name, "c")  # type: ignore[assignment]
    return found


async def test_a_mark_arrives_although_nothing_follows(books: Books, redis_server: RedisServer) -> None:
    account = await held(books)
    assert marked(redis_server, account) == b"0"
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(120), b""))
    for _ in range(100):
        await asyncio.sleep(0.01)
        if marked(redis_server, account) == b"120":
            break
    assert marked(redis_server, account) == b"120"


async def test_replies_of_marks_are_nobodys_and_all_comes_in_order(books: Books, redis_server: RedisServer) -> None:
    account = await held(books)
    for owed in (100, 200, 300):
        books.store.checkpoint(Checkpoint("r1", account, Millicredits(owed), b""))
    assert await books.store.read(account) == Reading(1_000, 400, 1)
    assert marked(redis_server, account) == b"300"
    books.store.shrink("r1", account, Millicredits(350))
    settled = await books.store.settle("r1", account, Millicredits(350), record("r1", account))
    assert settled == Settled(350, 0, 650, 0)


async def test_a_mark_that_the_connection_lost_is_told_again(books: Books, redis_server: RedisServer) -> None:
    account, store = await held(books), books.store
    assert isinstance(store, RedisBalances)
    store.checkpoint(Checkpoint("r1", account, Millicredits(150), b""))
    store._of[0]._drop("a test")  # noqa: SLF001 - between the telling and the write
    for _ in range(300):
        await asyncio.sleep(0.01)
        if marked(redis_server, account) == b"150":
            break
    assert marked(redis_server, account) == b"150"
