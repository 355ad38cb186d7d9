"""Machines whose wall clocks are an hour apart: what one has begun another neither ends early nor keeps for an hour."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.balances.redis.store import RedisBalances
from billing.ledger.accounts import Accounts
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.ledger.objects.vector_stores import OwedDay, VectorStores
from billing.money.amounts import Millicredits
from billing.storage.database import Database, now_ms
from tests.support.another_machine import EVERY_SECONDS, MINUTE_MS, abandoned_calls, begin_call, run_job
from tests.support.clocks import Clock
from tests.support.servers import ROOT, RedisServer
from tests.support.stores import close_books, open_books, record, request

HOUR = 3_600
BY = pytest.mark.parametrize("by", [HOUR, -HOUR])


class Another:
    """A machine whose clock goes by so many seconds ahead of ours."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url, self._clock = url, clock

    async def does(self, what: str, name: str = "") -> str:
        """What comes of one of tests/support/another_machine.py there."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.support.another_machine", self._url, what, name),
            cwd=ROOT,
            env={**os.environ, **self._clock.environment},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        return said.decode().strip()


@pytest.fixture
async def here(fresh_postgres: str) -> AsyncIterator[Database]:
    database = Database(fresh_postgres, 2, 10)
    yield database
    await database.close()


@pytest.fixture
def there(fresh_postgres: str, folder: Path, by: int) -> Another:
    return Another(fresh_postgres, Clock(folder / "clock", by))


@BY
async def test_a_call_that_another_machine_meters_is_not_hung_up(here: Database, there: Another) -> None:
    account = await Accounts(here).create("test")
    assert await begin_call(here, account)
    assert await there.does("abandoned_calls") == "[]"


@BY
async def test_a_call_is_kept_for_as_long_as_whoever_meters_it_says(here: Database, there: Another) -> None:
    account = await Accounts(here).create("test")
    assert await there.does("begin_call", account) == "True"
    assert await abandoned_calls(here, "") == []
    async with here.write() as connection:
        lease = await connection.exec_driver_sql("SELECT leased_until FROM realtime_calls")
        assert 0 < lease.scalar_one() - now_ms() <= MINUTE_MS, "and not for an hour"


@BY
async def test_a_day_of_storage_is_charged_by_one_machine(here: Database, there: Another) -> None:
    stores, account = VectorStores(here), await Accounts(here).create("test")
    await stores.decide([OwedDay(account, 1, "charge", 1, 1, "{}", now_ms())])
    assert await stores.claim("charge", MINUTE_MS)
    assert await there.does("claim_day", "charge") == "False"


@BY
async def test_files_on_their_way_count_on_every_machine(here: Database, there: Another) -> None:
    account = await Accounts(here).create("test")
    await UpstreamObjects(here).claim_room(account, "req_1", "file", 7)
    assert await there.does("room", account) == "7"


@BY
async def test_a_job_is_run_by_its_interval_whoever_ran_it_last(here: Database, there: Another) -> None:
    assert await there.does("run_job") == "1"
    assert await run_job(here, "") == 0, "it is not due yet"
    async with here.write() as connection:
        began = (await connection.exec_driver_sql("SELECT started_at FROM job_runs")).scalar_one()
        assert abs(now_ms() - began) < MINUTE_MS, "nor is it late by an hour"
        await connection.exec_driver_sql(f"UPDATE job_runs SET started_at = started_at - {EVERY_SECONDS * 1_000}")
    assert await run_job(here, "") == 1
    assert await there.does("run_job") == "0"


async def test_a_charge_of_this_moment_waits_for_no_hour(
    redis_server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that takes it for one that has waited so long stops admitting (`journal.max_lag_seconds`)."""
    books = await open_books(folder, redis_server.url)
    assert isinstance(books.store, RedisBalances)
    account = await books.account(1_000)
    await books.store.hold(request("r1", account, 400))
    await books.store.settle("r1", account, Millicredits(300), record("r1", account))
    real = now_ms()
    for by in (HOUR, -HOUR):
        monkeypatch.setattr("time.time_ns", lambda by=by: (real + by * 1_000) * 1_000_000)
        count, age_ms = await books.store.depth()
        assert (count, age_ms < MINUTE_MS) == (1, True)
    monkeypatch.undo()
    await asyncio.sleep(0.05)
    assert (await books.store.depth())[1] >= 50, "by Redis' clock it does age"
    await close_books(books)
