"""The jobs of a whole product under load: silent while nothing is wrong, run once of all processes, done again after a kill -9."""

import asyncio
import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from billing.jobs.runs import FAILED
from config.secrets import Secret
from proxy.server.openai_costs import OpenAICosts
from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.figures import change_figures, metric
from tests.support.servers import RedisServer, Sandbox, Tollkeeper, start_sandbox, wait_until
from tests.support.timed_load import Load

pytestmark = pytest.mark.served

ADMIN_KEY = "sk-admin-canary-51d7a0"
YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()


@pytest.fixture(scope="module")
def openai() -> Iterator[Sandbox]:
    """An upstream of this module's own: its record is what its costs are."""
    sandbox = start_sandbox("--admin-key", ADMIN_KEY)
    yield sandbox
    sandbox.stop()


def environment_of(openai: Sandbox) -> dict[str, str]:
    return {
        "TOLLKEEPER_UPSTREAM__BASE_URL": openai.url,
        "TOLLKEEPER_ADVANCED__OPENAI_COSTS_URL": f"{openai.url}/organization/costs",
        "TOLLKEEPER_ADVANCED__FINANCE_SECONDS": "1",
        "OPENAI_ADMIN_KEY": ADMIN_KEY,
    }


@pytest.fixture(scope="module")
def single(new_folder: Callable[[str], Path], openai: Sandbox) -> Iterator[Tollkeeper]:
    """The embedded store and SQLite, in one process."""
    home = new_folder("jobs")
    server = Tollkeeper(home, environment_of(openai)).start()
    yield server
    server.kill()


def owner_of(server: Tollkeeper) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.cli('admin', 'create', 'the owner', '--role', 'owner')['adminKey']}"}


