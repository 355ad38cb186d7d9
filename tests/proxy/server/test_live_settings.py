"""What follows the file, the overrides and the rate card goes on, whatever an edit or the database answers; and never waits for SQL."""

import asyncio
import os
import shutil
import signal
import socket
import time
from datetime import datetime
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry

from billing.ledger.flag_overrides import FlagOverrides
from config.secrets import Secret
from config.settings import Settings
from config.watch import Judge, Watcher
from proxy.observability.metrics import Metrics
from proxy.server.live_settings import LiveSettings
from proxy.server.supervisor import Listeners, Supervisor
from proxy.server.wiring import background
from tests.support import web
from tests.support.customers import new_customer
from tests.support.processes import frozen
from tests.support.schema import in_thread
from tests.support.servers import Account, RedisServer, Sandbox, Serve, Tollkeeper, postgres, wait_until, within
from tests.support.stores import Books

DEEP = "x = " + "[" * 5_000 + "]" * 5_000 + "\n"
CLOSED = "[billing]\ncharging_enabled = false\n"


def notes(server: Tollkeeper) -> dict[str, str]:
    found: dict[str, str] = web.get(f"{server.url}/readyz", timeout=5).json()["notes"]
    return found


def answers(customer: Account, wanted: int, times: int = 6) -> bool:
    """Whether every worker answers so: each connection may reach another one."""
    return all(customer.chat(max_tokens=5).status_code == wanted for _ in range(times))


def children(server: Tollkeeper) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(server.process.pid).children() if server.process else []
    return found


def test_an_edit_that_breaks_the_reader_is_one_bad_edit(make_tollkeeper: Serve, redis_server: RedisServer) -> None:
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url, TOLLKEEPER_LISTEN__WORKERS="2")
    file = server.folder / "proxy.toml"
    file.write_text("# fine\n")
    server.start()
    customer = new_customer(server)
    file.write_text(DEEP)
    wait_until(lambda: "RecursionError" in notes(server).get("config", ""), 5, "the edit is refused by name")
    before = children(server)
    before[-1].kill()
    wait_until(
        lambda: len(children(server)) == len(before) and not before[-1].is_running(), 5, "the supervisor still tends"
    )
    wait_until(lambda: answers(customer, 200), 5, "all serve")
    file.write_text(CLOSED)
    wait_until(lambda: answers(customer, 503), 5, "the next edit is taken")
    assert "config" not in notes(server)


def on_postgres(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://"))
        await connection.execute(statement)
        await connection.close()

    in_thread(run())


def metric(server: Tollkeeper, line: str) -> bool:
    return line in web.get(f"{server.url}/metrics").text


def test_a_database_that_refuses_our_questions_ends_no_loop(make_tollkeeper: Serve, fresh_postgres: str) -> None:
    server = make_tollkeeper(TOLLKEEPER_DATABASE__URL=fresh_postgres)
    file = server.folder / "proxy.toml"
    file.write_text("# fine\n")
    server.start()
    customer = new_customer(server)
    tables = ("flag_overrides", "rate_activations", "alembic_version")
    for table in tables:
        on_postgres(fresh_postgres, f"ALTER TABLE {table} RENAME TO {table}_away")
    wait_until(lambda: {"overrides_unread", "rates"} <= notes(server).keys(), 5, "both are noted")
    wait_until(lambda: metric(server, "tollkeeper_config_valid 0.0"), 2, "the trouble is published")
    wait_until(lambda: web.get(f"{server.url}/readyz").status_code == 503, 5, "not ready: the schema cannot be told")
    time.sleep(2)
    file.write_text(CLOSED)
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 503, 3, "the file is followed all the same")
    said = [line for line in server.log().splitlines() if "asking for overrides failed" in line]
    assert len(said) == 1, "said once, not at every look"
    for table in tables:
        on_postgres(fresh_postgres, f"ALTER TABLE {table}_away RENAME TO {table}")
    server.cli("flags", "set", "charging_enabled", "true", "--reason", "a test")
    wait_until(lambda: customer.chat(max_tokens=5).status_code == 200, 3, "overrides are followed again")
    wait_until(lambda: notes(server).keys() == {"overrides"}, 5, "nothing is wrong any more")
    wait_until(lambda: web.get(f"{server.url}/readyz").status_code == 200, 5, "ready again")
    wait_until(lambda: metric(server, "tollkeeper_config_valid 1.0"), 3, "the metric follows")


