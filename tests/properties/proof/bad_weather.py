"""Nothing is lost and nothing charged twice: processes killed under load, replies of every store and of upstream lost."""

import contextlib
from collections import Counter
from pathlib import Path

from tests.faults.cluster import accounts_apart, masters_die
from tests.faults.load import (
    STORM_ENVIRONMENT,
    Load,
    account_with,
    assert_books_match_the_record,
    price,
    restarts,
    storm,
)
from tests.properties.proof.overspend import served, served_on_cluster
from tests.properties.proof.part import Figures
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_groups import MASTERS
from tests.support.servers import RedisServer, Tollkeeper, postgres, start_sandbox, wait_until

START = 1_000_000_000
EVERY = {"Redis": 150, "SQL": 100, "upstream": 60}
"""Pieces of data that pass for each that meets a fault."""
PATIENCE_SECONDS = 4
"""Time within which a fault of each kind is met, however slow the machine."""


def kills(folder: Path, size: int, seed: int) -> Figures:
    """Kill so many processes under load."""
    with served(folder, **STORM_ENVIRONMENT) as (server, sandbox, redis):
        account = account_with(server, START)
        (load,) = storm([account], restarts(redis), size, seed)
        rows = assert_books_match_the_record(account, sandbox, load, START)
        bills = {row["clientRequestId"]: price(row["usage"]) for row in sandbox.record() if row["usage"]}
    broken = [row for row in rows if row["outcome"] != "completed" and row["requestId"] in bills]
    owed = sum(bills[row["requestId"]] for row in broken)
    short = sum(max(0, bills[row["requestId"]] - int(row["chargedMillicredits"])) for row in broken)
    return {
        "requests": sum(load.statuses.values()),
        "kills": size,
        "lost": 0,
        "charged twice": 0,
        "held at the end": 0,
        "broken off": len(broken),
        "charged less than their bill, % of it": 100 * short // owed if owed else 0,
    }


def kills_on_cluster(folder: Path, size: int, seed: int) -> Figures:
    """Kill so many processes under load of a customer on each master, a third of them masters."""
    strikes = Counter[str]()
    with served_on_cluster(folder, **STORM_ENVIRONMENT) as (server, sandbox, cluster):
        accounts = accounts_apart(server, cluster, START, MASTERS)
        strike = masters_die(cluster, server, lambda what: strikes.update([what]))
        loads = storm(accounts, strike, size, seed, strikes=1 / 3)
        for account, load in zip(accounts, loads, strict=True):
            assert_books_match_the_record(account, sandbox, load, START)
    requests = sum(sum(load.statuses.values()) for load in loads)
    shown = sum(len(load.shown) for load in loads)
    return {
        "requests": requests,
        "kills": size,
        **strikes,
        "answers of which a client had a byte": shown,
        "lost": 0,
        "charged twice": 0,
        "differences from the ledger": 0,
        "held at the end": 0,
    }


def lost_replies(folder: Path, size: int, seed: int, **more: str) -> Figures:
    """Lose, cut and delay so many replies of Redis, of PostgreSQL and of upstream, all at the same time.

    `more`: settings of the server, by their names in its environment.
    """
    with contextlib.ExitStack() as stack:
        sandbox = start_sandbox()
        stack.callback(sandbox.stop)
        redis = RedisServer(folder / "redis")
        redis.start()
        stack.callback(redis.kill)
        stack.enter_context(postgres(folder / "pg"))
        targets = {"Redis": redis.port, "SQL": str(folder / "pg" / ".s.PGSQL.5432"), "upstream": sandbox.port}
        between = {
            name: stack.enter_context(FaultProxy(target, EVERY[name], seed + place))
            for place, (name, target) in enumerate(targets.items())
        }
        environment = {
            "TOLLKEEPER_REDIS__URL": f"redis://127.0.0.1:{between['Redis'].port}/0",
            "TOLLKEEPER_DATABASE__URL": f"postgresql+asyncpg://postgres:@127.0.0.1:{between['SQL'].port}/postgres",
            "TOLLKEEPER_UPSTREAM__BASE_URL": f"http://127.0.0.1:{between['upstream'].port}/v1",
            "TOLLKEEPER_LOG__ACCESS": "false",
            "TOLLKEEPER_LISTEN__WORKERS": "2",
            "TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "5",
            **more,
        }
        server = Tollkeeper(folder, environment)
        stack.callback(server.kill)
        server.start()
        account = server.account(str(START // 1_000))
        account.wait_balance(START)
        with Load(account, clients=6, seed=seed) as load:
            for proxy in between.values():
                proxy.begin()
            try:
                for proxy in between.values():
                    proxy.wait_for(size, 30 + size * PATIENCE_SECONDS)
            finally:
                for proxy in between.values():
                    proxy.end()
            load.more(50, 30)
        wait_until(lambda: account.held() == 0, 30, "nothing is held")
        rows = assert_books_match_the_record(account, sandbox, load, START)
        faults = sum((proxy.faults for proxy in between.values()), Counter[str]())
    return {"requests": sum(load.statuses.values()), "charged": len(rows), **faults, "lost": 0, "charged twice": 0}