def job(server: Tollkeeper, owner: dict[str, str], name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = web.get(f"{server.url}/api/admin/jobs", headers=owner, timeout=10).json()["data"]
    return next(row for row in rows if row["job"] == name)


def run_by_api(server: Tollkeeper, owner: dict[str, str], name: str) -> dict[str, Any]:
    """Ask for a run, and wait for it."""
    before = (job(server, owner, name)["lastRun"] or {"id": ""})["id"]
    asked = web.post(f"{server.url}/api/admin/jobs/{name}/run", json={"reason": "a test"}, headers=owner, timeout=10)
    assert asked.status_code == 202, asked.text
    finished = wait_until(
        lambda: (row := job(server, owner, name)["lastRun"]) and row["id"] != before and row, 20, f"{name} ran"
    )
    found: dict[str, Any] = finished
    return found


def test_everything_agrees_under_load_and_a_fault_in_the_store_is_found(single: Tollkeeper) -> None:
    customer, still, owner = new_customer(single), new_customer(single, 5_000_000), owner_of(single)
    with Load(customer, threads=3) as load:
        for _ in range(3):
            assert single.cli("reconcile") == {"ok": True, "findings": []}
        assert run_by_api(single, owner, "reconcile")["ok"]
    assert {reply.status for reply in load.replies} == {200}
    assert metric(single, "tollkeeper_reconciliation_mismatch_credits") == 0
    change_figures(single, still, 7)
    (finding,) = single.cli("reconcile", code=1)["findings"]
    assert finding == {
        "check": "cached balance vs ledger",
        "subject": still.account_id,
        "expected": "5000000",
        "found": "5000007",
    }
    done = run_by_api(single, owner, "reconcile")
    assert (done["ok"], done["findings"]) == (False, 1)
    shown = web.get(f"{single.url}/api/admin/reconciliation", headers=owner, timeout=10).json()
    assert shown["findings"] == [finding]
    wait_until(lambda: metric(single, "tollkeeper_reconciliation_mismatch_credits") == 0.007, 5, "the metric")
    listed = {row["job"]: row["lastRun"] for row in single.cli("jobs", "list", code=1)["data"]}
    assert listed["reconcile"]["findings"] == 1
    change_figures(single, still, -7)
    assert single.cli("jobs", "run", "reconcile") == {"ok": True, "findings": []}
    assert still.balance() == 5_000_000, "nothing was repaired, for nothing was broken but the copy"
    rows = web.get(f"{single.url}/api/admin/audit", headers=owner, timeout=10).json()["data"]
    assert {(row["action"], row["subject"], row["reason"]) for row in rows} >= {("job.run", "reconcile", "a test")}


def test_stripe_being_away_hides_nothing_that_others_found(make_tollkeeper: Callable[..., Tollkeeper]) -> None:
    """Rows, metrics and the list of jobs have the findings; the run counts as not done."""
    stripe = {
        "STRIPE_API_KEY": "sk_test_away",
        "STRIPE_WEBHOOK_SECRET": "whsec_away",
        "TOLLKEEPER_STRIPE__API_BASE": "http://127.0.0.1:9",
        "TOLLKEEPER_STRIPE__SUCCESS_URL": "http://127.0.0.1:9/ok",
        "TOLLKEEPER_STRIPE__CANCEL_URL": "http://127.0.0.1:9/back",
    }
    server = make_tollkeeper(**stripe).start()
    still = new_customer(server, 5_000_000)
    change_figures(server, still, 5_000)
    done = server.cli("reconcile", code=3)
    assert [(row["check"], row["subject"]) for row in done["findings"]] == [
        ("cached balance vs ledger", still.account_id)
    ]
    assert (done["ok"], "Stripe's record: " in done["incomplete"]) == (False, True)
    wait_until(lambda: metric(server, "tollkeeper_reconciliation_mismatch_credits") == 5, 10, "the metric")
    assert metric(server, 'tollkeeper_job_findings{task="reconcile"}') == 1
    assert metric(server, 'tollkeeper_job_last_success_timestamp_seconds{task="reconcile"}') == -1
    (row,) = [row for row in server.cli("jobs", "list", code=1)["data"] if row["job"] == "reconcile"]
    assert (row["lastRun"]["ok"], row["lastRun"]["findings"], row["nextDueAt"]) == (False, 1, None)
    assert re.search(
        r"reconcile +\S+ +1 findings, could not be done in whole: Stripe's record: ", server.run("jobs", "list").stdout
    )
    shown = web.get(f"{server.url}/api/admin/reconciliation", headers=owner_of(server), timeout=10).json()
    assert (shown["findings"], shown["lastReconciliation"]["completed"]) == (done["findings"], False)
    # what leaves Stripe out is not the whole, and does not pass for it
    assert server.cli("reconcile", "--no-stripe", code=1)["findings"] == done["findings"]
    (row,) = [row for row in server.cli("jobs", "list", code=1)["data"] if row["job"] == "reconcile"]
    assert row["nextDueAt"] is None


def test_a_shell_without_redis_does_not_take_another_store_for_the_services(
    make_tollkeeper: Callable[..., Tollkeeper], redis_server: RedisServer
) -> None:
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url).start()
    new_customer(server, 100_000)
    refused = server.run("rebuild", TOLLKEEPER_REDIS__URL="")
    assert (refused.returncode, "TOLLKEEPER_REDIS__URL" in refused.stderr) == (1, True)
    done = server.run("reconcile", "--json", TOLLKEEPER_REDIS__URL="")
    found = json.loads(done.stdout)
    assert (done.returncode, found["findings"]) == (3, [])
    assert "the service keeps balances in Redis" in found["incomplete"]
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def test_while_the_file_is_broken_switches_are_set_elsewhere(single: Tollkeeper) -> None:
    broken = single.folder / "broken.toml"
    broken.write_text("[[[")
    done = single.run("flags", "set", "purchase_enabled", "false", "--reason", "x", "--config", str(broken))
    assert (done.returncode, "/admin" in done.stderr) == (2, True)


def test_a_run_that_failed_neither_reads_as_agreement_nor_hides_what_is_found(
    make_tollkeeper: Callable[..., Tollkeeper],
) -> None:
    server = make_tollkeeper().start()
    owner = owner_of(server)
    wait_until(lambda: job(server, owner, "reconcile")["lastRun"], 20, "the first run")

    def shown() -> tuple[str, list[Any]]:
        page = browser.get("/admin/reconciliation").text.partition('aria-labelledby="jobs"')[0]
        return page, web.get(f"{server.url}/api/admin/reconciliation", headers=owner, timeout=10).json()["findings"]

    with httpx.Client(base_url=server.url, follow_redirects=True, timeout=10) as browser:
        browser.post(
            "/admin/sign-in",
            data={"key": owner["Authorization"].removeprefix("Bearer ")},
            headers={"origin": server.url},
        )
        assert "Everything agreed" in shown()[0]
        fail(server)
        page, found = shown()
        assert ("Everything agreed" in page, "could not be done: sql: is away" in page, found) == (False, True, [])
        still = new_customer(server, 5_000_000)
        change_figures(server, still, 7)
        (finding,) = server.cli("reconcile", code=1)["findings"]
        fail(server)
        page, found = shown()
        assert ("could not be done: sql: is away" in page, still.account_id in page, found) == (True, True, [finding])


def fail(server: Tollkeeper) -> None:
    """Leave behind what a reconciliation leaves that could not be done."""
    row = ("reconcile", 1, 2, 0, 0, f"{FAILED}sql: is away")
    with closing(sqlite3.connect(server.folder / "var" / "tollkeeper.db", timeout=10)) as connection, connection:
        connection.execute(
            "INSERT INTO job_runs (job, started_at, finished_at, ok, findings, report) VALUES (?, ?, ?, ?, ?, ?)", row
        )


