"""Holds that the reaper took for an orphan's: what is charged of them, when their process comes back or another holds again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis as redis_py

from billing.balances.redis.store import RedisBalances
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Checkpoint, Gone, Held, Settled
from tests.support.servers import RedisServer
from tests.support.stores import Books, another, close_books, open_books, record, request, serves, until


async def test_orphans_are_reaped_after_redis_was_emptied(redis_server: RedisServer, folder: Path) -> None:
    """The process that reaps makes no holds: it must learn of the new epoch by itself."""
    reaping = await open_books(folder, redis_server.url)
    account = await reaping.account(1_000)
    await reaping.store.read(account)
    redis_py.Redis(port=redis_server.port).flushall()
    dying = another(reaping, lease_ms=60_000)
    await dying.open()
    await dying.hold(request("orphan", account, 300)._replace(lease_ms=1))
    dying.checkpoint(Checkpoint("orphan", account, Millicredits(120), b""))
    assert (await dying.read(account)).held == 300
    await dying.servers.close()  # gone without a word, as a killed process is  # noqa: SLF001

    async def reaped() -> bool:
        assert isinstance(reaping.store, RedisBalances)
        await reaping.store.reap()
        return (await reaping.store.read(account)).held == 0

    await until(reaped, 6, "the orphan is resolved")
    assert (await reaping.store.read(account)).balance == 1_000 - 120
    await close_books(reaping)


# I3
@pytest.mark.parametrize(("how", "owed"), [("soon", 0), ("at once", 120), ("persisted", 120), ("detached", 0)])
async def test_what_is_owed_has_left_this_process_before_anything_is_shown(
    redis_server: RedisServer, folder: Path, how: str, owed: int
) -> None:
    """Killed at the first byte of a stream, it would take along what it has not sent: the reaper found nothing owed."""
    books = await open_books(folder, redis_server.url)
    assert isinstance(books.store, RedisBalances)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(120), b""), at_once=how in ("at once", "detached"))
    if how == "persisted":
        await books.store.wait_persisted("r1")
    if how == "detached":
        books.store.detach("r1", account)
    bucket = bucket_of(account)
    connection = books.store.servers.of[bucket]
    assert connection._transport is not None  # noqa: SLF001
    assert connection._task is not None  # noqa: SLF001
    connection._out.clear()  # noqa: SLF001 - what is in a process that is killed goes with it
    connection._task.cancel()  # noqa: SLF001 - and it does not come back
    connection._transport.abort()  # noqa: SLF001
    client = redis_py.Redis(port=redis_server.port)
    held = f"{{b{bucket}}}:h:r1"

    def is_owed() -> bool:
        return int(client.hget(held, "c") or 0) == owed  # type: ignore[arg-type]

    await until(is_owed, 5, f"{owed} are owed")
    await close_books(books)


# I3
@pytest.mark.parametrize("back", [True, False])
async def test_nothing_is_shown_while_nobody_could_be_told_what_is_owed(
    redis_server: RedisServer, folder: Path, back: bool
) -> None:
    books = await open_books(folder, redis_server.url)
    assert isinstance(books.store, RedisBalances)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    redis_server.kill()
    bucket = bucket_of(account)
    await until(lambda: not books.store.servers.any_ready, 5, "it is away")  # type: ignore[union-attr]
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(120), b""))
    if back:
        waiting = asyncio.create_task(books.store.wait_persisted("r1"))
        redis_server.start()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: serves(books.store, account), 10, "it is back")  # type: ignore[arg-type]
        await books.store.wait_persisted("r1")
        held = f"{{b{bucket}}}:h:r1"
        assert int(redis_py.Redis(port=redis_server.port).hget(held, "c") or 0) == 120  # type: ignore[arg-type]
    else:
        with pytest.raises(StoreUnavailable):
            await books.store.wait_persisted("r1")
    await close_books(books)


# I4
@pytest.mark.parametrize(("owed", "charged"), [(120, True), (0, False)])
async def test_what_the_reaper_charged_is_not_taken_on_again(
    redis_server: RedisServer, folder: Path, owed: int, charged: bool
) -> None:
    """A process dies after it decided a charge; another takes on what runs before SQL has heard of it."""
    books = await open_books(folder, redis_server.url)
    assert isinstance(books.store, RedisBalances)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300)._replace(lease_ms=1))
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(owed), record("r1", account)))
    books.store.forget("r1")
    books.store._epochs.opened_at[:] = [0.0] * BUCKETS  # noqa: SLF001 - long ago: leases are believed

    async def reaped() -> bool:
        assert isinstance(books.store, RedisBalances)
        return bool(await books.store.reap())

    await until(reaped, 3, "the hold is resolved")
    taken = await books.store.resume(request("r1", account, 300))
    assert taken == (Gone(1_000 - owed, 0) if charged else Held(1_000, 300))
    await close_books(books)


@pytest.fixture
async def ours(redis_server: RedisServer, folder: Path) -> AsyncIterator[Books]:
    opened = await open_books(folder, redis_server.url)
    yield opened
    await close_books(opened)


@pytest.fixture
async def other(ours: Books) -> AsyncIterator[RedisBalances]:
    """Another process."""
    store = another(ours)
    await store.open()
    yield store
    await store.close()


async def reap_now(store: RedisBalances, account: str) -> None:
    """As another machine's reaper does when nobody renewed the lease, and it has been connected for long."""
    store._epochs.opened_at[:] = [0.0] * BUCKETS  # noqa: SLF001

    async def reaped() -> bool:
        await store.reap()
        return (await store.read(account)).held == 0

    await until(reaped, 6, "the hold is taken for an orphan's")


