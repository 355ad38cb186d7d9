"""What a process keeps of charges that SQL does not have yet: all of it, in little memory, however long SQL is away."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from billing.balances.redis.kept_charges import LOOSE, PACK, KeptCharges
from billing.balances.redis.script_calls import Resolution
from billing.money.amounts import Millicredits
from billing.money.holds import Budget, KeyLimits
from tests.support.servers import RedisServer
from tests.support.stores import close_books, open_books, record, request, serves, until

LIMITED = KeyLimits(3, 4, 5, (Budget("key_1:month", "2026-12", Millicredits(9), ("gpt-*",), "alice"),), passing=True)
MANY = LOOSE + 3 * PACK + 7


def resolution(number: int) -> Resolution:
    """Each a bit different, with and without limits."""
    asked = request(f"req_{number:032x}", "acct_1", 400 + number, LIMITED if number % 2 else KeyLimits(), tokens=number)
    return Resolution(asked, Millicredits(number), record(asked.hold_id, "acct_1"), number, late=number % 3 == 0)


@pytest.fixture
def many() -> list[Resolution]:
    return [resolution(number) for number in range(MANY)]


@pytest.fixture
def kept(many: list[Resolution]) -> KeptCharges:
    charges = KeptCharges()
    for number, one in enumerate(many):
        charges.add(f"1000-{number}", one)
    return charges


def test_what_was_packed_comes_out_as_it_went_in(kept: KeptCharges, many: list[Resolution]) -> None:
    assert len(kept) == MANY
    assert list(kept.take_all()) == many
    assert len(kept) == 0
    assert list(kept.take_all()) == []


@pytest.mark.parametrize("flushed", [0, 1, PACK - 1, PACK, 2 * PACK + 5, MANY - 2, MANY - 1])
def test_whatever_was_flushed_nothing_goes_that_was_not(
    kept: KeptCharges, many: list[Resolution], flushed: int
) -> None:
    kept.trim(f"1000-{flushed}")
    left = list(kept.take_all())
    unflushed = many[flushed + 1 :]
    assert left[len(left) - len(unflushed) :] == unflushed
    assert len(left) - len(unflushed) < PACK  # of a pack that is flushed in part, all stays


def test_positions_compare_as_numbers(many: list[Resolution]) -> None:
    charges = KeptCharges()
    for number, one in enumerate(many):
        charges.add(f"{998 + number}-0", one)
    charges.trim("997-9999")
    assert len(charges) == MANY
    charges.trim(f"{998 + MANY}-0")
    assert len(charges) == 0


def test_a_pack_out_of_order_waits_for_its_last(many: list[Resolution]) -> None:
    """Two connections may answer in another order than Redis wrote."""
    charges = KeptCharges()
    places = list(range(MANY))
    places[0], places[PACK - 1] = places[PACK - 1], places[0]
    for place, one in zip(places, many, strict=True):
        charges.add(f"7-{place}", one)
    charges.trim(f"7-{PACK - 2}")
    assert len(charges) == MANY


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_a_charge_that_waits_long_takes_a_few_hundred_bytes() -> None:
    charges, count = KeptCharges(), 5_000
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        charges.add(f"1000-{number}", resolution(number))
    grown = tracemalloc.get_traced_memory()[0] - before
    assert len(charges) == count
    assert grown < LOOSE * 4_000 + count * 400  # as objects: 5,000 times two and a half thousand


# I3
async def test_a_redis_that_lost_everything_gets_back_more_than_is_kept_loose(
    redis_server: RedisServer, folder: Path
) -> None:
    books = await open_books(folder, redis_server.url)
    count = LOOSE + 2 * PACK + 11
    account = await books.account(10 * count)
    for number in range(count):
        name = f"r{number}"
        await books.store.hold(request(name, account, 10))
        await books.store.settle(name, account, Millicredits(7), record(name, account, cost=2))
    assert (await books.store.read(account)).balance == 3 * count

    redis_py.Redis(port=redis_server.port).flushall()

    async def back() -> bool:
        return await serves(books.store, account) and (await books.store.read(account)).balance == 3 * count

    await until(back, 20, "every charge is taken off the balance again")
    await books.flush()
    rows = await books.ledger.usage_of(account, 10 * count)
    assert {row.charge_id for row in rows} == {f"r{number}" for number in range(count)}
    assert (await books.ledger.posted(account)).balance == 3 * count
    await close_books(books)