def test_figures_are_those_of_sql_after_a_restart_and_after_a_run_by_hand(
    make_tollkeeper: Callable[..., Tollkeeper],
) -> None:
    server = make_tollkeeper().start()
    still = new_customer(server, 5_000_000)
    wait_until(
        lambda: metric(server, 'tollkeeper_job_last_success_timestamp_seconds{task="reconcile"}') > 0,
        20,
        "the first run",
    )
    assert metric(server, 'tollkeeper_job_interval_seconds{task="reconcile"}') == 3_600
    change_figures(server, still, 5_000)
    server.cli("reconcile", code=1)
    wait_until(lambda: metric(server, "tollkeeper_reconciliation_mismatch_credits") == 5, 5, "a run by hand shows")
    server.stop()
    server.start()
    wait_until(lambda: metric(server, "tollkeeper_reconciliation_mismatch_credits") == 5, 5, "the last run still shows")
    assert metric(server, 'tollkeeper_job_findings{task="reconcile"}') == 1
    assert metric(server, 'tollkeeper_job_last_success_timestamp_seconds{task="reconcile"}') > 0


def test_the_day_is_rolled_up_while_it_runs_and_by_hand(single: Tollkeeper) -> None:
    customer = new_customer(single, 3_000_000)
    for _ in range(3):
        assert customer.chat(max_tokens=5).status_code == 200
    single.cli("drain")
    (today, *_), ok = (done := single.cli("finance", "--days", "3"))["days"], done["ok"]
    assert (ok, today["marginMillicredits"], int(today["deductedMillicredits"]) > 0) == (True, "0", True)
    wait_until(
        lambda: metric(single, "finance_liability_credits_usd") == int(today["liabilityMillicredits"]) / 1e6,
        10,
        "the gauge",
    )
    assert metric(single, "finance_margin_daily_usd") == 0
    bought = single.run("finance", "--days", "0")
    assert bought.returncode == 2


def test_our_costs_are_openais_and_a_skewed_one_is_found(single: Tollkeeper, openai: Sandbox) -> None:
    customer = new_customer(single)
    for model, tokens in (("gpt-4o", 400), ("gpt-4o-mini", 300), ("gpt-4.1", 200)):
        assert customer.chat("count to a thousand " * 30, model=model, max_tokens=tokens).status_code == 200
    embedded = {"model": "text-embedding-3-small", "input": "words " * 400}
    assert web.post(f"{single.v1}/embeddings", json=embedded, headers=customer.headers, timeout=20).status_code == 200
    single.cli("drain")
    # the day of all that was yesterday, here and there
    openai.settings(costs_shift_days=1)
    with closing(sqlite3.connect(single.folder / "var" / "tollkeeper.db", timeout=10)) as ledger, ledger:
        ledger.execute("UPDATE usage SET created_at = created_at - 86400000")
    try:
        assert single.cli("costs") == {"ok": True, "findings": []}
        assert "$0.00" in single.run("jobs", "run", "costs").stdout
        openai.settings(costs_skew_percent={"gpt-4o": 1.5})
        assert single.cli("costs", "--day", YESTERDAY)["ok"], "within the tolerance"
        openai.settings(costs_skew_percent={"gpt-4o": 4})
        (finding,) = single.cli("costs", code=1)["findings"]
        assert (finding["check"], finding["subject"]) == ("our cost vs OpenAI's", f"{YESTERDAY} gpt-4o")
        assert int(finding["expected"]) / int(finding["found"]) == pytest.approx(1.04, abs=0.001)
        owner = owner_of(single)
        assert run_by_api(single, owner, "costs")["findings"] == 1
    finally:
        openai.settings(costs_shift_days=0, costs_skew_percent={})
        with closing(sqlite3.connect(single.folder / "var" / "tollkeeper.db", timeout=10)) as ledger, ledger:
            ledger.execute("UPDATE usage SET created_at = created_at + 86400000")
    refused = single.run("costs", "--day", datetime.now(UTC).date().isoformat())
    assert (refused.returncode, "not over yet" in refused.stderr) == (1, True)
    wrong = single.run("costs", OPENAI_ADMIN_KEY="sk-admin-wrong")
    assert (wrong.returncode, "answered with 403" in wrong.stderr, "sk-admin" in wrong.stderr) == (3, True, False)
    assert single.run("costs", OPENAI_ADMIN_KEY="").returncode == 2
    assert single.run("costs", TOLLKEEPER_ADVANCED__OPENAI_COSTS_URL="http://127.0.0.1:9/").returncode == 3
    assert ADMIN_KEY not in single.log()


