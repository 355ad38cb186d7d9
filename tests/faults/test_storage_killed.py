"""A day of storage is charged once, exactly, wherever the process that charges it is killed (kill -9)."""

import sqlite3
import time

import pytest

from tests.support import web
from tests.support.servers import INJECT, Account, RedisServer, Sandbox, Serve, Tollkeeper, wait_until

START, DAY_MS, GB = 1_000_000, 86_400_000, 10**9
DUE = 200_000  # two GB
CHARGE = "proxy.gateway.vector_stores.daily_charge:StorageCharge"
STORES = "billing.ledger.objects.vector_stores:VectorStores"
POINTS = {
    "nothing is decided": f"{STORES}.decide:before:1",
    "decided, and not claimed": f"{STORES}.decide:after:1",
    "claimed, and not held": f"{STORES}.claim:after:1",
    "held, and not settled": f"{CHARGE}._hold:after:1",
    "looked for, and not settled": f"{CHARGE}._settle:before:1",
    "settled, and not flushed or closed": f"{CHARGE}._settle:after:1",
    "before it is closed": f"{STORES}.settle:before:1",
    "after it is closed": f"{STORES}.settle:after:1",
}


def made_yesterday(server: Tollkeeper, store: str) -> None:
    """Move a store of a server that is down a day back, with two GB in it."""
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as database:
        day = time.time_ns() // 1_000_000 // DAY_MS - 1
        database.execute("UPDATE upstream_objects SET created_at = ? WHERE id = ?", (day * DAY_MS + 1, store))
        database.execute("DELETE FROM store_sizes")
        database.execute("INSERT INTO store_sizes VALUES (?, ?, ?)", (store, day, 2 * GB))


def closed(server: Tollkeeper) -> bool:
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as database:
        rows = database.execute("SELECT settled_at FROM storage_days").fetchall()
    return bool(rows) and all(row[0] is not None for row in rows)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed(
    kind: str, point: str, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "2"}
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    server = make_tollkeeper(**environment)
    server.start()
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    made = web.post(f"{server.v1}/vector_stores", json={"name": "docs"}, headers=account.headers, timeout=20)
    assert made.status_code == 200, made.text
    server.kill()
    made_yesterday(server, made.json()["id"])
    mark = server.folder / "crashed"
    server.start(PYTHONPATH=INJECT, TK_CRASH_AT=POINTS[point], TK_CRASH_MARK=str(mark))
    wait_until(mark.exists, 60, f"the crash: {point}")
    server.kill()
    server.start()
    rows = wait_until(account.usage, 60, "it is charged")
    assert [int(row["chargedMillicredits"]) for row in rows] == [DUE]
    wait_until(lambda: closed(server), 60, "it is closed")
    assert_nothing_more(account)
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def assert_nothing_more(account: Account) -> None:
    wait_until(lambda: account.held() == 0, 30, "nothing is held")
    assert account.balance() == START - DUE
    assert len(account.usage()) == 1
