"""docs/runbook.md, "Restoring from a backup": SQL from a dump, Redis empty. Balances are the ledger's; nothing is charged or bought twice."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support import web
from tests.support.live import SECRET, control, run_sql, start_bank, stripe_environment
from tests.support.programs import POSTGRES
from tests.support.servers import ROOT, RedisServer, Sandbox, Tollkeeper, free_port, wait_until

STARTER = 9_990_000


def postgres_tool(name: str, *arguments: str) -> None:
    """pg_dump, pg_restore of the server's own version."""
    done = subprocess.run([str(POSTGRES / name), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


SERVES = "tollkeeper_serves"


def role_statements() -> list[str]:
    """What docs/runbook.md says makes the role that serves."""
    block = re.search(r"```sql\n(CREATE ROLE.*?)```", (ROOT / "docs" / "runbook.md").read_text(), re.DOTALL)
    assert block is not None
    return re.split(r";\n(?=[A-Z])", block[1].strip().removesuffix(";"))  # lines inside of a block are indented


def rows_of(url: str, query: str) -> list[tuple[Any, ...]]:
    async def read() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        found = [tuple(row) for row in await connection.fetch(query)]
        await connection.close()
        return found

    return asyncio.run(read())


class Customer:
    """An account on whichever server serves now."""

    def __init__(self, server: Tollkeeper) -> None:
        made = server.cli("account", "create", "a customer")
        self.server, self.account_id = server, made["accountId"]
        self.headers = {"Authorization": f"Bearer {made['apiKey']}"}

    def balance(self) -> int:
        answer = web.get(f"{self.server.url}/api/billing/me", headers=self.headers, timeout=10)
        return int(answer.json()["balanceMillicredits"])

    def call(self) -> int:
        """A chat: what it cost, in millicredits."""
        before = self.balance()
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "before the fire"}]}
        answer = web.post(f"{self.server.v1}/chat/completions", json=body, headers=self.headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return before - self.balance()

    def page(self) -> dict[str, Any]:
        answer = web.post(
            f"{self.server.url}/api/billing/checkout", json={"packageCode": "starter"}, headers=self.headers, timeout=20
        )
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


def test_sql_from_a_dump_and_an_empty_redis(
    folder: Path, postgres_url: str, empty_postgres: str, redis_server: RedisServer, session_sandbox: Sandbox
) -> None:
    bank, process = start_bank()
    environment = {
        **stripe_environment(bank),
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_REDIS__URL": redis_server.url,
        "TOLLKEEPER_DATABASE__URL": empty_postgres,
        "TOLLKEEPER_ADVANCED__SAME_CHECKOUT_SECONDS": "0",
    }
    server = Tollkeeper(folder, environment).start()
    restored = f"restored_{free_port()}"
    try:
        control(bank, "endpoints", url=f"{server.url}/webhooks/stripe", secret=SECRET)
        customer = Customer(server)
        bought = customer.page()
        control(bank, f"sessions/{bought['sessionId']}/pay")
        wait_until(lambda: customer.balance() == STARTER, 10, "bought")
        cost = customer.call()
        assert cost > 0
        server.cli("drain")
        postgres_tool(
            "pg_dump", "--format=custom", f"--file={folder}/tonight.dump", empty_postgres.replace("+asyncpg", "")
        )
        kept = STARTER - cost
        # what the backup will not know of
        later = customer.call()
        control(bank, "clock", "PUT", offset_s=-600)
        lost = customer.page()
        control(bank, f"sessions/{lost['sessionId']}/pay")
        control(bank, "clock", "PUT", offset_s=0)
        wait_until(lambda: customer.balance() == kept - later + STARTER, 10, "bought again")
        # the fire
        server.kill()
        redis_server.kill()
        shutil.rmtree(redis_server.folder)
        run_sql(postgres_url, f"CREATE DATABASE {restored}")
        there = postgres_url.replace("/postgres?", f"/{restored}?")
        postgres_tool(
            "pg_restore", "--exit-on-error", f"--dbname={there.replace('+asyncpg', '')}", f"{folder}/tonight.dump"
        )
        run_sql(there, *role_statements())
        redis_server.start()
        server.environment["TOLLKEEPER_DATABASE__URL"] = there.replace("//postgres:@", f"//{SERVES}@")
        server.start()
        comes_back_as_the_backup_was(server, customer, kept, there)
        stripe_tells_again(server, bank, customer, kept, (bought, lost))
    finally:
        server.kill()
        process.kill()
        process.communicate()
        run_sql(postgres_url, f"DROP DATABASE IF EXISTS {restored} WITH (FORCE)", f"DROP ROLE IF EXISTS {SERVES}")


def comes_back_as_the_backup_was(server: Tollkeeper, customer: Customer, kept: int, url: str) -> None:
    assert customer.balance() == kept
    ledger = rows_of(
        url,
        f"SELECT sum(CASE WHEN credit_account = 'customer:{customer.account_id}' THEN amount_millicredits ELSE -amount_millicredits END) "
        f"FROM transfers WHERE 'customer:{customer.account_id}' IN (credit_account, debit_account)",
    )
    assert ledger == [(kept,)]
    assert server.cli("reconcile", "--no-stripe")["findings"] == []
    states = {
        f"{row['area']} {row['name']}": row["state"]
        for row in json.loads(server.run("preflight", "--json").stdout)["checks"]
    }
    good = ("database migrations", "database role", "admin audit chain", "redis epoch")
    assert [states[name] for name in good] == ["PASS"] * len(good)
    months_can_be_made(url)
    assert rows_of(url, "SELECT count(*), count(DISTINCT charge_id) FROM usage") == [(1, 1)]


def months_can_be_made(url: str) -> None:
    """By the role that serves, as the job `partitions` makes them; it owns nothing, and cannot touch the ledger's triggers."""
    as_role = f"SET ROLE {SERVES}"
    make, drop = (f"SELECT keep_usage_month('{step}', 2099, 1)" for step in ("make", "drop"))
    months = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage'::regclass"
    run_sql(url, as_role, make)
    assert ("usage_2099_01",) in rows_of(url, months)
    run_sql(url, as_role, drop)
    assert ("usage_2099_01",) not in rows_of(url, months)
    for statement in (
        "ALTER TABLE transfers DISABLE TRIGGER ALL",
        "TRUNCATE transfers",
        "DROP TABLE audit_log",
        "CREATE TABLE usage_y2099m01 (LIKE usage_default)",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            run_sql(url, as_role, statement)


def stripe_tells_again(
    server: Tollkeeper, bank: str, customer: Customer, kept: int, pages: tuple[dict[str, Any], ...]
) -> None:
    """Every event once more: the purchase of the backup is not credited again; the one after it is found, and given by hand, once."""
    bought, lost = pages
    for event in {row["event"] for row in control(bank, "deliveries", "GET")["deliveries"]}:
        control(bank, f"events/{event}/resend")
    control(bank, "drain", timeout_s=20)
    wait_until(lambda: server.cli("stripe", "inbox")["waiting"] == 0, 10, "handled")
    assert customer.balance() == kept
    findings = server.cli("reconcile", code=1)["findings"]
    assert [(row["subject"], row["expected"], row["found"]) for row in findings] == [(lost["id"], "999", "0")]
    for _ in range(2):
        grant = (
            "grant",
            customer.account_id,
            "9990",
            "--reason",
            "bought after the backup",
            "--reference",
            f"restored:{lost['id']}",
        )
        server.cli(*grant)
    wait_until(lambda: customer.balance() == kept + STARTER, 5, "given")
    cost = customer.call()
    server.cli("drain")
    assert customer.balance() == kept + STARTER - cost
    assert bought["id"] != lost["id"]
