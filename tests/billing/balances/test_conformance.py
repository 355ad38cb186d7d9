"""One suite over both balance stores: the same rules, the same figures."""

import asyncio

import pytest

from billing.money.amounts import Millicredits
from billing.money.errors import AccountNotFound
from billing.money.holds import Budget, Checkpoint, Gone, Held, KeyLimits, Leads, Reading, Refused, Settled
from tests.support.stores import Books, record, request

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.parametrize("books", ["embedded", "redis", "cluster"], indirect=True),
]


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


# I4
async def test_what_several_processes_have_taken_on_is_charged_once(books: Books) -> None:
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 600))
    books.store.detach("r1", account)
    for _ in range(2):
        assert await books.store.resume(request("r1", account, 600)) == Held(1_000, 600)
    assert await settle(books, "r1", account, 250) == Settled(250, 0, 750, 0)
    for _ in range(2):
        assert await books.store.resume(request("r1", account, 600)) == Gone(750, 0)
    assert await books.store.read(account) == Reading(750, 0, 1)


async def test_a_hold_that_was_lost_is_made_again_by_who_takes_it_on(books: Books) -> None:
    account = await books.account(1_000)
    assert await books.store.resume(request("r1", account, 600)) == Held(1_000, 600)
    assert await books.store.resume(request("r2", account, 600)) == Refused("in_flight", 1_000, 600)
    assert isinstance(await books.store.release("r1", account), Settled)
    assert await books.store.resume(request("r1", account, 600)) == Gone(1_000, 0)


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


async def test_a_look_says_what_a_hold_would_and_takes_nothing(books: Books) -> None:
    account = await books.account(1_000)
    limits = KeyLimits(2, 100, 2, (budget(900, "2026-11"),))
    for _ in range(5):
        assert await books.store.look(request("look", account, 1, limits, tokens=0)) is None
    assert await books.store.read(account) == Reading(1_000, 0, 1)
    for amount in (1_001, 901):
        looked = await books.store.look(request("look", account, amount, limits, tokens=0))
        assert isinstance(looked, Refused)
        assert (looked.source, looked.key_available) == ("key_limit", 900)
    assert await books.store.look(request("look", account, 1_001)) == Refused("balance", 1_000, 0)
    assert isinstance(await books.store.hold(request("r1", account, 800, limits, tokens=90)), Held)
    assert await books.store.look(request("look", account, 201)) == Refused("in_flight", 1_000, 800)
    spent = await books.store.look(request("look", account, 101, limits, tokens=0))
    assert isinstance(spent, Refused)
    assert (spent.source, spent.key_available) == ("key_limit", 100)
    assert isinstance(await books.store.hold(request("r2", account, 1, limits, tokens=0)), Held)
    for limit, source in (({"concurrency": 2}, "concurrency"), ({"requests_per_minute": 2}, "requests_per_minute")):
        looked = await books.store.look(request("look", account, 0, KeyLimits(**limit), tokens=0))
        assert isinstance(looked, Refused)
        assert (looked.source, looked.retry_after_ms > 0) == (source, True)
    assert await books.store.read(account) == Reading(1_000, 801, 1)
    with pytest.raises(AccountNotFound):
        await books.store.look(request("look", "acct_nobody", 1))


async def test_a_spend_limit_counts_what_is_charged_and_what_is_held_and_starts_anew(books: Books) -> None:
    account = await books.account(10_000)
    november = KeyLimits(budgets=(budget(1_000, "2026-11"),))
    assert isinstance(await books.store.hold(request("r1", account, 700, november)), Held)
    assert await books.store.hold(request("r2", account, 301, november)) == Refused("key_limit", 10_000, 700, 300, 0)
    await settle(books, "r1", account, 200)
    assert isinstance(await books.store.hold(request("r3", account, 800, november)), Held)
    assert await books.store.hold(request("r4", account, 1, november)) == Refused("key_limit", 9_800, 800, 0, 0)
    december = KeyLimits(budgets=(budget(1_000, "2026-12"),))
    # what was held in November is still held; what was spent is not counted any more
    assert await books.store.hold(request("r5", account, 201, december)) == Refused("key_limit", 9_800, 800, 200, 0)
    assert isinstance(await books.store.hold(request("r6", account, 200, december)), Held)