def test_pages_of_costs_are_read_to_the_end(single: Tollkeeper, openai: Sandbox) -> None:
    assert new_customer(single).chat(max_tokens=5).status_code == 200
    today = datetime.now(UTC).date()
    costs = asyncio.run(
        OpenAICosts(f"{openai.url}/organization/costs", Secret(ADMIN_KEY)).days(today - timedelta(days=19), today)
    )
    assert list(costs) == [today - timedelta(days=back) for back in range(19, -1, -1)]
    assert [day for day, items in costs.items() if items] == [today]


def jobs_processes(server: Tollkeeper) -> list[int]:
    """The pids of a supervisor's jobs process."""
    assert server.process is not None
    return [child.pid for child in psutil.Process(server.process.pid).children() if child.name() == "tk-jobs"]


def test_two_machines_run_a_job_once_and_again_after_a_kill(folder: Path, empty_postgres: str) -> None:
    """Two supervisors, each with its jobs process, over one PostgreSQL and one Redis."""
    openai = start_sandbox(
        "--admin-key", ADMIN_KEY
    )  # another ledger's usage must not stand in the record that others compare with
    store = RedisServer(folder / "redis")
    store.start()
    shared = {**environment_of(openai), "TOLLKEEPER_DATABASE__URL": empty_postgres, "TOLLKEEPER_REDIS__URL": store.url}
    machines = [Tollkeeper(folder, dict(shared)), Tollkeeper(folder, dict(shared))]
    try:
        for machine in machines:
            machine.start()
        first, second = machines
        owner, customer = owner_of(first), new_customer(first)
        with Load(customer, threads=2):
            for _ in range(2):
                assert second.cli("reconcile") == {"ok": True, "findings": []}
        _change_in_redis(store, customer, 7)
        (finding,) = second.cli("reconcile", code=1)["findings"]
        assert int(finding["found"]) - int(finding["expected"]) == 7
        _change_in_redis(store, customer, -7)
        assert second.cli("jobs", "list", code=1)["data"]
        # both machines say what the one of them found that ran the job, also when it is no longer the one
        for machine in machines:
            wait_until(
                lambda server=machine: metric(server, "tollkeeper_reconciliation_mismatch_credits") == 0.007,
                5,
                "on both",
            )
        assert second.cli("reconcile") == {"ok": True, "findings": []}
        for machine in machines:
            wait_until(
                lambda server=machine: metric(server, "tollkeeper_reconciliation_mismatch_credits") == 0, 5, "on both"
            )
            liability = wait_until(
                lambda server=machine: metric(server, "finance_liability_credits_usd"), 10, "finance on both"
            )
            assert liability > 0
            for task in ("reconcile", "finance", "costs"):
                assert metric(machine, f'tollkeeper_job_last_success_timestamp_seconds{{task="{task}"}}') > 0, task
        before = _runs(first, owner, "costs")
        assert len(before) == 1, "due on both machines from the start, and run once"
        openai.settings(latency_ms=4_000)
        asked = web.post(f"{second.url}/api/admin/jobs/costs/run", json={"reason": "a test"}, headers=owner, timeout=10)
        assert asked.status_code == 202
        wait_until(lambda: job(first, owner, "costs")["running"], 10, "the job runs")
        busy = first.cli("jobs", "list")["data"]
        assert next(row for row in busy if row["job"] == "costs")["running"]
        for machine in machines:
            for pid in jobs_processes(machine):
                os.kill(pid, signal.SIGKILL)
        openai.settings(latency_ms=0)
        wait_until(lambda: len(_runs(first, owner, "costs")) == 2, 30, "it was done again")
        wait_until(lambda: not job(first, owner, "costs")["requested"], 5, "the request is fulfilled")
        assert [row["ok"] for row in _runs(first, owner, "costs")] == [True, True]
        made = [row for row in _runs(first, owner, "partitions") if "Made: usage_" in row["report"]]
        assert len(made) == 1
        assert second.cli("reconcile") == {"ok": True, "findings": []}
    finally:
        for machine in machines:
            machine.kill()
        store.kill()
        openai.stop()


def _change_in_redis(store: RedisServer, customer: Customer, by: int) -> None:
    with redis.Redis(port=store.port) as client:
        (key,) = [key for key in client.scan_iter(f"*:a:{customer.account_id}")]
        client.hincrby(key, "balance", by)


def _runs(server: Tollkeeper, owner: dict[str, str], name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = web.get(
        f"{server.url}/api/admin/reconciliation?limit=100", headers=owner, timeout=10
    ).json()["runs"]
    return [row for row in rows if row["job"] == name]