def test_switches_work_while_postgresql_hangs(
    make_tollkeeper: Serve, redis_server: RedisServer, sandbox: Sandbox, folder: Path
) -> None:
    with postgres(folder / "pg") as url:
        server = make_tollkeeper(
            TOLLKEEPER_REDIS__URL=redis_server.url, TOLLKEEPER_LISTEN__WORKERS="2", TOLLKEEPER_DATABASE__URL=url
        )
        file = server.folder / "proxy.toml"
        file.write_text("# fine\n")
        server.start()
        account = server.account("100")
        account.wait_balance(100_000)
        assert answers(account, 200)
        override = server.cli(
            "flags", "set", "rounding_mode", "ceil", "--reason", "ends while SQL hangs", "--expires", "7s"
        )
        ends = datetime.fromisoformat(override["expiresAt"]).timestamp()
        wait_until(lambda: charged(account) == {1_000}, 3, "the override applies")
        postmaster = psutil.Process(int((folder / "pg" / "postmaster.pid").read_text().split()[0]))
        took = []
        with frozen([postmaster, *postmaster.children(recursive=True)]):
            wait_until(lambda: time.time() > ends, 10, "the override's time is over")
            took.append(seconds_until(lambda: 1_000 not in charged(account)))
            for value, status in (("false", 503), ("true", 200), ("false", 503)):
                # the second edit also needs another price book, for which the database is not asked either
                file.write_text(f'[billing]\ncharging_enabled = {value}\nmarkup = "{2 if value == "true" else 1}"\n')
                took.append(seconds_until(lambda status=status: answers(account, status)))  # type: ignore[misc]
        assert max(took) <= within(2), took


def charged(account: Account) -> set[int]:
    """What small requests cost just now, in millicredits."""
    replies: list[httpx.Response] = [account.chat(max_tokens=5) for _ in range(6)]
    return {round(float(reply.headers["x-credits-charged"]) * 1_000) for reply in replies}


def seconds_until(check: object) -> float:
    started = time.monotonic()
    wait_until(check, 15, "the change is in force")
    return time.monotonic() - started


class FailsOnce:
    """Puts settings in force, but for the first time."""

    def __init__(self) -> None:
        self.tries, self.done, self.go_on = 0, list[Settings](), False

    async def __call__(self, settings: Settings) -> None:
        self.tries += 1
        if not self.go_on:
            raise TypeError("nobody foresaw this")
        self.done.append(settings)


def test_an_override_set_on_one_machine_is_in_force_on_another_within_2_seconds(
    folder: Path, empty_postgres: str, redis_server: RedisServer, session_sandbox: Sandbox
) -> None:
    """Two machines that share PostgreSQL and Redis, the second one with two workers: by API there and back, each time."""
    shared = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_DATABASE__URL": empty_postgres,
        "TOLLKEEPER_REDIS__URL": redis_server.url,
    }
    first, second = Tollkeeper(folder, dict(shared)), Tollkeeper(folder, {**shared, "TOLLKEEPER_LISTEN__WORKERS": "2"})
    try:
        first.start()
        second.start()
        owner = {"Authorization": f"Bearer {first.cli('admin', 'create', 'the owner', '--role', 'owner')['adminKey']}"}
        customer = new_customer(second)
        flag = f"{first.url}/api/admin/flags/charging_enabled"
        took = []
        for _ in range(3):
            for status in (503, 200):
                if status == 503:
                    done = web.put(flag, json={"value": False, "reason": "a test"}, headers=owner, timeout=10)
                else:
                    done = web.post(f"{flag}/clear", json={"reason": "a test"}, headers=owner, timeout=10)
                assert done.status_code == 200, done.text
                took.append(seconds_until(lambda status=status: answers(customer, status)))  # type: ignore[misc]
        assert max(took) <= within(2), took
    finally:
        first.kill()
        second.kill()


