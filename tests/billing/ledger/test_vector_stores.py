"""Vector stores in SQL, on both databases: what they took each day, and what is owed for it, decided once."""

import time

import pytest

from billing.ledger.notices import NoticeQueue
from billing.ledger.objects.upstream_objects import MadeObject, UpstreamObjects
from billing.ledger.objects.vector_stores import OwedDay, PaidDay, StoredDay, StoreSize, VectorStores
from billing.storage.tables.vector_stores import storage_standing, store_sizes
from tests.support.storage import DAY_MS, rows_of, store_since, today, told
from tests.support.stores import Books


@pytest.fixture
def day() -> int:
    return today()


def owed(account: str, day: int, due: int = 10, charge_id: str = "") -> OwedDay:
    return OwedDay(account, day, charge_id or f"storage-{day}-{account}", 100, due, "{}", 1_000 + day)


async def test_a_day_has_the_most_that_was_seen_on_it(sql: Books) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    await UpstreamObjects(sql.database).record_owner(account, "req_1", [MadeObject("vs_1", "vector_store", 800)])
    for size in (10, 30, 20):
        await stores.saw([StoreSize("vs_1", size, working=False)])
    (row,) = await rows_of(sql.database, store_sizes)
    assert tuple(row) == ("vs_1", today(), 30)
    assert await UpstreamObjects(sql.database).totals(account, "vector_store") == (1, 20)


async def test_what_is_put_in_counts_until_it_is_seen(sql: Books) -> None:
    account, objects = await sql.account(), UpstreamObjects(sql.database)
    await objects.record_owner(account, "req_1", [MadeObject("vs_1", "vector_store", 800)])
    await objects.stores.expect("vs_1", 50, 2_000)
    await objects.stores.saw([StoreSize("vs_1", 5, working=True)])
    assert await objects.totals(account, "vector_store") == (1, 50)
    await objects.stores.saw([StoreSize("vs_1", 70, working=False)])
    assert await objects.totals(account, "vector_store") == (1, 70)
    await objects.stores.expect("vs_1", 0, 100)
    found = await objects.find("vs_1")
    assert found is not None
    assert found.context_tokens == 2_000  # the largest piece


async def test_days_without_a_word_are_like_the_last_one_with(sql: Books, day: int) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    await store_since(sql.database, account, "vs_1", {-4: 10, -2: 40}, days=4)
    await store_since(sql.database, account, "vs_2", {-1: 5}, days=3)
    days = [(one.day - day, one.bytes) for one in await stores.undecided(day - 1, 10)]
    assert days == [(-4, 10), (-3, 10), (-2, 40), (-1, 45)]
    await stores.decide([owed(account, day - 3)])
    assert [one.day - day for one in await stores.undecided(day - 1, 10)] == [-2, -1]


async def test_a_store_that_is_gone_costs_up_to_the_day_it_went(sql: Books, day: int) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    await store_since(sql.database, account, "vs_1", {-2: 10}, days=2)
    await UpstreamObjects(sql.database).forget("vs_1")
    assert [(one.day - day, one.bytes) for one in await stores.undecided(day, 10)] == [(-2, 10), (-1, 10), (0, 10)]
    await stores.decide([owed(account, day)])
    assert await stores.undecided(day + 1, 10) == []


async def test_nothing_stored_is_settled_at_once_and_says_up_to_where(sql: Books, day: int) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    await store_since(sql.database, account, "vs_1", {}, days=30)
    assert await stores.undecided(day - 1, 10) == [StoredDay(account, day - 1, 0)]
    await stores.decide([owed(account, day - 1)._replace(record="")])
    assert await stores.open(10) == []
    assert await stores.undecided(day - 1, 10) == []


async def test_a_day_is_decided_once(sql: Books, day: int) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    await stores.decide([owed(account, day, 10)])
    await stores.decide([owed(account, day, 99, "another")])
    assert [(one.due_millicredits, one.charge_id) for one in await stores.open(10)] == [
        (10, f"storage-{day}-{account}")
    ]


async def test_open_days_come_in_pages(sql: Books) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    await stores.decide([owed(account, day) for day in range(5)])
    first = await stores.open(2)
    after = (first[-1].created_at, first[-1].charge_id)
    assert [day.day for day in [*first, *await stores.open(9, after)]] == [0, 1, 2, 3, 4]


