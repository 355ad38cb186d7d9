"""One suite over both balance stores: the same rules, the same figures."""

import asyncio

import pytest

from billing.money.amounts import Millicredits
from billing.money.errors import AccountNotFound
from billing.money.holds import Checkpoint, Gone, Held, KeyLimits, Reading, Refused, Settled
from tests.support.stores import Books, record, request

pytestmark = pytest.mark.asyncio


async def settle(books: Books, hold_id: str, account_id: str, due: int, tokens: int = -1) -> Settled | Gone:
    return await books.store.settle(hold_id, account_id, Millicredits(due), record(hold_id, account_id), tokens)


async def test_a_hold_takes_from_available_and_a_settle_gives_the_rest_back(books: Books) -> None:
    account = await books.account(1_000)
    assert await books.store.hold(request("r1", account, 600)) == Held(1_000, 600)
    await books.store.wait_persisted("r1")
    assert await settle(books, "r1", account, 250) == Settled(250, 0, 750, 0)
    assert await books.store.read(account) == Reading(750, 0, 1)


# I1
async def test_a_hold_needs_all_of_it_available_and_the_refusal_says_what_is_in_the_way(books: Books) -> None:
    account = await books.account(1_000)
    assert await books.store.hold(request("r1", account, 1_001)) == Refused("balance", 1_000, 0)
    assert await books.store.hold(request("r2", account, 1_000)) == Held(1_000, 1_000)
    assert await books.store.hold(request("r3", account, 1)) == Refused("in_flight", 1_000, 1_000)


# I4
async def test_repeating_any_step_changes_nothing(books: Books) -> None:
    account = await books.account(1_000)
    for _ in range(3):
        assert await books.store.hold(request("r1", account, 600)) == Held(1_000, 600)
    assert isinstance(await settle(books, "r1", account, 100), Settled)
    for _ in range(2):
        assert await settle(books, "r1", account, 100) == Gone(900, 0)
        assert await books.store.release("r1", account) == Gone(900, 0)
    assert await books.flush() == 1
    assert (await books.ledger.posted(account)).balance == 900


async def test_a_release_charges_nothing_and_journals_nothing(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 600))
    assert await books.store.release("r1", account) == Settled(0, 0, 1_000, 0)
    assert await books.store.depth() == (0, 0)


# I2
async def test_what_upstream_bills_beyond_hold_and_available_is_a_loss_never_a_negative_balance(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    await books.store.hold(request("r2", account, 500))
    # r1 may take its 300 and the 200 nobody holds
    assert await settle(books, "r1", account, 900) == Settled(500, 400, 500, 500)
    assert await settle(books, "r2", account, 500) == Settled(500, 0, 0, 0)
    await books.flush()
    kinds = {(row.kind, row.amount_millicredits) for row in await books.ledger.transfers_of(account, 10)}
    assert kinds == {("adjustment", 1_000), ("usage", 500)}
    assert (await books.ledger.posted(account)).balance == 0


async def test_a_correction_may_make_a_balance_negative_and_live_holds_are_still_paid(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 600))
    await books.correct(account, -900)
    assert await books.store.hold(request("r2", account, 1)) == Refused("in_flight", 100, 600)
    assert await books.store.hold(request("r4", account, 101)) == Refused("balance", 100, 600)
    assert await settle(books, "r1", account, 700) == Settled(600, 100, -500, 0)
    assert await books.store.hold(request("r3", account, 0)) == Held(-500, 0)


async def test_a_charge_of_zero_is_journalled_like_any_other(books: Books) -> None:
    account = await books.account()
    assert await books.store.hold(request("r1", account, 0)) == Held(0, 0)
    assert await settle(books, "r1", account, 0) == Settled(0, 0, 0, 0)
    assert await books.flush() == 1
    (row,) = await books.ledger.usage_of(account, 10)
    assert row.charged_millicredits == 0


async def test_credits_apply_once_and_in_order(books: Books) -> None:
    account = await books.account(1_000)
    assert (await books.store.read(account)).sequence == 1
    assert await books.store.credit(account, 3, Millicredits(5)) is False
    assert await books.store.credit(account, 2, Millicredits(7)) is True
    assert await books.store.credit(account, 2, Millicredits(7)) is True
    assert await books.store.credit(account, 1, Millicredits(99)) is True
    assert await books.store.credit(account, 3, Millicredits(5)) is True
    assert await books.store.read(account) == Reading(1_012, 0, 3)


async def test_an_unknown_account_is_an_error_not_a_zero(books: Books) -> None:
    with pytest.raises(AccountNotFound):
        await books.store.hold(request("r1", "acct_nobody", 1))
    with pytest.raises(AccountNotFound):
        await books.store.read("acct_nobody")


async def test_a_spend_limit_counts_what_is_charged_and_what_is_held_and_starts_anew(books: Books) -> None:
    account = await books.account(10_000)
    november = KeyLimits(spend_limit=Millicredits(1_000), period="2026-11")
    assert isinstance(await books.store.hold(request("r1", account, 700, november)), Held)
    assert await books.store.hold(request("r2", account, 301, november)) == Refused("key_limit", 10_000, 700, 300, 0)
    await settle(books, "r1", account, 200)
    assert isinstance(await books.store.hold(request("r3", account, 800, november)), Held)
    assert await books.store.hold(request("r4", account, 1, november)) == Refused("key_limit", 9_800, 800, 0, 0)
    december = november._replace(period="2026-12")
    # what was held in November is still held; what was spent is not counted any more
    assert await books.store.hold(request("r5", account, 201, december)) == Refused("key_limit", 9_800, 800, 200, 0)
    assert isinstance(await books.store.hold(request("r6", account, 200, december)), Held)


