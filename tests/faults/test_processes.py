"""Processes killed at random under load, and what their supervisor does about it."""

import os
import random
import socket
from typing import Any

import psutil

from tests.faults.load import STORM_ENVIRONMENT, assert_books_match_the_record, restarts, storm
from tests.support import web
from tests.support.processes import children
from tests.support.servers import RedisServer, Sandbox, Serve, Tollkeeper, wait_until

START = 1_000_000_000
KILLS = 25


def can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True


def test_killing_the_supervisor_takes_its_children_along_and_frees_the_port(on_redis: Tollkeeper) -> None:
    family = children(on_redis)
    assert len(family) == 4, "two workers, the jobs process and the counter"
    on_redis.kill()
    wait_until(
        lambda: not any(psutil.pid_exists(child.pid) and child.status() != psutil.STATUS_ZOMBIE for child in family),
        5,
        "they are gone",
    )
    wait_until(lambda: can_bind(on_redis.port), 5, "the port is free")  # a killed process's threads end one by one
    on_redis.start()


def test_a_worker_that_is_started_again_follows_the_last_good_edit_and_waits_for_a_store_that_is_away(
    make_tollkeeper: Serve, redis_server: RedisServer
) -> None:
    """Neither a broken edit nor an absent Redis, met by a worker alone, may end the service or undo what its siblings follow."""
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url)
    config = server.folder / "proxy.toml"
    config.write_text("[billing]\npurchase_enabled = true\n")
    server.start()
    account = server.account("100")
    account.wait_balance(100_000)
    config.write_text("[billing]\nmodel_allowlist = ['gpt-4o']\n")
    wait_until(lambda: account.chat(max_tokens=1).status_code == 404, 5, "the edit is in force")
    config.write_text("[billing]\nmodel_allowlist = 7\n")
    wait_until(lambda: "config" in readyz(server)["notes"], 5, "the broken edit is reported")
    redis_server.kill()
    (worker,) = [child for child in children(server) if child.name() == "tk-worker-0"]
    worker.kill()
    wait_until(
        lambda: server.log().count("starting it again") >= 2,
        30,
        "it could not start without its store, and was tried again",
    )
    redis_server.start()
    wait_until(lambda: readyz(server)["status"] == "ready", 20, "it serves")
    assert account.chat(max_tokens=1).json()["error"]["code"] == "model_not_found"
    wait_until(lambda: "config" in readyz(server)["notes"], 5, "it reports the broken edit too")
    assert server.stop() == 0


def readyz(server: Tollkeeper) -> dict[str, Any]:
    found: dict[str, Any] = web.get(f"{server.url}/readyz", timeout=2).json()
    return found


def test_a_storm_of_kills_loses_nothing(make_tollkeeper: Serve, redis_server: RedisServer, sandbox: Sandbox) -> None:
    """Workers, the jobs process and Redis are killed at random while clients call; the seed is printed."""
    seed = int(os.environ.get("STORM_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
    print(f"STORM_SEED={seed}")
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url, **STORM_ENVIRONMENT).start()
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    (load,) = storm([account], restarts(redis_server), KILLS, seed)
    rows = assert_books_match_the_record(account, sandbox, load, START)
    assert {row["outcome"] for row in rows} <= {"completed", "orphaned", "client_gone", "shutdown"}
