"""The stores alone, brought into the states that a crash leaves behind: nothing stays closed, nothing is lost or charged twice."""

import asyncio
import contextlib
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py

from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import flush_once
from billing.money.amounts import Millicredits
from billing.money.buckets import bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Budget, Checkpoint, Held, KeyLimits, Refused, Settled
from tests.support.servers import RedisServer
from tests.support.stores import Books, another, close_books, open_books, record, request, serves, until


def remember(redis: RedisServer, folder: Path) -> Callable[[], None]:
    """Note what Redis has on disk now; calling the result is a crash that loses everything since."""
    saved = folder / "saved"
    redis.signal(signal.SIGSTOP)
    shutil.copytree(redis.folder, saved)
    redis.signal(signal.SIGCONT)

    def crash() -> None:
        redis.kill()
        shutil.rmtree(redis.folder)
        shutil.copytree(saved, redis.folder)
        redis.start()

    return crash


async def test_a_bucket_whose_rebuilder_died_is_taken_over(redis_server: RedisServer, folder: Path) -> None:
    """Killed between `R:<token>` and `<token>`: its lock runs out, and the next one rebuilds."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    await books.store.read(account)
    raw = redis_py.Redis(port=redis_server.port)
    name = f"{{b{bucket_of(account)}}}:epoch"
    token = raw.get(name)
    assert isinstance(token, bytes)
    raw.set(name, b"R:" + token)
    second = another(books)
    await second.open()
    assert await second.hold(request("r1", account, 400)) == Held(1_000, 400)
    assert isinstance(await second.settle("r1", account, Millicredits(300), record("r1", account)), Settled)
    assert (await books.store.read(account)).balance == 700
    await second.close()
    await close_books(books)


# I9
async def test_redis_killed_again_while_it_is_rebuilt_serves_within_two_seconds(
    redis_server: RedisServer, folder: Path
) -> None:
    """The rebuilder's lock survives in the append-only file; it must not keep the bucket closed."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    await books.store.read(account)
    lock = f"{{b{bucket_of(account)}}}:lock*"
    redis_server.kill()
    redis_server.start()
    raw = redis_py.Redis(port=redis_server.port)
    await until(lambda: raw.keys(lock), 2, "the rebuilding has begun")
    redis_server.kill()
    redis_server.start()
    await until(lambda: serves(books.store, account), 2, "service resumes")
    assert await books.store.hold(request("r1", account, 400)) == Held(1_000, 400)
    await close_books(books)


async def test_budgets_are_exact_again_after_redis_was_restarted(redis_server: RedisServer, folder: Path) -> None:
    """What was charged comes from SQL, what is held from the holds that survived, whatever the budget's hash said."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(10_000)
    month = Budget("key_1:month", "2026-11", Millicredits(1_000))
    limits = KeyLimits(budgets=(month, month._replace(scope="key_1:month:x", models=("gpt-4o*",))), concurrency=9)
    await books.store.hold(request("flushed", account, 300, limits))
    await books.store.settle("flushed", account, Millicredits(200), record("flushed", account))
    assert await books.flush() == 1
    await books.store.hold(request("unflushed", account, 300, limits))
    await books.store.settle("unflushed", account, Millicredits(100), record("unflushed", account))
    await books.store.hold(request("running", account, 250, limits))
    raw = redis_py.Redis(port=redis_server.port)
    for name in raw.keys(f"{{b{bucket_of(account)}}}:s:*"):
        raw.hset(name, mapping={"spent": 7, "held": 7})
    redis_server.kill()
    redis_server.start()
    await until(lambda: serves(books.store, account), 3, "service resumes")
    for budgets in ((limits.budgets[0],), (limits.budgets[1],), limits.budgets):
        refused = await books.store.hold(request("no", account, 451, limits._replace(budgets=budgets)))
        assert refused == Refused("key_limit", 9_700, 250, 450, 0)
    await books.store.settle("running", account, Millicredits(250), record("running", account))
    refused = await books.store.hold(request("no", account, 451, limits))
    assert refused == Refused("key_limit", 9_450, 0, 450, 0)
    await close_books(books)


# I3
async def test_a_charge_lost_by_redis_is_settled_again_by_a_process_that_has_no_other_traffic(
    redis_server: RedisServer, folder: Path
) -> None:
    """Emptied without a restart, rebuilt by another process, whose later charges are flushed: ours is neither forgotten nor late."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    await books.store.hold(request("ours", account, 300))
    assert isinstance(await books.store.settle("ours", account, Millicredits(300), record("ours", account)), Settled)
    redis_py.Redis(port=redis_server.port).flushall()
    second = another(books)
    await second.open()
    await second.hold(request("theirs", account, 100))
    assert isinstance(await second.settle("theirs", account, Millicredits(100), record("theirs", account)), Settled)
    entries = await second.pending(100)
    assert await books.ledger.post_current(entries) == entries
    await second.acknowledge(entries)

    async def both() -> bool:
        entries = await second.pending(100)
        await second.acknowledge(await books.ledger.post_current(entries) if entries else [])
        return len(await books.ledger.usage_of(account, 10)) == 2

    await until(both, 3, "both charges are in the ledger")
    assert (await books.ledger.posted(account)).balance == 1_000 - 300 - 100
    assert (await second.read(account)).balance == 1_000 - 300 - 100
    await second.close()
    await close_books(books)