@pytest.mark.parametrize(
    ("checkpoint", "due", "charged", "rows"),
    [
        pytest.param(120, 300, 300, {"r1": 120, "r1-rest": 180}, id="more was due than the checkpoint said"),
        pytest.param(120, 120, 120, {"r1": 120}, id="the checkpoint was right"),
        pytest.param(0, 300, 300, {"r1": 300}, id="there was no checkpoint"),
        pytest.param(
            120, 1_500, 1_000, {"r1": 120, "r1-rest": 880}, id="more than there is: a loss, never a negative balance"
        ),
    ],
)
# I3, I4
async def test_a_process_cut_off_for_longer_than_its_lease_is_charged_the_rest_once(
    ours: Books, other: RedisBalances, checkpoint: int, due: int, charged: int, rows: dict[str, int]
) -> None:
    """Its hold was resolved as an orphan's; then it comes back with what it really showed its client."""
    account = await ours.account(1_000)
    await ours.store.hold(request("r1", account, 400)._replace(lease_ms=1))
    if checkpoint:
        ours.store.checkpoint(Checkpoint("r1", account, Millicredits(checkpoint), record("r1", account, cost=100)))
    assert (await ours.store.read(account)).held == 400
    await reap_now(other, account)
    assert (await other.read(account)).balance == 1_000 - checkpoint

    settled = await ours.store.settle("r1", account, Millicredits(due), record("r1", account, cost=250))
    if due > checkpoint:
        assert settled == Settled(charged, due - charged, 1_000 - charged, 0)
    assert isinstance(await ours.store.settle("r1", account, Millicredits(due), record("r1", account, cost=250)), Gone)

    reading = await other.read(account)
    assert (reading.balance, reading.held) == (1_000 - charged, 0)
    await ours.flush()
    found = {row.charge_id: row for row in await ours.ledger.usage_of(account, 10)}
    assert {name: row.charged_millicredits for name, row in found.items()} == rows
    assert sum(row.loss_millicredits for row in found.values()) == due - charged
    assert sum(row.cost_millicredits for row in found.values()) == (250 if due > checkpoint else 100)
    assert (await ours.ledger.posted(account)).balance == 1_000 - charged


# I4
@pytest.mark.parametrize("late", ["an answer was late, it is sent again", "who held first, and was cut off"])
async def test_a_hold_made_again_by_another_process_after_it_was_reaped_is_charged_once(
    ours: Books, other: RedisBalances, late: str
) -> None:
    """As a day of storage is, whose charge keeps its id: what the reaper left of the first hold says nothing of it."""
    account = await ours.account(1_000)
    await other.hold(request("day", account, 300)._replace(lease_ms=1))
    await reap_now(other, account)
    await ours.store.hold(request("day", account, 300))
    due, row = Millicredits(300), record("day", account)
    again = other if late.startswith("who") else ours.store
    # the first is on its way when the second is sent, as when it is delivered once more
    settled = await asyncio.gather(ours.store.settle("day", account, due, row), again.settle("day", account, due, row))
    assert (settled[0], type(settled[1])) == (Settled(300, 0, 700, 0), Gone)
    reading = await other.read(account)
    assert (reading.balance, reading.held) == (700, 0)
    await ours.flush()
    assert [row.charged_millicredits for row in await ours.ledger.usage_of(account, 10)] == [300]
    assert (await ours.ledger.posted(account)).balance == 700


# I4
@pytest.mark.parametrize("settled_before", [True, False])
async def test_a_reaped_hold_is_not_charged_twice_when_redis_is_restarted(
    redis_server: RedisServer, ours: Books, other: RedisBalances, settled_before: bool
) -> None:
    """Restarted, and so rebuilt: whoever lives by the hold puts nothing back that the reaper resolved."""
    account = await ours.account(1_000)
    await ours.store.hold(request("r1", account, 400)._replace(lease_ms=1))
    ours.store.checkpoint(Checkpoint("r1", account, Millicredits(120), record("r1", account, cost=100)))
    assert (await ours.store.read(account)).held == 400
    await reap_now(other, account)
    if settled_before:
        await ours.store.settle("r1", account, Millicredits(300), record("r1", account, cost=250))
    redis_server.kill()
    redis_server.start()
    await until(lambda: serves(ours.store, account), 4, "service resumes")
    if not settled_before:
        await ours.store.settle("r1", account, Millicredits(300), record("r1", account, cost=250))
    await ours.flush()
    reading = await ours.store.read(account)
    assert (reading.balance, reading.held) == (700, 0)
    assert (await ours.ledger.posted(account)).balance == 700
