"""Budgets of end users in both stores: counted over keys, in the step that holds, and read from the ledger again."""

import asyncio
from typing import Any

import pytest

from billing.balances import embedded
from billing.balances.redis.store import RedisBalances
from billing.money.amounts import Millicredits
from billing.money.holds import KEPT_SECONDS, Budget, Gone, Held, KeyLimits, Refused, Settled
from tests.support.stores import Books, record, request

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.parametrize("books", ["embedded", "redis", "cluster"], indirect=True),
]

KEY = Budget("key_1:month", "2026-11", Millicredits(2_000))


def of_user(name: str, limit: int, period: str = "2026-11", account: str = "a") -> Budget:
    return Budget(f"{account}:u:{name}:month", period, Millicredits(limit), None, name)


async def settle(books: Books, hold_id: str, account: str, due: int, user: str) -> Settled | Gone:
    booked = record(hold_id, account, end_user=user)
    return await books.store.settle(hold_id, account, Millicredits(due), booked)


async def test_an_end_user_has_one_budget_over_all_keys_and_each_user_their_own(books: Books) -> None:
    account = await books.account(100_000)
    anna = KeyLimits(budgets=(of_user("anna", 1_000),))
    bert = KeyLimits(budgets=(of_user("bert", 1_000),))
    assert isinstance(await books.store.hold(request("r1", account, 700, anna, "key_1")), Held)
    assert await books.store.hold(request("r2", account, 301, anna, "key_2")) == Refused(
        "key_limit", 100_000, 700, 300, 0
    )
    assert isinstance(await books.store.hold(request("r3", account, 1_000, bert, "key_1")), Held)
    assert await settle(books, "r1", account, 200, "anna") == Settled(200, 0, 99_800, 1_000)
    assert isinstance(await books.store.hold(request("r4", account, 800, anna, "key_2")), Held)


async def test_of_the_keys_and_the_users_budgets_the_tightest_is_named_and_nothing_is_taken(books: Books) -> None:
    account = await books.account(100_000)
    both = KeyLimits(budgets=(KEY, of_user("anna", 500)))
    assert await books.store.hold(request("r1", account, 501, both)) == Refused(
        "key_limit", 100_000, 0, 500, 0, budget=1
    )
    assert isinstance(await books.store.hold(request("r2", account, 2_000, KeyLimits(budgets=(KEY,)))), Held)
    assert await books.store.hold(request("r3", account, 1, both)) == Refused(
        "key_limit", 100_000, 2_000, 0, 0, budget=0
    )


@pytest.mark.parametrize("users", [1, 3])
async def test_exactly_as_many_at_once_as_each_users_budget_leaves(users: int, books: Books) -> None:
    account = await books.account(1_000_000)
    asked = [
        request(f"r{user} {number}", account, 70, KeyLimits(budgets=(of_user(f"u{user}", 1_000),)), f"key_{number % 4}")
        for number in range(40)
        for user in range(users)
    ]
    found = await asyncio.gather(*(books.store.hold(one) for one in asked))
    held = [one for one, answer in zip(asked, found, strict=True) if isinstance(answer, Held)]
    assert len(held) == users * 14
    for one in held:
        assert isinstance(await settle(books, one.hold_id, account, 30, one.limits.budgets[0].end_user), Settled)
    again = await asyncio.gather(*(books.store.hold(one._replace(hold_id=f"again {one.hold_id}")) for one in asked))
    assert sum(isinstance(answer, Held) for answer in again) == users * 8  # (1,000 - 14 x 30) / 70


async def test_a_users_budget_is_read_from_the_ledger_by_a_store_that_does_not_know_it(books: Books) -> None:
    account, other = await books.account(100_000), await books.account(100_000)
    plain = KeyLimits()
    for hold_id, whose, user, due in (
        ("r1", account, "anna", 400),
        ("r2", account, "bert", 300),
        ("r3", account, "", 200),
        ("r4", other, "anna", 100),
    ):
        assert isinstance(await books.store.hold(request(hold_id, whose, due, plain)), Held)
        await settle(books, hold_id, whose, due, user)
    await books.flush()
    refused = await books.store.hold(request("r5", account, 5_000, KeyLimits(budgets=(of_user("anna", 1_000),))))
    assert isinstance(refused, Refused)
    assert refused.key_available == 600
    limits = KeyLimits(budgets=(of_user("anna", 1_000, account="other"),))
    refused = await books.store.hold(request("r6", other, 5_000, limits))
    assert isinstance(refused, Refused)
    assert refused.key_available == 900