@pytest.mark.slow
async def test_a_look_that_fails_is_noted_and_tried_again(
    sql: Books, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, settings, metrics, apply = tmp_path / "proxy.toml", Settings(), Metrics(CollectorRegistry()), FailsOnce()
    file.write_text("# fine\n")
    live = LiveSettings(
        settings, Watcher(Judge(file, settings, environ={})), FlagOverrides(sql.database), metrics, apply
    )
    async with background(live.follow()):
        await asyncio.sleep(0.6)
        file.write_text(CLOSED)
        async with asyncio.timeout(10):
            while apply.tries < 3:
                await asyncio.sleep(0.05)
        assert "TypeError" in live.notes()["following"]
        assert len([record for record in caplog.records if record.exc_info]) == 1, "said once"
        apply.go_on = True
        async with asyncio.timeout(10):
            while not apply.done or live.notes():
                await asyncio.sleep(0.05)
    assert not live.current.billing.charging_enabled


def test_the_supervisor_outlives_a_look_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text("# fine\n")
    listeners = Listeners(socket.socket())
    supervisor = Supervisor(Settings(), Secret("x"), file, listeners)

    def check(settings: Settings) -> None:
        if not settings.billing.charging_enabled:
            raise TypeError("nobody foresaw this")

    supervisor._watcher = Watcher(Judge(file, Settings(), check, {}))
    for content, purchases in (("# fine\n", True), (CLOSED, True), ("[billing]\npurchase_enabled = false\n", False)):
        file.write_text(content)
        for _ in range(3):
            supervisor._look_at_file()
        assert supervisor._settings.billing.purchase_enabled is purchases
    listeners.main.close()


def test_a_frozen_supervisor_is_said_and_over_when_it_goes_on(
    make_tollkeeper: Serve, redis_server: RedisServer
) -> None:
    """It watches the file for all: a kill switch would reach nobody."""
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url, TOLLKEEPER_LISTEN__WORKERS="2")
    (server.folder / "proxy.toml").write_text("# fine\n")
    server.start()
    assert notes(server) == {}
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: "nobody looked at the file" in notes(server).get("unwatched", ""), 10, "it is said")
        wait_until(lambda: metric(server, "tollkeeper_config_valid 0.0"), 5, "the metric")
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    wait_until(lambda: notes(server) == {} and metric(server, "tollkeeper_config_valid 1.0"), 5, "it is over")


def test_a_cleaned_temporary_folder_costs_neither_edits_nor_workers(
    make_tollkeeper: Serve, redis_server: RedisServer, folder: Path
) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    server = make_tollkeeper(
        TOLLKEEPER_REDIS__URL=redis_server.url, TOLLKEEPER_LISTEN__WORKERS="2", TMPDIR=str(temporary)
    )
    file = server.folder / "proxy.toml"
    file.write_text("# fine\n")
    server.start()
    customer = new_customer(server)
    shutil.rmtree(temporary)  # with the folder that it is in, which is not made again
    file.write_text(CLOSED)
    wait_until(lambda: answers(customer, 503), 5, "an edit is in force")
    temporary.mkdir()
    before = children(server)
    for child in before:
        child.kill()
    wait_until(
        lambda: len(children(server)) == len(before) and not any(child.is_running() for child in before),
        10,
        "all are back",
    )
    file.write_text("# fine again\n")
    wait_until(lambda: answers(customer, 200), 10, "and serve")
    assert web.get(f"{server.url}/metrics").status_code == 200
