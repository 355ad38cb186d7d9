"""Owners of what is stored upstream, their sizes and their lists, on both databases."""

import asyncio

from sqlalchemy import update

from billing.ledger.objects.upstream_objects import (
    CLAIM_MS,
    LONGEST_REQUEST_MS,
    MadeObject,
    OwnedObject,
    UpstreamObjects,
)
from billing.storage.database import now_ms
from billing.storage.tables.core import upstream_objects
from tests.support.stores import Books


async def made(sql: Books, *objects: MadeObject) -> tuple[UpstreamObjects, str]:
    kept, account = UpstreamObjects(sql.database), await sql.account()
    for one in objects:
        await kept.record_owner(account, "req_1", [one])
        await asyncio.sleep(0.002)  # each a millisecond of its own
    return kept, account


async def seen(kept: UpstreamObjects, object_id: str = "conv_1") -> OwnedObject:
    found = await kept.find(object_id)
    assert found is not None
    return found


async def test_a_request_that_runs_alone_leaves_what_its_answer_says(sql: Books) -> None:
    kept, _ = await made(sql, MadeObject("conv_1", "conversation", 100))
    before = await seen(kept)
    assert await kept.reserve("conv_1", before, 50, 7)
    during = await seen(kept)
    assert (during.context_tokens, during.reserved, during.picture_extra) == (100, 50, 7)
    await kept.add_reserved("conv_1", 50, 50, (100, 120))
    after = await seen(kept)
    assert (after.context_tokens, after.reserved) == (120, 0)


async def test_requests_that_run_side_by_side_are_all_counted_whatever_ends_first(sql: Books) -> None:
    kept, _ = await made(sql, MadeObject("conv_1", "conversation", 10))
    assert await kept.reserve("conv_1", await seen(kept), 400, 0)
    assert await kept.reserve("conv_1", await seen(kept), 300, 0)
    await kept.add_reserved("conv_1", 400, 200, (10, 200))  # it read 10 and wrote 190
    await kept.add_reserved("conv_1", 300, 210)  # it read 10 as well, and wrote 200
    after = await seen(kept)
    assert (after.context_tokens, after.reserved) == (420, 0)  # 400 in truth: never less


async def test_one_of_many_that_saw_the_same_reserves(sql: Books) -> None:
    kept, _ = await made(sql, MadeObject("conv_1", "conversation", 0))
    before = await seen(kept)
    reserved = await asyncio.gather(*(kept.reserve("conv_1", before, 10, 0) for _ in range(5)))
    assert sorted(reserved) == [False, False, False, False, True]


async def test_what_a_process_that_died_reserved_is_counted_until_an_answer_says_better(sql: Books) -> None:
    kept, _ = await made(sql, MadeObject("conv_1", "conversation", 10))
    assert await kept.reserve("conv_1", await seen(kept), 400, 0)
    during = await seen(kept)
    assert (during.is_quiet, during.most_tokens) == (False, 410)
    table = upstream_objects.c
    async with sql.database.write() as connection:
        await connection.execute(
            update(upstream_objects).values(reserved_at=table.reserved_at - LONGEST_REQUEST_MS - 1)
        )
    later = await seen(kept)
    assert (later.is_quiet, later.most_tokens) == (True, 410)
    assert await kept.reserve("conv_1", later, 50, 0)
    assert (await seen(kept)).most_tokens == 460
    await kept.add_reserved("conv_1", 50, 50, (410, 30))
    assert (await seen(kept)).most_tokens == 30


async def test_a_size_that_is_not_known_stays_unknown(sql: Books) -> None:
    kept, _ = await made(sql, MadeObject("conv_1", "conversation", 5))
    await kept.grow("conv_1", None)
    await kept.grow("conv_1", 50)
    found = await kept.find("conv_1")
    assert found is not None
    assert found.context_tokens is None


async def test_what_is_known_when_an_object_begins_stays_where_its_end_says_nothing_of_it(sql: Books) -> None:
    """A background response is ended by a record that has no items and no pictures of its request."""
    begun = MadeObject("resp_1", "response", None, "gpt-5.4", 500, "file_search")
    kept, account = await made(sql, begun)
    for told, known in (
        (MadeObject("resp_1", "response", 120, "", 7, ""), (120, "gpt-5.4", 500, "file_search")),
        (MadeObject("resp_1", "response", 130, "gpt-4.1", 900, "web_search"), (130, "gpt-4.1", 900, "web_search")),
    ):
        await kept.record_owner(account, "req_1", [told])
        found = await seen(kept, "resp_1")
        assert (found.context_tokens, found.model, found.picture_extra, found.tools) == known


