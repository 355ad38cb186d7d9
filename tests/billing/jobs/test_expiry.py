"""Credits expire through the ledger, exactly once, over both stores: never what was paid, never what is held."""

import asyncio
import random
import time

import pytest
from sqlalchemy import update

import billing.jobs.expiry
from billing.accounting.reconcile import reconcile
from billing.jobs.expiry import Expiry
from billing.ledger.notices import NoticeQueue
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable
from billing.money.holds import Held
from billing.payments.purchase import offer
from billing.storage.database import now_ms
from billing.storage.tables.credits import expiring_lots
from tests.support.credits import DAY_MS, give, left, relayed, run_out
from tests.support.shop import Shop, open_shop
from tests.support.stores import Books, record, request


def expiry(books: Books) -> Expiry:
    return Expiry(books.database, books.ledger, books.store, NoticeQueue(books.database, wanted=True))


async def told(books: Books) -> list[tuple[str, str]]:
    rows = await NoticeQueue(books.database, wanted=True).listing(None, 100)
    return sorted((row.kind, row.event_id) for row in rows)


async def charged(books: Books, account: str, amount: int, name: str) -> None:
    """A request, from hold to charge, not in the ledger yet."""
    assert isinstance(await books.store.hold(request(name, account, amount)), Held)
    await books.store.settle(name, account, Millicredits(amount), record(name, account))


async def test_what_is_left_expires_once_and_what_was_paid_stays(books: Books) -> None:
    account = await books.account(5_000)
    await give(books, account, 1_000, "gift")
    await give(books, account, 700, "later", days=3)
    await charged(books, account, 200, "r1")  # in the store, and not in the ledger
    assert (await expiry(books).run(0)).expired == 0, "it is not time yet"
    await run_out(books, "gift")
    done = await expiry(books).run(0)
    assert (done.expired, done.millicredits) == (1, 800)
    for _ in range(2):
        assert (await expiry(books).run(0)).expired == 0
    await books.flush()
    reading = await books.store.read(account)
    assert (reading.balance, reading.held) == (5_700, 0)
    assert (await books.ledger.posted(account)).balance == 5_700
    assert await left(books, account) == {"later": 700}
    newest = (await books.ledger.transfers_of(account, 10))[1]
    assert (newest.kind, newest.effect, newest.credit_account) == ("expiry", -800, "promo")
    assert ("credits.expired", "expired:a:gift:1") in await told(books)
    assert await reconcile(books.database, None) == []


