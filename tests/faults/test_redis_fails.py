"""Redis killed, emptied, frozen under load: fail closed, recover within 2 s, nothing lost, nothing charged twice."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.load import Load, account_with, assert_books_match_the_record, serves, two_workers
from tests.support import web
from tests.support.servers import Account, RedisServer, Sandbox, Serve, Tollkeeper, wait_until, within

START = 1_000_000_000


@pytest.fixture(params=["always", "everysec"])
def redis(request: pytest.FixtureRequest, folder: Path) -> RedisServer:
    server = RedisServer(folder / "redis", request.param)
    server.start()
    request.addfinalizer(server.kill)
    return server


@pytest.fixture
def account(make_tollkeeper: Serve, redis: RedisServer) -> Account:
    return account_with(two_workers(make_tollkeeper, redis.url), START)


def ready(server: Tollkeeper) -> int:
    return web.get(f"{server.url}/readyz", timeout=5).status_code


def test_killed_under_load(account: Account, redis: RedisServer, sandbox: Sandbox) -> None:
    with Load(account) as load:
        for _ in range(3):
            wanted = load.statuses.get(200, 0) + 150
            wait_until(lambda: load.statuses.get(200, 0) >= wanted, 20, "the load is served")  # noqa: B023 - used at once
            redis.kill()
            wait_until(lambda: ready(account.server) == 503, 1.5, "readyz goes red within a second")
            redis.start()
            wait_until(lambda: serves(account), 2, "service resumes within 2 s of Redis's return")
    assert_books_match_the_record(account, sandbox, load, START)
    assert set(load.statuses) <= {200, 503}


def test_emptied_while_it_runs(account: Account, redis: RedisServer, sandbox: Sandbox) -> None:
    import redis as redis_py

    with Load(account) as load:
        wait_until(lambda: load.statuses.get(200, 0) >= 150, 20, "the load is served")
        redis_py.Redis(port=redis.port).flushall()
        wait_until(lambda: serves(account), 2, "service resumes")
        wanted = load.statuses.get(200, 0) + 100
        wait_until(lambda: load.statuses.get(200, 0) >= wanted, 20, "the load is served again")
    assert_books_match_the_record(account, sandbox, load, START)


def test_restarted_with_an_old_append_only_file(
    account: Account, redis: RedisServer, sandbox: Sandbox, folder: Path
) -> None:
    with Load(account) as load:
        wait_until(lambda: load.statuses.get(200, 0) >= 100, 20, "the load is served")
        saved = folder / "saved"
        redis.signal(signal.SIGSTOP)
        shutil.copytree(redis.folder, saved)
        redis.signal(signal.SIGCONT)
        wanted = load.statuses.get(200, 0) + 150
        wait_until(lambda: load.statuses.get(200, 0) >= wanted, 20, "the load goes on after the copy")
        redis.kill()
        shutil.rmtree(redis.folder)
        shutil.copytree(saved, redis.folder)
        redis.start()
        wait_until(lambda: serves(account), 2, "service resumes")
    assert_books_match_the_record(account, sandbox, load, START)


def test_frozen_for_three_seconds(account: Account, redis: RedisServer, sandbox: Sandbox) -> None:
    with Load(account) as load:
        wait_until(lambda: load.statuses.get(200, 0) >= 100, 20, "the load is served")
        redis.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        wait_until(lambda: ready(account.server) == 503, 2, "readyz goes red")
        refused = account.chat(max_tokens=2)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert "retry-after" in refused.headers
        while time.monotonic() - frozen < 3:
            started = time.monotonic()
            assert account.chat(max_tokens=2).status_code == 503
            assert time.monotonic() - started < within(2), "a request hangs on a frozen Redis"
        redis.signal(signal.SIGCONT)
        wait_until(lambda: serves(account), 2, "service resumes within 2 s")
    wait_until(lambda: account.held() == 0, 25, "holds in doubt are released")
    assert_books_match_the_record(account, sandbox, load, START)
