"""Charges that SQL does not take, for whatever is wrong with them: they wait in the journal, and are owed whatever else happens."""

import pytest
import redis as redis_py

from billing.accounting.reconcile import reconcile
from billing.balances.owed import Owed
from billing.ledger.flush import flush_once
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Budget, Held, KeyLimits, Refused
from billing.money.spend_periods import period_name
from billing.money.usage_record import decode_record
from billing.storage.database import now_ms
from tests.support.servers import RedisServer
from tests.support.stores import Books, record, request, serves, store_of, until

NO_RECORD, NO_TIME = b"no record at all", 2**62


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


async def test_it_counts_in_budgets_however_often_its_bucket_is_rebuilt(books: Books) -> None:
    limits = KeyLimits(budgets=(Budget("key_1", period_name("month", now_ms()), Millicredits(100)),))
    account = await books.account(1_000)
    assert isinstance(await books.store.hold(request("odd", account, 100, limits)), Held)
    await books.store.settle("odd", account, Millicredits(90), record("odd", account, created_at=NO_TIME))
    with pytest.raises(StoreUnavailable):
        await flush_once(books.store, books.ledger, 100)
    for turn in range(3):
        assert isinstance(await books.store.hold(request(f"x{turn}", account, 50, limits)), Refused), turn
        await store_of(books).rebuild()
    assert isinstance(await books.store.hold(request("y", account, 10, limits)), Held)


@pytest.mark.parametrize(
    ("owner", "account", "since", "globs", "counts"),
    [
        ("key_1", "", 0, None, True),
        ("key_2", "", 0, None, False),
        ("key_1", "", 6, None, False),
        ("key_1", "", 5, ("gpt-4o*",), True),
        ("key_1", "", 5, ("gpt-5*",), False),
        ("ann", "acct_1", 0, None, True),
        ("ben", "acct_1", 0, None, False),
        ("ann", "acct_2", 0, None, False),
    ],
)
def test_a_budget_has_what_its_key_or_end_user_owes(
    owner: str, account: str, since: int, globs: tuple[str, ...] | None, counts: bool
) -> None:
    owed = Owed("1", decode_record(record("odd", "acct_1", created_at=5, end_user="ann")), 90)
    assert owed.counts_for(owner, account, since, globs) is counts


async def test_a_tombstone_that_is_there_lasts_as_long_as_a_new_one(books: Books, redis_server: RedisServer) -> None:
    """One of an earlier rebuilding could end before the owner comes, who would settle the charge once more."""
    account = await three_charges(books)
    tombstone, client = f"{{b{bucket_of(account)}}}:t:odd", redis_py.Redis(port=redis_server.port)
    client.set(tombstone, "1", px=60_000)
    await store_of(books).rebuild()
    left = client.ttl(tombstone)
    assert isinstance(left, int)
    assert left > 3_600
