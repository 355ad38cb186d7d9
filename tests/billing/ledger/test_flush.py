"""The flush: charges that SQL cannot take as they are are made to fit, or stand aside, and keep nobody else's out of the ledger."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from billing.accounting.reconcile import check_ledger
from billing.ledger.flush import flush_once, repeat, while_leading
from billing.ledger.ledger import Ledger
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry
from tests.support.charges import NOW, settled
from tests.support.stores import Books, record

SLOW_SQLITE = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000000) SELECT count(*) FROM n"


class Shelf:
    """A journal that holds what it was given."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    async def pending(self, limit: int) -> list[Entry]:
        return self.entries[:limit]

    async def acknowledge(self, entries: list[Entry]) -> None:
        done = {entry.position for entry in entries}
        self.entries = [entry for entry in self.entries if entry.position not in done]

    async def refused(self, entries: list[Entry]) -> None:
        raise AssertionError(f"nothing was overtaken: {entries}")

    async def depth(self) -> tuple[int, int]:
        return len(self.entries), 0


def changed(charge_id: str, account: str, **fields: Any) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(record(charge_id, account)), **fields})


async def test_odd_texts_and_counts_are_made_to_fit(sql: Books) -> None:
    account = await sql.account(1_000)
    odd: list[dict[str, Any]] = [
        {"model": "x" * 500},
        {"model": "a\0b", "billedModel": "\0"},
        {"upstreamId": "é" * 300},
        {"serviceTier": "unheard of, and long"},
        {"inputTokens": 2**63 - 1},
        {"durationMs": 2**63 - 1, "toolCalls": "\0"},
    ]
    entries = [Entry(str(n), 10, 0, changed(f"r{n}", account, **fields)) for n, fields in enumerate(odd)]
    shelf = Shelf(entries)
    assert await flush_once(shelf, sql.ledger, 100) == len(odd)
    assert shelf.entries == []
    rows = {row.charge_id: row for row in await sql.ledger.usage_of(account, 20)}
    assert rows["r0"].model == "x" * 120
    assert rows["r1"].model == "ab"
    assert (await sql.ledger.posted(account)).balance == 1_000 - 10 * len(odd)


async def test_a_charge_that_cannot_be_booked_keeps_no_other_waiting(sql: Books) -> None:
    account = await sql.account(1_000)
    entries = [Entry(str(n), 10, 0, record(f"r{n}", account)) for n in range(7)]
    entries[2] = Entry("2", -10, 0, record("r2", account))
    entries[5] = Entry("5", 10, 0, b"no record at all")
    shelf = Shelf(entries)
    with pytest.raises(StoreUnavailable, match="2 charges cannot be booked"):
        await flush_once(shelf, sql.ledger, 100)
    assert [entry.position for entry in shelf.entries] == ["2", "5"]
    assert (await sql.ledger.posted(account)).balance == 1_000 - 10 * 5
    async with sql.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM usage"))).scalar_one() == 5


async def test_every_charge_that_is_booked_is_told_of_once(sql: Books) -> None:
    """By the flush, by a repeat of it, after a rebuilding."""
    told: list[str] = []
    ledger = Ledger(sql.database, lambda entries: told.extend(entry.position for entry in entries))
    account = await sql.account(900_000_000)
    first, second = settled("n1", account, NOW)._replace(loss=7), settled("n2", account, NOW)
    await ledger.post_current([first])
    await ledger.post_bookable([first, second])
    await ledger.post([second, first])
    assert told == ["n1", "n2"]


async def test_a_lead_is_kept_while_its_step_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lead that nobody asks for ends within seconds; another process would do the same work beside this one."""
    monkeypatch.setattr("billing.ledger.flush.KEEP_SECONDS", 0.01)
    asked, answers, enough = 0, [True], asyncio.Event()

    async def leads() -> bool:
        nonlocal asked
        asked += 1
        if asked == 4:
            enough.set()
        return answers[0]

    async def step() -> int:
        await asyncio.wait_for(enough.wait(), 5)
        return 1

    resigned: list[bool] = []
    led = while_leading(leads, step, lambda: resigned.append(True))
    assert (await led(), resigned) == (1, [])
    answers[0] = False
    assert (await led(), resigned) == (0, [True])
    asked_then = asked
    await asyncio.sleep(0.05)
    assert asked == asked_then  # nobody asks for it any more


async def test_a_lane_that_fails_keeps_no_other_from_its_end(sql: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets share nothing: what one lane booked is acknowledged, what the other could not stays in the journal."""
    accounts = [await sql.account(1_000) for _ in range(2)]
    entries = [Entry(str(n), 10, 0, record(f"r{n}", accounts[n % 2]), n % 2) for n in range(6)]
    shelf, whole = Shelf(entries), Ledger.post_bookable

    async def half(ledger: Ledger, some: Sequence[Entry]) -> tuple[list[Entry], dict[str, str]]:
        if some and some[0].bucket == 1:
            raise StoreUnavailable("sql", "is away")
        return await whole(ledger, some)

    monkeypatch.setattr(Ledger, "lanes", 2)
    monkeypatch.setattr(Ledger, "post_bookable", half)
    with pytest.raises(StoreUnavailable, match="is away"):
        await flush_once(shelf, sql.ledger, 100)
    assert sorted(entry.position for entry in shelf.entries) == ["1", "3", "5"]
    monkeypatch.setattr(Ledger, "post_bookable", whole)
    assert await flush_once(shelf, sql.ledger, 100) == 3
    assert shelf.entries == []
    assert [(await sql.ledger.posted(account)).balance for account in accounts] == [970, 970]
    assert await check_ledger(sql.database) == []


@pytest.mark.parametrize("answer", [RuntimeError("not now"), StoreUnavailable("sql", "away"), None])
async def test_a_job_whose_library_answers_a_cancellation_with_an_error_ends(answer: Exception | None) -> None:
    """It went on for ever, and a server that was to stop waited for it."""
    began = asyncio.Event()

    async def step() -> int:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if answer is not None:
                raise answer from None
        return 1

    job = asyncio.create_task(repeat(step, 60, "test"))
    await began.wait()
    job.cancel()
    await asyncio.wait([job], timeout=10)
    assert job.cancelled()


async def test_reading_that_is_cancelled_says_so(sql: Books) -> None:
    """An error of undoing what was read would hide it, and whoever reads would go on."""
    reading = asyncio.Event()

    async def read() -> None:
        async with sql.database.snapshot() as connection:
            await connection.execute(text("SELECT 1"))
            slow = SLOW_SQLITE if sql.database.is_sqlite else "SELECT pg_sleep(5)"
            reading.set()
            await connection.execute(text(slow))

    task = asyncio.create_task(read())
    await reading.wait()
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    async with sql.database.snapshot() as connection:
        assert (await connection.execute(text("SELECT 2"))).scalar_one() == 2
