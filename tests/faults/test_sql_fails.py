"""The ledger database or the embedded journal is away: known keys go on, charges wait, nothing is lost; or fail closed."""

import contextlib
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.load import Load, assert_books_match_the_record
from tests.support import web
from tests.support.processes import frozen, locked
from tests.support.servers import Account, RedisServer, Sandbox, Serve, Tollkeeper, postgres, wait_until, within

START = 1_000_000_000


def funded(server: Tollkeeper) -> Account:
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    return account


def ready(server: Tollkeeper) -> int:
    return web.get(f"{server.url}/readyz", timeout=5).status_code


def more(load: Load, number: int) -> None:
    """Wait until so many more requests were served."""
    wanted = load.statuses.get(200, 0) + number
    wait_until(lambda: load.statuses.get(200, 0) >= wanted, 20, f"{number} more requests are served")


def test_postgresql_is_frozen_under_load(
    make_tollkeeper: Serve, redis_server: RedisServer, sandbox: Sandbox, folder: Path
) -> None:
    with postgres(folder / "pg") as url:
        environment = {
            "TOLLKEEPER_DATABASE__URL": url,
            "TOLLKEEPER_DATABASE__TIMEOUT_SECONDS": "2",
            "TOLLKEEPER_LOG__ACCESS": "false",
        }
        server = make_tollkeeper(
            TOLLKEEPER_REDIS__URL=redis_server.url, TOLLKEEPER_LISTEN__WORKERS="2", **environment
        ).start()
        account = funded(server)
        postmaster = psutil.Process(int((folder / "pg" / "postmaster.pid").read_text().split()[0]))
        with Load(account) as load:
            more(load, 100)
            with frozen([postmaster, *postmaster.children(recursive=True)]):
                wait_until(lambda: ready(server) == 503, 2, "readyz goes red")
                stopped = time.monotonic()
                while time.monotonic() - stopped < 12:
                    more(load, 20)
            wait_until(lambda: ready(server) == 200, 10, "readyz is green again")
            more(load, 100)
        assert set(load.statuses) == {200}, "a known key is served while SQL is away"
        assert_books_match_the_record(account, sandbox, load, START)


def test_the_sqlite_ledger_is_locked_under_load(embedded: Tollkeeper, sandbox: Sandbox) -> None:
    account = funded(embedded)
    with Load(account) as load:
        more(load, 50)
        with locked(embedded.folder / "var" / "tollkeeper.db"):
            started = time.monotonic()
            while time.monotonic() - started < 5:
                more(load, 10)
        more(load, 50)
    assert set(load.statuses) == {200}
    assert_books_match_the_record(account, sandbox, load, START)


def test_the_embedded_journal_is_locked_under_load(make_tollkeeper: Serve, sandbox: Sandbox) -> None:
    embedded = make_tollkeeper(TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS="1").start()  # as shipped
    account = funded(embedded)
    with Load(account) as load:
        more(load, 50)
        with locked(embedded.folder / "var" / "embedded.db"):
            wait_until(lambda: ready(embedded) == 503, 2, "readyz goes red")
            for _ in range(3):
                started = time.monotonic()
                refused = account.chat(max_tokens=2)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "store_unavailable"
                assert time.monotonic() - started < within(2)
        wait_until(lambda: account.chat(max_tokens=2).status_code == 200, 2, "service resumes within 2 s")
        more(load, 50)
    assert_books_match_the_record(account, sandbox, load, START)


@pytest.mark.parametrize("waits", [True, False])
def test_sigterm_lets_streams_finish_or_settles_them(make_tollkeeper: Serve, sandbox: Sandbox, waits: bool) -> None:
    """`waits`: the drain time is longer than the stream."""
    import threading

    from tests.support.servers import sandbox_says

    server = make_tollkeeper(TOLLKEEPER_LISTEN__DRAIN_SECONDS="10" if waits else "1").start()
    account = funded(server)
    seen: list[bytes] = []

    def read() -> None:
        text = sandbox_says(output_tokens=60, chunk_interval_ms=50)
        body = {
            "model": "gpt-4o-mini",
            "max_tokens": 100,
            "stream": True,
            "messages": [{"role": "user", "content": text}],
        }
        with (
            contextlib.suppress(httpx.HTTPError),
            web.stream(
                "POST", f"{server.v1}/chat/completions", json=body, headers=account.headers, timeout=20
            ) as answer,
        ):
            seen.extend(answer.iter_raw())

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: len(seen) > 5, 10, "the stream runs")
    assert server.stop() == 0
    reader.join(10)
    assert (b"[DONE]" in b"".join(seen)) is waits
    server.start()
    (row,) = account.usage()
    assert (row["usageSource"], row["outcome"]) == (("upstream", "completed") if waits else ("counted", "shutdown"))
    assert account.balance() == START - int(row["chargedMillicredits"])
    assert account.held() == 0