async def test_pages_are_of_ones_own_kind_and_go_on_after_the_last(sql: Books) -> None:
    files = [MadeObject(f"file-{number}", "file", size_bytes=10) for number in range(5)]
    kept, account = await made(sql, *files, MadeObject("conv_1", "conversation"))
    other, stranger = await made(sql, MadeObject("file-theirs", "file", size_bytes=99))
    assert [one for one, _ in await kept.page(account, "file", 2)] == ["file-4", "file-3"]
    assert [one for one, _ in await kept.page(account, "file", 9, "file-3")] == ["file-2", "file-1", "file-0"]
    assert [one for one, _ in await kept.page(account, "file", 9, "file-3", newest_first=False)] == ["file-4"]
    assert [one for one, _ in await kept.page(account, "file", 9, "file-theirs")] == []
    await kept.forget("file-4")
    assert [one for one, _ in await kept.page(account, "file", 1)] == ["file-3"]
    assert await kept.totals(account, "file") == (4, 40)
    assert await other.totals(stranger, "file") == (1, 99)


async def test_room_that_is_claimed_counts_until_it_is_free_or_its_process_has_died(sql: Books) -> None:
    kept, account = await made(sql, MadeObject("file_a", "file", size_bytes=100))
    await kept.claim_room(account, "req_2", "file", 50)
    await kept.claim_room(account, "req_3", "vector_store", 7)
    assert await kept.totals(account, "file", "upload") == (1, 150), "bytes on their way are no object yet"
    assert await kept.totals(account, "vector_store") == (0, 7)
    assert [one for one, _ in await kept.page(account, "file", 10)] == ["file_a"]
    await kept.free_room("req_2")
    await kept.free_room("req_2")
    assert await kept.totals(account, "file", "upload") == (1, 100)
    await kept.claim_room(account, "req_4", "file", 60)
    long_ago = update(upstream_objects).where(upstream_objects.c.charge_id == "req_4")
    async with sql.database.write() as connection:
        await connection.execute(long_ago.values(created_at=now_ms() - CLAIM_MS - 1))
    assert await kept.totals(account, "file", "upload") == (1, 100)
    await kept.claim_room(account, "req_5", "file", 5)
    assert await kept.find("claim:req_4") is None, "what died is swept away by the next"


async def test_the_oldest_are_found_by_account_or_of_all(sql: Books) -> None:
    kept, account = await made(sql, MadeObject("conv_1", "conversation"), MadeObject("msg_1", "item"))
    await made(sql, MadeObject("resp_2", "response"))
    kinds = ("conversation", "response")
    assert await kept.made_before(2**50, kinds, 9) == [("conv_1", "conversation"), ("resp_2", "response")]
    assert await kept.made_before(2**50, kinds, 9, account) == [("conv_1", "conversation")]
    assert await kept.made_before(0, kinds, 9) == []


async def test_what_upstream_drops_by_itself_is_gone_then_and_what_its_owner_deleted_stays_so(sql: Books) -> None:
    now = now_ms()
    kept, account = await made(sql, MadeObject("audio_1", "audio", 900), MadeObject("audio_2", "audio", 5, gone_at=now))
    assert (await seen(kept, "audio_2")).deleted
    await kept.record_owner(account, "req_1", [MadeObject("audio_1", "audio", 60, gone_at=now + 60_000)])
    there = await seen(kept, "audio_1")
    assert (there.deleted, there.most_tokens) == (False, 60)
    await kept.record_owner(account, "req_1", [MadeObject("audio_1", "audio", 60)])
    assert not (await seen(kept, "audio_1")).deleted
    await made(sql, MadeObject("resp_1", "response", 1))
    await kept.forget("resp_1")
    await kept.record_owner(account, "req_1", [MadeObject("resp_1", "response", 2)])
    assert (await seen(kept, "resp_1")).deleted


async def test_of_two_processes_one_marks_a_background_response_as_settled(sql: Books) -> None:
    kept, account = UpstreamObjects(sql.database), await sql.account()
    await kept.begin_background("resp_1", "req_1", account, "{}")
    assert await kept.is_running("resp_1")
    assert [await kept.end_background("resp_1"), await kept.end_background("resp_1")] == [True, False]
    assert not await kept.is_running("resp_1")
    assert await kept.end_background("resp_never") is False
