"""A charge that SQL does not take, left in the embedded store's journal: its server starts, and it is owed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.ledger.flush import flush_once
from billing.money.amounts import Millicredits
from billing.money.errors import StoreUnavailable
from billing.money.holds import Budget, Held, KeyLimits, Refused
from billing.money.spend_periods import period_name
from billing.storage.database import now_ms
from tests.support.stores import Books, close_books, open_books, record, request

NO_TIME = 2**62
"""Milliseconds whose day fits no column of PostgreSQL."""


@pytest.fixture
async def books(folder: Path, fresh_postgres: str) -> AsyncIterator[Books]:
    books = await open_books(folder, "", fresh_postgres)
    yield books
    await close_books(books)


# I1, I3
async def test_the_next_process_opens_and_takes_it_off_the_balance(books: Books) -> None:
    account = await books.account(1_000)
    for name, made in {
        "r1": record("r1", account),
        "odd": record("odd", account, created_at=NO_TIME),
        "r2": record("r2", account),
    }.items():
        await books.store.hold(request(name, account, 10))
        await books.store.settle(name, account, Millicredits(7), made)
    with pytest.raises(StoreUnavailable, match="1 charges cannot be booked"):
        await flush_once(books.store, books.ledger, 100)
    for _ in range(2):
        await books.reopen()
        assert (await books.store.read(account)).balance == 1_000 - 3 * 7
        assert len(await books.store.pending(10)) == 1
    assert isinstance(await books.store.hold(request("more", account, 980)), Refused)
    assert isinstance(await books.store.hold(request("all", account, 979)), Held)


async def test_it_counts_in_budgets_that_the_next_process_reads(books: Books) -> None:
    limits = KeyLimits(budgets=(Budget("key_1", period_name("month", now_ms()), Millicredits(100)),))
    account = await books.account(1_000)
    assert isinstance(await books.store.hold(request("odd", account, 100, limits)), Held)
    await books.store.settle("odd", account, Millicredits(90), record("odd", account, created_at=NO_TIME))
    await books.reopen()
    assert isinstance(await books.store.hold(request("x", account, 50, limits)), Refused)
    assert isinstance(await books.store.hold(request("y", account, 10, limits)), Held)


async def test_one_that_nobody_can_read_keeps_no_server_from_starting(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("odd", account, 10))
    await books.store.settle("odd", account, Millicredits(7), b"no record at all")
    await books.reopen()
    assert len(await books.store.pending(10)) == 1
    assert isinstance(await books.store.hold(request("r", account, 10)), Held)
