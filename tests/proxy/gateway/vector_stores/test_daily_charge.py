"""A day of storage is charged exactly once, whatever dies and whoever else is at it; nobody pays what it does not have."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest
from sqlalchemy import update

from billing.balances.hold_queue import HoldQueue
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.customers.end_users import EndUserChange, EndUsers
from billing.ledger.notices import NoticeQueue
from billing.ledger.objects.upstream_objects import MadeObject, UpstreamObjects
from billing.money.pricing import PriceBook, load_catalogue
from billing.storage.database import now_ms
from billing.storage.tables.core import transfers, usage
from billing.storage.tables.vector_stores import storage_days, storage_standing
from config.settings import Billing, Rollout, Settings, Storage
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.upstream.route import Served
from proxy.gateway.upstream.upstreams import Upstreams
from proxy.gateway.vector_stores import daily_charge
from proxy.gateway.vector_stores.daily_charge import StorageCharge
from proxy.gateway.vector_stores.removal import StorageRemoval
from tests.support.storage import DAY_MS, GB, rows_of, store_since, told
from tests.support.stores import Books

PRICES = PriceBook(load_catalogue(), "1", "exact")
DOLLAR = 1_000_000
"""Millicredits, which ten GB cost a day."""


class Upstream:
    """Says what stores take; those that it does not know are gone."""

    def __init__(self, sizes: dict[str, int] | None = None, status: int = 200) -> None:
        self.sizes, self.status, self.deleted = sizes or {}, status, list[str]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if self.status != 200:
            return httpx.Response(self.status)
        if request.method == "DELETE":
            self.deleted.append(name)
            return httpx.Response(200, json={"id": name, "deleted": True})
        if name not in self.sizes:
            return httpx.Response(404)
        return httpx.Response(200, json={"id": name, "object": "vector_store", "usage_bytes": self.sizes[name]})


def services_of(books: Books, prices: PriceBook = PRICES, **settings: Any) -> Services:
    found = SimpleNamespace(
        prices=prices,
        terms_by={},
        sold_to=lambda _account, terms, _at: terms,
        prices_of=lambda _account: prices,
        settings=Settings(**settings),
        tenants=SimpleNamespace(objects=UpstreamObjects(books.database)),
        hold_queue=HoldQueue(),
        balances=books.store,
    )
    return cast("Services", found)


def at(services: Services, upstream: Upstream) -> Services:
    """Services whose one upstream is this."""
    client = client_of(upstream)
    services.upstreams = cast("Upstreams", SimpleNamespace(client=lambda _name: client, served=Served()))
    return services


def client_of(upstream: Upstream) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(upstream), base_url="http://upstream/v1")


def charger(books: Books, upstream: Upstream | None = None, **settings: Any) -> StorageCharge:
    queue = NoticeQueue(books.database, wanted=True)
    services = at(services_of(books, **settings), upstream or Upstream())
    return StorageCharge(services, books.store, queue)


async def flush_on(books: Books) -> None:
    while True:
        await books.flush()
        await asyncio.sleep(0.01)


async def run(books: Books, charge: StorageCharge) -> None:
    """Steps, with what is settled flushed beside them, until nothing is left to do."""
    flushing = asyncio.create_task(flush_on(books))
    while await charge.step():
        await books.flush()  # a step waits for the flush beside it; the next one closes what this one settled
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)


async def charged(books: Books) -> list[tuple[int, int, int]]:
    """(charged, loss, cost) of every day in the ledger."""
    rows = sorted(await rows_of(books.database, usage), key=lambda row: str(row.charge_id))
    return [(row.charged_millicredits, row.loss_millicredits, row.cost_millicredits) for row in rows]


async def unclaim(books: Books) -> None:
    """As after the time for which a process has a day alone."""
    async with books.database.write() as connection:
        await connection.execute(update(storage_days).values(claimed_until=0))


async def test_a_day_is_charged_by_its_bytes_rounded_up_once(books: Books) -> None:
    account = await books.account(5 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 12_345_678_901})
    await store_since(books.database, account, "vs_2", {-1: 1})
    await run(books, charger(books))
    assert await charged(books) == [(1_234_568, 0, 1_234_568)]  # 12.345678902 GB at 100,000 a GB
    read = await books.store.read(account)
    assert (read.balance, read.held) == (5 * DOLLAR - 1_234_568, 0)
    (row,) = await rows_of(books.database, usage)
    assert (row.endpoint, row.model, row.usage_source) == ("/v1/vector_stores", "vector_store_storage", "upstream")
    assert msgspec.json.decode(row.tool_calls) == {"vector_store_gb_day": 12_345_678_902}
    (day,) = await rows_of(books.database, storage_days)
    assert (day.charge_id, day.settled_at is not None) == (row.charge_id, True)


async def test_each_upstream_is_owed_for_what_it_keeps_at_its_own_price(books: Books) -> None:
    account = await books.account(9 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await store_since(books.database, account, "vs_2", {-1: 20 * GB}, upstream="eu")
    await store_since(books.database, account, "vs_3", {-1: 10 * GB}, upstream="gone")
    dearer = load_catalogue()
    dearer = {**dearer, "tools": {**dearer["tools"], "vector_store_gb_day": "0.2"}}
    charge = charger(books)
    charge._services.terms_by = {"eu": PricingTerms(PriceBook(dearer, "1", "exact"), True)}  # noqa: SLF001 - the services are the test's own
    await run(books, charge)
    found = {row.upstream: row.cost_millicredits for row in await rows_of(books.database, usage)}
    assert found == {"": DOLLAR, "eu": 4 * DOLLAR, "gone": DOLLAR}
    costs = [row for row in await rows_of(books.database, transfers) if row.kind == "usage_cost"]
    owed = {row.credit_account: row.amount_millicredits for row in costs}
    assert owed == {"payable:openai": DOLLAR, "payable:eu": 4 * DOLLAR, "payable:gone": DOLLAR}
    assert (await books.store.read(account)).balance == 3 * DOLLAR


async def test_markup_is_the_customers_and_the_cost_is_ours(books: Books) -> None:
    account = await books.account(5 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await run(books, charger(books, prices=PriceBook(load_catalogue(), "1.5", "exact")))
    assert await charged(books) == [(1_500_000, 0, DOLLAR)]


async def test_many_at_once_and_again_charge_one_day_once(books: Books) -> None:
    account = await books.account(5 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await asyncio.gather(*(charger(books).step() for _ in range(5)))
    await books.flush()
    for _ in range(3):
        await run(books, charger(books))
    assert await charged(books) == [(DOLLAR, 0, DOLLAR)]
    assert (await books.store.read(account)).balance == 4 * DOLLAR


async def test_one_that_was_settled_by_a_process_that_died_is_found_before_another_is_made(books: Books) -> None:
    account = await books.account(5 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await charger(books).step()
    assert (await books.store.read(account)).balance == 4 * DOLLAR
    # the next process: the charge is not in the ledger yet
    assert await charger(books).step() == 0  # it is the first one's for a while
    await unclaim(books)
    next_one = asyncio.create_task(charger(books).step())
    await asyncio.sleep(0.3)
    assert not next_one.done()
    await books.flush()
    await next_one
    await run(books, charger(books))
    read = await books.store.read(account)
    assert (read.balance, read.held) == (4 * DOLLAR, 0)
    assert await charged(books) == [(DOLLAR, 0, DOLLAR)]


async def test_a_hold_of_a_process_that_died_is_taken_on(books: Books) -> None:
    account = await books.account(5 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    dead = charger(books)
    await dead.decide()
    (day,) = await dead._stores.open(10)  # noqa: SLF001 - where it dies
    await dead._hold(day)  # noqa: SLF001
    await run(books, charger(books))
    read = await books.store.read(account)
    assert (read.balance, read.held) == (4 * DOLLAR, 0)


async def test_days_that_were_missed_are_charged_later_by_what_was_seen(books: Books) -> None:
    account = await books.account(10 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-3: 10 * GB, -1: 20 * GB}, days=3)
    await run(books, charger(books))
    assert await charged(books) == [(DOLLAR, 0, DOLLAR), (DOLLAR, 0, DOLLAR), (2 * DOLLAR, 0, 2 * DOLLAR)]


async def test_who_has_less_pays_what_it_has_and_the_rest_is_ours(books: Books) -> None:
    account = await books.account(300_000)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await run(books, charger(books))
    assert await charged(books) == [(300_000, 700_000, DOLLAR)]
    read = await books.store.read(account)
    assert (read.balance, read.held) == (0, 0)
    assert await told(books.database) == [("storage.unpaid", account)]
    (standing,) = await rows_of(books.database, storage_standing)
    assert standing.remove_at - now_ms() == pytest.approx(7 * DAY_MS, abs=60_000)


async def test_a_paid_day_ends_the_grace(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    account = await books.account(300_000)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await run(books, charger(books))
    await books.correct(account, 9 * DOLLAR)
    monkeypatch.setattr(daily_charge, "now_ms", lambda: time.time_ns() // 1_000_000 + DAY_MS)
    monkeypatch.setattr(daily_charge, "ASK_MS", 9 * DAY_MS)
    await run(books, charger(books, Upstream({"vs_1": 10 * GB})))
    (standing,) = await rows_of(books.database, storage_standing)
    assert standing.remove_at is None
    assert (await charged(books))[-1] == (DOLLAR, 0, DOLLAR)


async def test_credits_that_last_for_less_than_a_week_are_told_before(books: Books) -> None:
    account = await books.account(7 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await run(books, charger(books))
    assert await told(books.database) == [("balance.low", account)]


async def test_where_nothing_is_charged_the_day_is_recorded(books: Books) -> None:
    account = await books.account(DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await run(books, charger(books, billing=Billing(charging_enabled=False)))
    assert await charged(books) == [(0, 0, DOLLAR)]
    assert (await books.store.read(account)).balance == DOLLAR


async def test_a_wallet_stores_at_the_terms_of_the_account_above_it(books: Books) -> None:
    """Here: that account is not in the rollout, and so its wallets are not charged either."""
    home, who = await books.account(DOLLAR), Who("test", "owner")
    user, _ = await EndUsers(books.database).put(home, "anna", EndUserChange(wallet=True), who)
    wallet = user.wallet_id
    await store_since(books.database, wallet, "vs_1", {-1: 10 * GB})
    await run(books, charger(books, rollout=Rollout(exclude=(home,))))
    assert await charged(books) == [(0, 0, DOLLAR)]


async def test_a_day_without_a_price_stays_open_until_there_is_one(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    account = await books.account(5 * DOLLAR)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    card = load_catalogue()
    del card["tools"]["vector_store_gb_day"]
    unpriced = charger(books, prices=PriceBook(card, "1", "exact"))
    for _ in range(3):
        await run(books, unpriced)
    assert await charged(books) == []
    assert caplog.text.count("no price for storage") == 1, "it is looked at every five seconds"
    await run(books, charger(books))
    assert await charged(books) == [(DOLLAR, 0, DOLLAR)]


async def test_stores_are_asked_about_and_those_that_are_gone_are_forgotten(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await books.account()
    objects, upstream = UpstreamObjects(books.database), Upstream({"vs_1": 77})
    for name in ("vs_1", "vs_2"):
        await store_since(books.database, account, name, {})
    charge = charger(books, upstream)
    assert await charge.ask() == 0  # they were heard of a moment ago
    monkeypatch.setattr(daily_charge, "ASK_MS", -1_000)
    assert await charge.ask() == 2
    assert await objects.totals(account, "vector_store") == (1, 77)


async def test_stores_that_upstream_does_not_answer_for_keep_no_others_from_being_asked_about(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an upstream that was taken out of the configuration, say: they would be the first each time."""
    account = await books.account()
    objects, upstream = UpstreamObjects(books.database), Upstream({"vs_4": 77})
    for number in range(5):
        where = "away" if number < 4 else ""
        await objects.record_owner(account, "req_1", [MadeObject(f"vs_{number}", "vector_store")], where)
    charge, client = charger(books, upstream), client_of(upstream)

    def client_at(name: str) -> httpx.AsyncClient:
        if name == "away":
            raise httpx.ConnectError("it is gone")
        return client

    cast("Any", charge)._services.upstreams = SimpleNamespace(client=client_at)  # noqa: SLF001
    monkeypatch.setattr(daily_charge, "ASK_AT_ONCE", 2)
    assert [await charge.ask() for _ in range(3)] == [0, 0, 1]
    assert await objects.totals(account, "vector_store") == (5, 77)
    assert await charge.ask() == 0, "they are asked about again later"


