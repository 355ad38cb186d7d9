"""Notices of low balances: told once per crossing, signed, tried again, finally dead."""

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import text

from billing.jobs.low_balance import LowBalance
from billing.jobs.notices import NoticeDelivery, Target
from billing.ledger.notices import FILE, Notice
from billing.payments.stripe.signatures import verify
from billing.storage.database import now_ms
from tests.support.events import listen, told_to
from tests.support.recharge import spend
from tests.support.shop import Shop

SECRET = "0123456789abcdef"


async def test_a_low_balance_is_told_once_per_crossing(shop: Shop) -> None:
    low = LowBalance(shop.books.database, shop.notices, 1_000)
    account, poor = await shop.books.account(5_000), await shop.books.account(10)
    assert await low.watch() == 0
    for _ in range(3):
        await spend(shop, account, 999)
        assert await low.watch() == 1
        assert await low.watch() == 0
        await spend(shop, account, 10)
        assert await low.watch() == 0
        await spend(shop, account, 1_000)
        assert await low.watch() == 0
    await low.set_threshold(poor, 5)
    await spend(shop, poor, 4)
    assert sum(await asyncio.gather(*(low.watch() for _ in range(4)))) == 1
    rows = await shop.notices.listing("pending", 10)
    assert len(rows) == 4
    assert {json.loads(row.payload)["data"]["thresholdMillicredits"] for row in rows} == {"1000", "5"}


async def test_notices_are_signed_retried_and_finally_dead(shop: Shop) -> None:
    low = LowBalance(shop.books.database, shop.notices, 0)
    account = await shop.books.account(10)
    await low.set_threshold(account, 5)
    await spend(shop, account, 1)
    await low.watch()
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def post(body: bytes, headers: dict[str, str]) -> str:
        seen.append((body, headers))
        return "status 500"

    for _ in range(5):
        await NoticeDelivery(shop.books.database).deliver([Target(FILE, post, [SECRET])], 3)
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE notices SET next_at = 0"))
    assert len(seen) == 3
    (row,) = await shop.notices.listing("dead", 10)
    assert row.last_error == "status 500"
    body, headers = seen[0]
    at = int(headers["tollkeeper-signature"].partition(",")[0].removeprefix("t="))
    verify(body, headers["tollkeeper-signature"], [SECRET], at, 300)
    told: dict[str, Any] = json.loads(body)
    assert (told["kind"], told["accountId"], told["data"]["balanceMillicredits"]) == ("balance.low", account, "1")

    async def taken(_body: bytes, _headers: dict[str, str]) -> str:
        return ""

    await shop.notices.revive(row.id)
    assert await NoticeDelivery(shop.books.database).deliver([Target(FILE, taken, [SECRET])], 3) == 1
    assert await NoticeDelivery(shop.books.database).deliver([Target(FILE, taken, [SECRET])], 3) == 0


# -- several who listen -------------------------------------------------------------------------------------------------


class Listener:
    """Takes what it is sent, or refuses what its `refuse` names."""

    def __init__(self, endpoint_id: str = FILE) -> None:
        self.endpoint_id, self.seen, self.refuse = endpoint_id, list[dict[str, Any]](), set[str]()
        self.held: asyncio.Event | None = None

    async def __call__(self, body: bytes, _headers: dict[str, str]) -> str:
        if self.held is not None:
            await self.held.wait()
        told = json.loads(body)
        if told["id"] in self.refuse:
            return "status 500"
        self.seen.append(told)
        return ""

    @property
    def ids(self) -> list[str]:
        return [told["id"] for told in self.seen]

    @property
    def target(self) -> Target:
        return Target(self.endpoint_id, self, [SECRET])


async def write(shop: Shop, *told: Notice) -> None:
    async with shop.books.database.write() as connection:
        await shop.notices.write(connection, told)


def key_event(name: str, account: str, at_ms: int = 0) -> Notice:
    return Notice(name, account, "key.created", {}, at_ms)


async def drain(delivery: NoticeDelivery, *listeners: Listener) -> None:
    while await delivery.deliver([one.target for one in listeners], 3):
        pass


async def again_now(shop: Shop) -> None:
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE notices SET next_at = 0"))


