"""Batches in SQL, on both databases: there before they run, open until they are settled."""

import asyncio

from billing.ledger.objects.batches import Batches
from tests.support.stores import Books


async def test_a_batch_is_open_from_before_it_is_made_until_it_is_settled(sql: Books) -> None:
    kept, account = Batches(sql.database), await sql.account()
    await kept.begin("req_1", account, "file-a", "file-b", "{}")
    (row,) = await kept.open(10)
    assert (row.batch_id, row.client_file_id, row.sent_file_id, row.settled_at) == (None, "file-a", "file-b", None)
    assert await kept.is_read("file-b")
    assert not await kept.is_read("file-a")
    await kept.made("req_1", "batch_1")
    found = await kept.of_upstream("batch_1")
    assert found is not None
    assert (found.charge_id, found.account_id) == ("req_1", account)
    assert [await kept.end("req_1"), await kept.end("req_1")] == [True, False]
    assert await kept.open(10) == []
    assert not await kept.is_read("file-b")
    ended = await kept.find("req_1")
    assert ended is not None
    assert ended.settled_at is not None


async def test_open_batches_come_oldest_first(sql: Books) -> None:
    kept, account = Batches(sql.database), await sql.account()
    for number in range(3):
        await kept.begin(f"req_{number}", account, "file-a", f"file-{number}", "{}")
        await asyncio.sleep(0.002)
    assert [row.charge_id for row in await kept.open(2)] == ["req_0", "req_1"]


async def test_what_is_not_there_is_nothing(sql: Books) -> None:
    kept = Batches(sql.database)
    assert await kept.find("req_0") is None
    assert await kept.of_upstream("batch_0") is None