@pytest.mark.parametrize("hours", [1, -1])
async def test_they_expire_by_the_databases_clock(books: Books, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Nobody loses credits early because the machine that takes them is an hour ahead."""
    account = await books.account(0)
    await give(books, account, 700, "soon")
    await give(books, account, 300, "over")
    async with books.database.write() as connection:
        soon = expiring_lots.c.reference_id == "soon"
        await connection.execute(update(expiring_lots).where(soon).values(expires_at=now_ms() + 600_000))
    await run_out(books, "over")
    wrong = time.time_ns() + hours * 3_600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: wrong)
    assert (await expiry(books).run(0)).millicredits == 300


async def test_what_running_requests_hold_is_theirs_and_goes_later(books: Books) -> None:
    account = await books.account(300)
    await give(books, account, 1_000, "gift")
    assert isinstance(await books.store.hold(request("long", account, 600)), Held)
    await run_out(books, "gift")
    assert (await expiry(books).run(0)).millicredits == 400
    assert (await books.store.read(account)).balance - (await books.store.read(account)).held == 300
    await books.store.settle("long", account, Millicredits(550), record("long", account))
    assert (await expiry(books).run(0)).millicredits == 50
    await books.flush()
    assert (await books.ledger.posted(account)).balance == 300, "the request was paid with what there was"
    assert (await books.store.read(account)).balance == 300


async def test_it_is_announced_once_before_it_happens(books: Books) -> None:
    account = await books.account()
    await give(books, account, 1_000, "soon", days=2)
    await give(books, account, 1_000, "later", days=20)
    assert [(await expiry(books).run(7 * DAY_MS)).announced for _ in range(2)] == [1, 0]
    assert await told(books) == [("credits.expiring", "expiring:a:soon")]
    assert (await expiry(books).run(30 * DAY_MS)).announced == 1


async def test_nothing_expires_while_money_of_the_account_is_on_its_way(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await books.account()
    await give(books, account, 1_000, "gift")
    await run_out(books, "gift")
    await books.ledger.grant(account, Millicredits(-600), "fix", "test", "why")  # booked, and the store has not heard

    async def nothing(*_given: object) -> int:
        return 0

    monkeypatch.setattr(billing.jobs.expiry, "relay_once", nothing)
    assert (await expiry(books).run(0)).expired == 0
    monkeypatch.undo()
    assert (await expiry(books).run(0)).millicredits == 400
    assert (await books.store.read(account)).balance == 0


async def test_what_expired_stays_held_until_the_store_has_heard_of_it(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else somebody could spend it in between."""
    account = await books.account()
    await give(books, account, 1_000, "gift")
    await run_out(books, "gift")

    async def nothing(*_given: object) -> int:
        return 0

    monkeypatch.setattr(billing.jobs.expiry, "relay_once", nothing)
    monkeypatch.setattr(billing.jobs.expiry, "APPLY_SECONDS", 0.1)
    taking = expiry(books)
    assert (await taking.run(0)).millicredits == 1_000
    reading = await books.store.read(account)
    assert (reading.balance, reading.held) == (1_000, 1_000)
    monkeypatch.undo()
    await taking.run(0)
    reading = await books.store.read(account)
    assert (reading.balance, reading.held) == (0, 0)


POINTS = ("hold", "move", "take_expired", "relay_once", "release")


class KilledError(BaseException):
    """A process that is gone."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_anywhere_it_expires_exactly_once(
    books: Books, point: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at a step; another one opens the store, applies what moved, and goes on."""
    account = await books.account(500)
    await give(books, account, 1_000, "gift")
    await charged(books, account, 100, "r1")
    await run_out(books, "gift")
    owner = books.store if point in ("hold", "release") else billing.jobs.expiry
    real, dead = getattr(owner, point), False

    async def die(*given: object, **more: object) -> object:
        nonlocal dead
        calls.append(point)
        if dead:
            raise KilledError
        if point == "relay_once" and len(calls) < 2:
            return await real(*given, **more)  # the one that comes before anything is done
        dead = True
        if after:
            await real(*given, **more)
        raise KilledError

    calls: list[str] = []
    monkeypatch.setattr(owner, point, die)
    if point != "release":  # the dead release nothing either
        monkeypatch.setattr(books.store, "release", _silent)
    with pytest.raises(KilledError):
        await expiry(books).run(0)
    monkeypatch.undo()
    await books.reopen()
    await relayed(books)
    if books.redis_url:
        await _lease_over(books)
    for _ in range(2):
        await expiry(books).run(0)
    await books.flush()
    reading = await books.store.read(account)
    assert (reading.balance, reading.held) == (500, 0)
    assert (await books.ledger.posted(account)).balance == 500
    assert [row.effect for row in await books.ledger.transfers_of(account, 10) if row.kind == "expiry"] == [-900]
    assert await reconcile(books.database, None) == []


async def _silent(*_given: object) -> None:
    return None


async def _lease_over(books: Books) -> None:
    """Resolve the holds of the process that died, as the reaper does once their lease is over."""
    import redis.asyncio

    client = redis.asyncio.from_url(books.redis_url)
    async for key in client.scan_iter("*:leases"):
        for name in await client.zrange(key, 0, -1):
            await client.zadd(key, {name: 1})
    await client.aclose()
    books.store._epochs.opened_at[:] = [0.0] * BUCKETS  # type: ignore[union-attr]
    await books.store.reap()  # type: ignore[union-attr]


async def test_requests_that_come_meanwhile_never_overspend_and_pay_with_what_expires_first(books: Books) -> None:
    account = await books.account(20_000)
    for number in range(3):
        await give(books, account, 5_000, f"gift{number}")
    await give(books, account, 20_000, "last")  # until the last request is over there is something that was given
    await run_out(books, *(f"gift{number}" for number in range(3)))
    spent, lowest, chance = 0, 10**9, random.Random(7)

    async def customer(name: int) -> None:
        nonlocal spent, lowest
        for turn in range(12):
            hold, part = chance.randrange(1, 400), chance.random()
            if isinstance(await books.store.hold(request(f"{name}-{turn}", account, hold)), Held):
                await asyncio.sleep(chance.random() / 200)
                due = int(hold * part)
                settled = await books.store.settle(
                    f"{name}-{turn}", account, Millicredits(due), record(f"{name}-{turn}", account)
                )
                spent += settled.charged  # type: ignore[union-attr]
            reading = await books.store.read(account)
            lowest = min(lowest, reading.balance - reading.held)

    taking = expiry(books)

    async def job() -> None:
        for _ in range(6):
            await taking.run(0)
            await books.flush()

    await asyncio.gather(job(), *(customer(name) for name in range(5)))
    await books.flush()
    await relayed(books)
    await run_out(books, "last")
    await taking.run(0)
    taken = -sum(row.effect for row in await books.ledger.transfers_of(account, 500) if row.kind == "expiry")
    assert lowest >= 0
    assert (await books.ledger.posted(account)).balance == 55_000 - spent - taken >= 20_000
    assert taken + spent >= 35_000, "nothing that was given is left"
    assert await left(books, account) == {}
    assert (await books.store.read(account)).held == 0
    assert await reconcile(books.database, None) == []


async def test_a_store_that_does_not_answer_leaves_everything_as_it_was(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await books.account()
    await give(books, account, 1_000, "gift")
    await run_out(books, "gift")

    async def away(*_given: object) -> None:
        raise StoreUnavailable("redis", "is away")

    monkeypatch.setattr(books.store, "hold", away)
    with pytest.raises(StoreUnavailable):
        await expiry(books).run(0)
    assert await left(books, account) == {"gift": 1_000}


GIFT = offer("gift", "10.00", "10", 30)


async def test_an_expired_bonus_is_not_taken_once_more_by_a_refund(sql: Books) -> None:
    shop: Shop = open_shop(sql)
    account = await sql.account()
    bought = await shop.paid(account, GIFT)
    await relayed(sql)
    await charged(sql, account, 250_000, "r1")
    await run_out(sql, bought.id)
    assert (await expiry(sql).run(0)).millicredits == 750_000
    await sql.flush()
    assert await shop.balance(account) == 10_000_000
    shop.stripe.give_back(bought.payment_intent_id or "", 1_000)
    await shop.deliver()
    assert await shop.balance(account) == -250_000, "what was used of the bonus is taken back, what expired is not"
    assert await shop.findings() == []