async def test_an_accounts_events_wait_for_the_first_of_them_and_nobody_elses_do(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    listener, delivery = Listener(), NoticeDelivery(shop.books.database)
    await write(shop, *(key_event(f"a{number}", account) for number in range(3)), key_event("b0", other))
    listener.refuse = {"a0"}
    for _ in range(2):
        for _ in range(2):  # the first that fails ends a step; the next one begins with who is due
            await drain(delivery, listener)
        await again_now(shop)
    assert listener.ids == ["b0"]
    listener.refuse = set()
    await drain(delivery, listener)
    assert listener.ids == ["b0", "a0", "a1", "a2"]
    times = [told["createdAtMs"] for told in listener.seen[1:]]
    assert times == sorted(set(times))


async def test_a_dead_event_waits_for_nobody_and_is_sent_again_when_it_is_asked_for(shop: Shop) -> None:
    account, listener, delivery = await shop.books.account(), Listener(), NoticeDelivery(shop.books.database)
    await write(shop, *(key_event(f"a{number}", account) for number in range(2)))
    listener.refuse = {"a0"}
    for _ in range(4):
        await drain(delivery, listener)
        await again_now(shop)
    assert listener.ids == ["a1"]
    listener.refuse = set()
    await shop.notices.revive("a0")
    await drain(delivery, listener)
    assert listener.ids == ["a1", "a0"]


async def test_everyone_who_listens_is_told_the_same_under_the_same_id_and_only_of_what_it_wants(shop: Shop) -> None:
    database, account = shop.books.database, await shop.books.account()
    keys, money = await listen(database, "key.*"), await listen(database, "purchase.credited", "usage.charged")
    await write(shop, key_event("a0", account), Notice("u0", account, "usage.charged", {"requests": []}))
    listeners = [Listener(name) for name in (FILE, keys, money)]
    await drain(NoticeDelivery(database), *listeners)
    assert [one.ids for one in listeners] == [["a0"], ["a0"], ["u0"]]
    assert listeners[0].seen == listeners[1].seen
    await write(shop, key_event("a0", account))
    await drain(NoticeDelivery(database), *listeners)
    assert [len(one.seen) for one in listeners] == [1, 1, 1], "what has a name is told once"


async def test_who_begins_to_listen_is_not_told_of_what_happened_before(shop: Shop) -> None:
    account = await shop.books.account()
    endpoint = await listen(shop.books.database, "*")
    await write(shop, key_event("old", account, now_ms() - 60_000), key_event("new", account, now_ms() + 60_000))
    assert [told["id"] for told in await told_to(shop.notices, endpoint)] == ["new"]


async def test_who_has_just_begun_to_listen_is_told(shop: Shop) -> None:
    """Who listened a moment ago is remembered only to know whether it is worth while to look for something."""
    account = await shop.books.account()
    assert await shop.notices.is_heard("key.created")
    endpoint = await listen(shop.books.database, "*")
    await write(shop, key_event("new", account))
    assert [told["id"] for told in await told_to(shop.notices, endpoint)] == ["new"]


async def test_who_is_slow_keeps_nobody_else_waiting(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.jobs.notices.WAIT_SECONDS", 0.05)
    database, account = shop.books.database, await shop.books.account()
    slow, quick = Listener(await listen(database)), Listener()
    slow.held = asyncio.Event()
    delivery = NoticeDelivery(database)
    await write(shop, *(key_event(f"a{number}", account) for number in range(3)))
    for _ in range(20):
        await delivery.deliver([slow.target, quick.target])
    assert (quick.ids, slow.ids) == (["a0", "a1", "a2"], [])
    slow.held.set()
    for _ in range(20):
        await delivery.deliver([slow.target, quick.target])
    assert slow.ids == ["a0", "a1", "a2"]
    await delivery.close()


async def test_what_is_over_is_dropped_after_thirty_days_and_what_waits_is_not(shop: Shop) -> None:
    account, listener = await shop.books.account(), Listener()
    await write(shop, key_event("sent", account))
    await drain(NoticeDelivery(shop.books.database), listener)
    await write(shop, key_event("waits", account))
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE notices SET created_at = created_at - 2678400000"))
    assert await NoticeDelivery(shop.books.database).drop_old() == 1
    assert [row.id for row in await shop.notices.listing(None, 9)] == ["waits"]