async def test_stores_are_asked_about_oldest_first(sql: Books) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    for name in ("vs_1", "vs_2", "vs_3"):
        await UpstreamObjects(sql.database).record_owner(account, "r", [MadeObject(name, "vector_store")])
    await stores.saw([StoreSize("vs_2", 1, working=False)])
    now = time.time_ns() // 1_000_000
    assert await stores.unseen_since(now - 1_000, 10) == ["vs_1", "vs_3"]
    assert await stores.unseen_since(now + 1_000, 10) == ["vs_1", "vs_3", "vs_2"]
    await UpstreamObjects(sql.database).forget("vs_1")
    assert await stores.unseen_since(now - 1_000, 10) == ["vs_3"]


async def test_a_day_is_owed_to_each_upstream_that_keeps_something(sql: Books, day: int) -> None:
    account, stores = await sql.account(), VectorStores(sql.database)
    for name, upstream, size in (("vs_1", "", 10), ("vs_2", "eu", 20), ("vs_3", "eu", 5), ("vs_4", "us", 0)):
        await store_since(sql.database, account, name, {-1: size}, upstream=upstream)
    found = await stores.undecided(day - 1, 10)
    assert found == [StoredDay(account, day - 1, 10, ""), StoredDay(account, day - 1, 25, "eu")]
    await stores.decide(
        [owed(account, day - 1, 3, f"charge_{one.upstream}")._replace(upstream=one.upstream) for one in found]
    )
    assert await stores.undecided(day - 1, 10) == []
    assert [(one.charge_id, one.upstream) for one in await stores.open(10)] == [("charge_", ""), ("charge_eu", "eu")]
    assert await stores.last_due(account) == 6
    queue = NoticeQueue(sql.database, wanted=True)
    await stores.settle(PaidDay((await stores.open(10))[0], 0), 99, 6, 7, DAY_MS, queue)
    assert [one.charge_id for one in await stores.open(10)] == ["charge_eu"], "the other one is open still"


@pytest.mark.parametrize("loss", [0, 4])
async def test_who_cannot_pay_is_told_once_and_has_time(sql: Books, day: int, loss: int) -> None:
    account, stores, queue = await sql.account(), VectorStores(sql.database), NoticeQueue(sql.database, wanted=True)
    days = [owed(account, day + number) for number in range(3)]
    await stores.decide(days)
    for one in days[:2]:
        for _ in range(2):  # the second time it is settled already
            await stores.settle(PaidDay(one, loss), 0, 10, 7, DAY_MS, queue)
    kinds = [kind for kind, _ in await told(sql.database)]
    assert kinds == (["storage.unpaid"] if loss else ["balance.low"])
    (row,) = await rows_of(sql.database, storage_standing)
    assert (row.unpaid_day is None, row.low_day) == ((False, None) if loss else (True, day))
    await stores.settle(PaidDay(days[2], 0), 70, 10, 7, DAY_MS, queue)
    (row,) = await rows_of(sql.database, storage_standing)
    assert (row.unpaid_day, row.remove_at, row.low_day) == (None, None, None)


async def test_uploads_count_for_an_hour_and_parts_in_their_upload(sql: Books) -> None:
    account, objects = await sql.account(), UpstreamObjects(sql.database)
    made = [
        MadeObject("upload_1", "upload", size_bytes=10),
        MadeObject("file-1", "file", size_bytes=5),
        MadeObject("part_1", "upload_part", size_bytes=3, parent_id="upload_1"),
        MadeObject("part_2", "upload_part", size_bytes=4, parent_id="upload_2"),
    ]
    await objects.record_owner(account, "req_1", made)
    assert await objects.totals(account, "file", "upload") == (2, 15)
    assert await objects.totals(account, "upload_part", parent_id="upload_1") == (1, 3)
    assert await objects.owned_among(account, "file", ["file-1", "file-2", "part_1"]) == {"file-1"}
    assert await objects.owned_among("acct_other", "file", ["file-1"]) == set()
    assert await objects.size_of(["file-1", "upload_1", "nothing"]) == 15