async def test_a_request_of_the_period_before_neither_resets_nor_escapes_the_limit(books: Books) -> None:
    account = await books.account(100_000)
    today = KeyLimits(budgets=(budget(1_000, "2026-11-24"),))
    yesterday = KeyLimits(budgets=(budget(1_000, "2026-11-23"),))
    for number in range(6):
        limits = yesterday if number % 2 else today
        held = await books.store.hold(request(f"r{number}", account, 500, limits=limits))
        if isinstance(held, Held):
            await settle(books, f"r{number}", account, 500)
    assert (await books.store.read(account)).balance == 99_000


async def test_a_spend_limit_survives_a_restart_of_the_store(books: Books) -> None:
    account = await books.account(10_000)
    # the records are of November 2026
    limits = KeyLimits(budgets=(budget(1_000, "2026-11"),))
    await books.store.hold(request("r1", account, 700, limits))
    await settle(books, "r1", account, 700)
    await books.flush()
    await books.reopen()
    assert await books.store.hold(request("r2", account, 301, limits)) == Refused("key_limit", 9_300, 0, 300, 0)


def budget(limit: int, period: str, *, kind: str = "month", models: tuple[str, ...] | None = None) -> Budget:
    return Budget(f"key_1:{kind}:{'-'.join(models or ())}", period, Millicredits(limit), models)


async def test_of_several_budgets_every_one_must_leave_enough_and_the_tightest_is_named(books: Books) -> None:
    account = await books.account(100_000)
    day, month = budget(1_000, "2026-11-24", kind="day"), budget(2_500, "2026-11")
    both = KeyLimits(budgets=(month, day))
    assert isinstance(await books.store.hold(request("r1", account, 600, both)), Held)
    refused = await books.store.hold(request("r2", account, 401, both))
    assert refused == Refused("key_limit", 100_000, 600, 400, 0, budget=1)
    await settle(books, "r1", account, 500)
    for number, (today, amount) in enumerate((("2026-11-24", 500), ("2026-11-25", 1_000), ("2026-11-26", 500))):
        fresh = KeyLimits(budgets=(month, day._replace(period=today)))
        assert isinstance(await books.store.hold(request(f"d{number}", account, amount, fresh)), Held), today
        await settle(books, f"d{number}", account, amount)
    last = KeyLimits(budgets=(month, day._replace(period="2026-11-26")))
    assert await books.store.hold(request("r3", account, 1, last)) == Refused("key_limit", 97_500, 0, 0, 0, budget=0)


async def test_what_a_refused_or_released_request_asked_for_is_in_no_budget(books: Books) -> None:
    account = await books.account(1_500)
    limits = KeyLimits(budgets=(budget(1_000, "2026-11"), budget(2_000, "2026-11-24", kind="day")))
    assert isinstance(await books.store.hold(request("big", account, 1_000, limits)), Held)
    wide = KeyLimits(budgets=(budget(5_000, "2026-11"), budget(5_000, "2026-11-24", kind="day")))
    refused = await books.store.hold(request("no", account, 600, wide))  # by the balance, once the budgets agreed
    assert isinstance(refused, Refused)
    assert refused.source == "in_flight"
    await books.store.release("big", account)
    assert isinstance(await books.store.hold(request("again", account, 1_000, limits)), Held)
    books.store.shrink("again", account, Millicredits(400))
    found = await books.store.hold(request("s", account, 601, limits))
    for number in range(50):  # a shrink is sent soon, never awaited
        if found.held == 400:
            break
        await asyncio.sleep(0.02)
        found = await books.store.hold(request(f"s{number}", account, 601, limits))
    assert found == Refused("key_limit", 1_500, 400, 600, 0)
    await settle(books, "again", account, 300)
    assert await books.store.hold(request("r", account, 701, limits)) == Refused("key_limit", 1_200, 0, 700, 0)


async def test_a_budget_whose_limit_changes_keeps_what_was_spent_of_it(books: Books) -> None:
    account = await books.account(100_000)
    await books.store.hold(request("r1", account, 900, KeyLimits(budgets=(budget(1_000, "2026-11"),))))
    await settle(books, "r1", account, 900)
    raised, lowered = KeyLimits(budgets=(budget(1_500, "2026-11"),)), KeyLimits(budgets=(budget(500, "2026-11"),))
    assert await books.store.hold(request("r2", account, 601, raised)) == Refused("key_limit", 99_100, 0, 600, 0)
    assert await books.store.hold(request("r3", account, 1, lowered)) == Refused("key_limit", 99_100, 0, -400, 0)