async def test_a_request_of_the_period_before_neither_resets_nor_escapes_the_limit(books: Books) -> None:
    account = await books.account(100_000)
    today = KeyLimits(spend_limit=Millicredits(1_000), period="2026-11-24")
    yesterday = today._replace(period="2026-11-23")
    for number in range(6):
        limits = yesterday if number % 2 else today
        held = await books.store.hold(request(f"r{number}", account, 500, limits=limits))
        if isinstance(held, Held):
            await settle(books, f"r{number}", account, 500)
    assert (await books.store.read(account)).balance == 99_000


async def test_a_spend_limit_survives_a_restart_of_the_store(books: Books) -> None:
    account = await books.account(10_000)
    # the records are of November 2026
    limits = KeyLimits(spend_limit=Millicredits(1_000), period="2026-11")
    await books.store.hold(request("r1", account, 700, limits))
    await settle(books, "r1", account, 700)
    await books.flush()
    await books.reopen()
    assert await books.store.hold(request("r2", account, 301, limits)) == Refused("key_limit", 9_300, 0, 300, 0)


async def test_requests_per_minute(books: Books) -> None:
    account = await books.account(10_000)
    limits = KeyLimits(requests_per_minute=3)
    for number in range(3):
        assert isinstance(await books.store.hold(request(f"r{number}", account, 1, limits)), Held)
    refused = await books.store.hold(request("r3", account, 1, limits))
    assert isinstance(refused, Refused)
    assert refused.source == "requests_per_minute"
    assert 0 < refused.retry_after_ms <= 20_000


async def test_tokens_per_minute_are_corrected_when_fewer_were_used(books: Books) -> None:
    account = await books.account(10_000)
    limits = KeyLimits(tokens_per_minute=1_000)
    assert isinstance(await books.store.hold(request("r1", account, 1, limits, tokens=900)), Held)
    refused = await books.store.hold(request("r2", account, 1, limits, tokens=900))
    assert isinstance(refused, Refused)
    assert refused.source == "tokens_per_minute"
    assert 40_000 < refused.retry_after_ms <= 48_000
    await settle(books, "r1", account, 1, tokens=100)
    assert isinstance(await books.store.hold(request("r3", account, 1, limits, tokens=890)), Held)


async def test_concurrency(books: Books) -> None:
    account = await books.account(10_000)
    limits = KeyLimits(concurrency=2)
    for number in range(2):
        assert isinstance(await books.store.hold(request(f"r{number}", account, 1, limits)), Held)
    assert await books.store.hold(request("r2", account, 1, limits)) == Refused("concurrency", 10_000, 2, 0, 1_000)
    await books.store.release("r0", account)
    assert isinstance(await books.store.hold(request("r3", account, 1, limits)), Held)


async def test_a_hold_shrinks_but_not_below_its_checkpoint_and_never_grows(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 800))
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(300), b""))
    books.store.shrink("r1", account, Millicredits(900))
    await _held_is(books, account, 800)
    books.store.shrink("r1", account, Millicredits(500))
    await _held_is(books, account, 500)
    books.store.shrink("r1", account, Millicredits(1))
    await _held_is(books, account, 300)
    assert await settle(books, "r1", account, 800) == Settled(800, 0, 200, 0)


async def _held_is(books: Books, account: str, held: int) -> None:
    for _ in range(100):
        if (await books.store.read(account)).held == held:
            return
        await asyncio.sleep(0.01)
    assert (await books.store.read(account)).held == held


# I3
async def test_the_journal_keeps_charges_until_they_are_acknowledged(books: Books) -> None:
    account = await books.account(1_000)
    for number in range(5):
        await books.store.hold(request(f"r{number}", account, 10))
        await settle(books, f"r{number}", account, 10)
    entries = await books.store.pending(100)
    assert len(entries) == 5
    assert len(await books.store.pending(100)) == 5
    await books.store.acknowledge(entries[:2])
    assert len(await books.store.pending(100)) == 3
    count, age_ms = await books.store.depth()
    assert count == 3
    assert 0 <= age_ms < 60_000


# I4
async def test_replaying_any_prefix_of_the_journal_books_each_charge_once(books: Books) -> None:
    account = await books.account(1_000)
    for number in range(6):
        await books.store.hold(request(f"r{number}", account, 10))
        await settle(books, f"r{number}", account, 10)
    entries = await books.store.pending(100)
    for size in (2, 1, 4, 3, 6, 6):
        await books.ledger.post(entries[:size])
    assert (await books.ledger.posted(account)).balance == 940
    assert len(await books.ledger.usage_of(account, 100)) == 6


async def test_an_account_first_seen_by_many_requests_at_once_is_loaded_once(books: Books) -> None:
    account = await books.account(50)
    found = await asyncio.gather(*(books.store.hold(request(f"r{number}", account, 1)) for number in range(100)))
    assert sum(isinstance(one, Held) for one in found) == 50
    assert await books.store.read(account) == Reading(50, 50, 1)


# I6
async def test_reopening_finds_every_figure_again(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 100))
    await settle(books, "r1", account, 60)
    await books.reopen()
    reading = await books.store.read(account)
    assert reading.balance == 940
    await books.flush()
    assert (await books.ledger.posted(account)).balance == 940