# -- removal --------------------------------------------------------------------------------------------------------


async def unpaid(books: Books, grace_days: int) -> tuple[str, Services, Upstream]:
    account = await books.account(300_000)
    await store_since(books.database, account, "vs_1", {-1: 10 * GB})
    await run(books, charger(books, storage=Storage(grace_days=grace_days)))
    return account, services_of(books), Upstream()


async def remove(books: Books, services: Services, upstream: Upstream) -> None:
    await StorageRemoval(at(services, upstream), NoticeQueue(books.database, wanted=True)).step()


async def test_when_the_grace_is_over_stores_are_removed_and_it_is_told(books: Books) -> None:
    account, services, upstream = await unpaid(books, 0)
    await remove(books, services, upstream)
    assert upstream.deleted == ["vs_1"]
    assert await UpstreamObjects(books.database).totals(account, "vector_store") == (0, 0)
    assert ("storage.removed", account) in await told(books.database)
    changes = [row async for row in AuditLog(books.database).rows()]
    assert [(row.action, row.subject) for row in changes] == [("storage.remove", account)]
    assert await rows_of(books.database, storage_standing) == []


async def test_within_the_grace_nothing_is_removed(books: Books) -> None:
    _, services, upstream = await unpaid(books, 1)
    await remove(books, services, upstream)
    assert upstream.deleted == []


async def test_who_can_pay_again_keeps_its_stores(books: Books) -> None:
    account, services, upstream = await unpaid(books, 0)
    await books.correct(account, 9 * DOLLAR)
    await remove(books, services, upstream)
    assert upstream.deleted == []
    assert await rows_of(books.database, storage_standing) == []


async def test_what_upstream_does_not_remove_is_tried_again_later(books: Books) -> None:
    account, services, upstream = await unpaid(books, 0)
    upstream.status = 500
    for _ in range(2):
        await remove(books, services, upstream)
    assert await UpstreamObjects(books.database).totals(account, "vector_store") == (1, 0)
    (standing,) = await rows_of(books.database, storage_standing)
    assert standing.remove_at > now_ms() + 3_000_000
    assert len([row async for row in AuditLog(books.database).rows()]) == 1