@pytest.mark.parametrize(("models", "left"), [(("gpt-4o*",), 100), (("gpt-6*", "o3"), 1_000), (None, 100)])
async def test_a_budget_that_comes_later_knows_what_the_ledger_has_of_its_models(
    models: tuple[str, ...] | None, left: int, books: Books
) -> None:
    account = await books.account(100_000)
    await books.store.hold(request("r1", account, 900))
    await settle(books, "r1", account, 900)  # its record is of gpt-4o-mini in November 2026
    await books.flush()
    added = KeyLimits(budgets=(budget(1_000, "2026-11", models=models),))
    assert await books.store.hold(request("r2", account, 1_001, added)) == Refused("key_limit", 99_100, 0, left, 0)


@pytest.mark.parametrize("periods", [("2026-11",), ("2026-11", "2026-11-24", "2026-W48", "total")])
async def test_exactly_as_many_requests_at_once_as_the_budgets_leave(periods: tuple[str, ...], books: Books) -> None:
    account = await books.account(1_000_000)
    limits = KeyLimits(budgets=tuple(budget(1_000 + 10 * n, name, kind=name) for n, name in enumerate(periods)))
    asked = [request(f"r{number}", account, 70, limits) for number in range(60)]
    found = await asyncio.gather(*(books.store.hold(one) for one in asked))
    held = [one.hold_id for one, answer in zip(asked, found, strict=True) if isinstance(answer, Held)]
    assert len(held) == 14
    await asyncio.gather(*(settle(books, hold_id, account, 30) for hold_id in held))
    again = [one._replace(hold_id=f"again {one.hold_id}") for one in asked]
    found = await asyncio.gather(*(books.store.hold(one) for one in again))
    assert sum(isinstance(answer, Held) for answer in found) == (1_000 - 14 * 30) // 70


async def test_keys_and_models_have_budgets_of_their_own(books: Books) -> None:
    account = await books.account(100_000)
    for number, scope in enumerate(("key_1:month", "key_2:month", "key_1:month:abc", "key_1:day"), 1):
        limits = KeyLimits(budgets=(Budget(scope, "2026-11", Millicredits(100)),))
        key = scope.partition(":")[0]
        assert isinstance(await books.store.hold(request(scope, account, 100, limits, key)), Held)
        refused = Refused("key_limit", 100_000, number * 100, 0, 0)
        assert await books.store.hold(request("no", account, 1, limits, key)) == refused


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


async def test_every_answer_to_a_hold_says_how_far_the_minutes_are_used_up(books: Books) -> None:
    account = await books.account(10_000)
    limits = KeyLimits(requests_per_minute=3, tokens_per_minute=1_000)

    def near(found: Held | Refused, requests_us: int, tokens_us: int) -> bool:
        passed = 5_000_000  # a slow machine: the buckets fill meanwhile
        return (
            requests_us - passed <= found.leads.requests_us <= requests_us
            and tokens_us - passed <= found.leads.tokens_us <= tokens_us
        )

    assert near(await books.store.hold(request("r1", account, 1, limits, tokens=300)), 20_000_000, 18_000_000)
    assert near(await books.store.hold(request("r2", account, 1, limits, tokens=300)), 40_000_000, 36_000_000)
    for number, refused in enumerate(("tokens_per_minute", "balance")):
        amount, tokens = (1, 900) if number == 0 else (20_000, 1)
        found = await books.store.hold(request(f"no{number}", account, amount, limits, tokens=tokens))
        assert isinstance(found, Refused)
        assert found.source == refused
        assert near(found, 40_000_000, 36_000_000), "what was refused took nothing"
    assert near(await books.store.hold(request("r3", account, 1, limits, tokens=100)), 60_000_000, 42_000_000)
    found = await books.store.hold(request("no", account, 1, limits, tokens=1))
    assert (isinstance(found, Refused), near(found, 60_000_000, 42_000_000)) == (True, True)
    unlimited = await books.store.hold(request("r5", account, 1))
    assert unlimited.leads == Leads(0, 0)


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
