"""Charges that SQL does not take, for whatever is wrong with them: they wait in the journal, and are owed whatever else happens."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis as redis_py

from billing.accounting.reconcile import reconcile
from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import flush_once
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Held, Refused
from tests.support.servers import RedisServer
from tests.support.stores import Books, close_books, open_books, record, request, serves, until

NO_RECORD, NO_TIME = b"no record at all", 2**62


@pytest.fixture
async def books(redis_server: RedisServer, folder: Path, fresh_postgres: str) -> AsyncIterator[Books]:
    books = await open_books(folder, redis_server.url, fresh_postgres)
    yield books
    await close_books(books)


def store_of(books: Books) -> RedisBalances:
    assert isinstance(books.store, RedisBalances)
    return books.store


async def three_charges(books: Books, odd: bytes = b"") -> str:
    """An account of 1,000 millicredits with three charges of 7, of which SQL takes the first and the last."""
    account = await books.account(1_000)
    odd = odd or record("odd", account, created_at=NO_TIME)
    for name, made in {"r1": record("r1", account), "odd": odd, "r2": record("r2", account)}.items():
        await books.store.hold(request(name, account, 10))
        await books.store.settle(name, account, Millicredits(7), made)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="1 charges cannot be booked"):
            await flush_once(books.store, books.ledger, 100)
    assert (await books.ledger.posted(account)).balance == 1_000 - 2 * 7
    return account


# I3
async def test_its_owner_keeps_it_though_later_ones_are_booked(books: Books, redis_server: RedisServer) -> None:
    """What is wrong with it may be mended one day: a Redis that is lost before must not take it along."""
    account = await three_charges(books, NO_RECORD)
    await store_of(books)._trim_bucket(bucket_of(account))  # noqa: SLF001 - as it does by itself, four times a second

    redis_py.Redis(port=redis_server.port).flushall()

    async def back() -> bool:
        return await serves(books.store, account) and len(await books.store.pending(10)) > 0

    await until(back, 20, "what SQL does not have is settled again")
    assert {entry.record for entry in await books.store.pending(10)} == {NO_RECORD}
    assert (await books.store.read(account)).balance == 1_000 - 3 * 7


# I1, I4, I6
@pytest.mark.parametrize("owner", ["lives", "is gone"])
async def test_it_is_owed_once_however_often_its_bucket_is_rebuilt(books: Books, owner: str) -> None:
    account = await three_charges(books)
    if owner == "is gone":
        await books.reopen()
    for turn in range(3):
        await store_of(books).rebuild()
        assert (await books.store.read(account)).balance == 1_000 - 3 * 7, turn
        assert len(await books.store.pending(10)) == 1, turn
        assert await reconcile(books.database, store_of(books).all_figures) == [], turn
    assert isinstance(await books.store.hold(request("more", account, 980)), Refused)
    assert isinstance(await books.store.hold(request("all", account, 979)), Held)


async def test_one_that_can_be_read_by_nobody_keeps_no_bucket_from_being_rebuilt(books: Books) -> None:
    account = await three_charges(books, NO_RECORD)
    await books.reopen()
    await store_of(books).rebuild()
    assert (await books.store.read(account)).balance == 1_000 - 2 * 7, "nobody can tell who owes it"
    assert len(await books.store.pending(10)) == 1


async def test_of_two_that_book_the_same_the_later_one_says_up_to_where(books: Books) -> None:
    """Else the owner would keep what SQL has for as long as nothing else is booked."""
    store, account = store_of(books), await books.account(1_000)
    for number in range(4):
        await store.hold(request(f"r{number}", account, 10))
        await store.settle(f"r{number}", account, Millicredits(7), record(f"r{number}", account))
        if number == 1:
            early = await store.pending(10)
    late = await store.pending(10)
    for entries in (late, early):
        await books.ledger.post_current(entries)
        await store.acknowledge(entries)
    await store._trim_bucket(bucket_of(account))  # noqa: SLF001 - as it does by itself, four times a second
    assert not store._own.in_use(bucket_of(account), set())  # noqa: SLF001