async def test_a_released_hold_that_redis_brings_back_is_released_again(
    redis_server: RedisServer, folder: Path
) -> None:
    """Upstream refused, so nothing is owed; Redis loses the release: the old hold must not be charged as an orphan."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(120), b""))
    assert (await books.store.read(account)).held == 300
    crash = remember(redis_server, folder)
    await books.store.release("r1", account)
    assert (await books.store.read(account)).held == 0
    crash()
    await until(lambda: serves(books.store, account), 2, "service resumes")
    reading = await books.store.read(account)
    assert (reading.balance, reading.held) == (1_000, 0)
    await close_books(books)


async def test_charges_are_flushed_after_sql_came_back_with_another_epoch(
    redis_server: RedisServer, folder: Path
) -> None:
    """As after restoring SQL from a backup: no flush may be refused for ever in silence."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    assert isinstance(await books.store.settle("r1", account, Millicredits(300), record("r1", account)), Settled)
    await books.ledger.fence(bucket_of(account), "of_a_backup")

    async def flushed() -> bool:
        with contextlib.suppress(StoreUnavailable):
            await flush_once(books.store, books.ledger, 100)
        return len(await books.ledger.usage_of(account, 10)) == 1

    await until(flushed, 3, "the charge is in the ledger")
    assert (await books.ledger.posted(account)).balance == 700
    await until(lambda: serves(books.store, account), 2, "the bucket serves")  # type: ignore[arg-type]
    assert (await books.store.read(account)).balance == 700
    await close_books(books)


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_checkpoint_that_redis_missed_is_told_again(
    redis_server: RedisServer, folder: Path, restarted: bool
) -> None:
    """The hold is there, the checkpoint came while the link was down; then the process dies: the checkpoint is what is owed."""
    books = await open_books(folder, redis_server.url)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    raw = redis_py.Redis(port=redis_server.port)
    if restarted:
        redis_server.kill()
    else:
        raw.client_kill_filter(_type="normal", skipme=True)
    assert isinstance(books.store, RedisBalances)
    await until(lambda: not books.store.servers.any_ready, 2, "the link is down")  # type: ignore[union-attr]  # noqa: SLF001
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(120), b""))
    if restarted:
        redis_server.start()
    await until(lambda: serves(books.store, account), 2, "service resumes")  # type: ignore[arg-type]
    hold = f"{{b{bucket_of(account)}}}:h:r1"
    await until(lambda: raw.hget(hold, "c") == b"120", 1, "Redis knows the checkpoint")
    await close_books(books)


# I3
@pytest.mark.slow
async def test_the_embedded_store_waits_for_the_checkpoint_too(folder: Path) -> None:
    """A hold on disk without its checkpoint would be released after a crash, though the client had seen paid bytes."""
    books = await open_books(folder, "")
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 300))
    await books.store.wait_persisted("r1")
    other = sqlite3.connect(folder / "embedded.db", isolation_level=None, timeout=5)
    other.execute("BEGIN IMMEDIATE")
    books.store.checkpoint(Checkpoint("r1", account, Millicredits(120), b""))
    with pytest.raises(StoreUnavailable):
        await books.store.wait_persisted("r1")
    other.execute("ROLLBACK")
    other.close()
    await books.store.wait_persisted("r1")
    await books.store.release("r1", account)
    await close_books(books)


@pytest.mark.slow
async def test_a_journal_file_that_is_no_database_any_more_is_said_to_be_unavailable(folder: Path) -> None:
    """Any error of SQLite's, not only a locked file: fail closed, and go on when the file is whole again."""
    books = await open_books(folder, "")
    account = await books.account(1_000)
    await books.store.read(account)
    journal = folder / "embedded.db"
    with sqlite3.connect(journal) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("ALTER TABLE holds RENAME TO elsewhere")
        connection.execute(
            "CREATE TABLE holds (hold_id TEXT, account_id TEXT, amount INTEGER, checkpoint INTEGER CHECK (checkpoint > 0), record BLOB)"
        )
    connection.close()
    await books.store.hold(request("r1", account, 400))
    with pytest.raises(StoreUnavailable):
        await books.store.wait_persisted("r1")
    # the writer's clock began when it took the batch up, after the waiter's
    await until(lambda: refuses_disk(books), 3, "the disk is said to be unavailable")
    with sqlite3.connect(journal) as connection:
        connection.execute("DROP TABLE holds")
        connection.execute("ALTER TABLE elsewhere RENAME TO holds")
    connection.close()
    await until(lambda: serves_disk(books), 3, "the journal is written again")
    await books.store.wait_persisted("r1")
    await close_books(books)


async def serves_disk(books: Books) -> bool:
    try:
        await books.store.ping()
    except StoreUnavailable:
        return False
    return True


async def refuses_disk(books: Books) -> bool:
    return not await serves_disk(books)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.25, 0.5])
async def test_closing_while_buckets_are_rebuilt_leaves_nothing_running(
    redis_server: RedisServer, folder: Path, seconds: float
) -> None:
    """What was left ran on beside the next connection, and kept the process from ending."""
    books = await open_books(folder, redis_server.url)
    other = another(books)
    await other.open()
    redis_server.kill()
    redis_server.start()
    await asyncio.sleep(seconds)
    await other.close()
    await close_books(books)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