async def test_a_users_budget_survives_the_loss_of_the_store_and_what_is_held_is_not_given_away(books: Books) -> None:
    account = await books.account(100_000)
    limits = KeyLimits(budgets=(KEY, of_user("anna", 1_000)))
    assert isinstance(await books.store.hold(request("r1", account, 300, limits)), Held)
    await settle(books, "r1", account, 250, "anna")
    await books.flush()
    assert isinstance(await books.store.hold(request("r2", account, 400, limits)), Held)
    if isinstance(books.store, RedisBalances):
        await books.store.rebuild()
        assert await books.store.hold(request("r3", account, 351, limits)) == Refused(
            "key_limit", 99_750, 400, 350, 0, budget=1
        )
        await settle(books, "r2", account, 100, "anna")
        assert isinstance(await books.store.hold(request("r4", account, 650, limits)), Held)
    else:
        await books.reopen()  # whatever was held by a process that died is released
        assert await books.store.hold(request("r3", account, 751, limits)) == Refused(
            "key_limit", 99_750, 0, 750, 0, budget=1
        )


async def test_a_new_period_leaves_a_user_all_of_it_again(books: Books) -> None:
    account = await books.account(100_000)
    for number, period in enumerate(("2026-11", "2026-12", "2027-01")):
        limits = KeyLimits(budgets=(of_user("anna", 1_000, period),))
        assert isinstance(await books.store.hold(request(f"r{number}", account, 1_000, limits)), Held)
        assert isinstance(await books.store.hold(request("no", account, 1, limits)), Refused)
        await settle(books, f"r{number}", account, 1_000, "anna")


async def test_what_comes_and_goes_is_forgotten_and_what_stays_is_not(books: Books, monkeypatch: Any) -> None:
    account = await books.account(100_000)
    passing = KeyLimits(budgets=(Budget("key_1:total", "total", Millicredits(500)),), passing=True)
    lasting = KeyLimits(budgets=(Budget("key_9:month", "2026-11", Millicredits(2_000)),))
    user = KeyLimits(budgets=(of_user("anna", 1_000),))
    monkeypatch.setattr(embedded, "MOST_COUNTS", 0)
    monkeypatch.setattr(embedded, "IDLE_MS", 0)
    store = books.store
    if not isinstance(store, RedisBalances):
        await books.reopen()
        store = books.store
    for hold_id, key, limits in (("t1", "key_1", passing), ("k1", "key_9", lasting), ("u1", "key_2", user)):
        assert isinstance(await store.hold(request(hold_id, account, 100, limits, key)), Held)
    if isinstance(store, RedisBalances):
        servers = store.servers
        for name, lasts in (("k:key_1", False), ("s:key_1:total", False), ("k:key_9", True), ("s:key_9:month", True)):
            (found,) = await everywhere_ttl(servers, name)
            assert (found == -1) is lasts, name
            assert found <= KEPT_SECONDS
        (found,) = await everywhere_ttl(servers, "s:a:u:anna:month")
        assert KEPT_SECONDS - 60 < found <= KEPT_SECONDS
        refused = KeyLimits(budgets=(of_user("nobody", 1),))
        assert isinstance(await store.hold(request("no", account, 2, refused, "key_2")), Refused)
        (found,) = await everywhere_ttl(servers, "s:a:u:nobody:month")
        assert 0 < found <= 3_600
    for hold_id, user_name in (("t1", ""), ("k1", ""), ("u1", "anna")):
        await settle(books, hold_id, account, 60, user_name)
    await books.flush()
    left = 440 if isinstance(store, RedisBalances) else 320  # the ledger has all three rows as this key's
    refused = Refused("key_limit", 99_820, 0, left, 0)
    assert await store.hold(request("t2", account, left + 1, passing, "key_1")) == refused
    assert await store.hold(request("u2", account, 941, user, "key_2")) == Refused("key_limit", 99_820, 0, 940, 0)


async def everywhere_ttl(servers: Any, name: str) -> list[int]:
    """Seconds that a key of whichever bucket lasts (-1: for ever)."""
    found = [await server.call("TTL", f"{{b{bucket}}}:{name}") for bucket, server in enumerate(servers.of)]
    return [int(seconds) for seconds in found if int(seconds) != -2]
