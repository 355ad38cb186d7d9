"""A batch outlives the process that was asked for it: kill -9 at each step, and what ran is charged once, exactly."""

import json

import httpx
import pytest

from tests.support import web
from tests.support.servers import INJECT, Account, RedisServer, Sandbox, Serve, Tollkeeper, wait_until

START = 1_000_000
MADE = "proxy.gateway.batches.creation:BatchExchange"
POLLED = "proxy.gateway.batches.poller:BatchPoller"
BOOKED = "billing.ledger.objects.batches:Batches"
# point → (where the process dies, whether the batch runs upstream)
POINTS = {
    "held, and not in SQL": (f"{MADE}._begin:before:1", False),
    "in SQL, and not made": (f"{MADE}._make:before:1", False),
    "made, and its id not in SQL": (f"{BOOKED}.made:before:1", True),
    "its id in SQL, and not answered": (f"{BOOKED}.made:after:1", True),
    "while it runs": (f"{POLLED}._look_at:after:1", True),
    "before its end is noted": (f"{BOOKED}.end:before:1", True),
    "after its end is noted, before charging": (f"{BOOKED}.end:after:1", True),
    "after charging": (f"{POLLED}._settle:after:1", True),
}


def upload(server: Tollkeeper, account: Account) -> str:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 50}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    made = web.post(
        f"{server.v1}/files",
        data={"purpose": "batch"},
        files={"file": ("in.jsonl", json.dumps(line).encode())},
        headers=account.headers,
        timeout=20,
    )
    assert made.status_code == 200, made.text
    found: str = made.json()["id"]
    return found


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed(
    kind: str, point: str, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    where, runs = POINTS[point]
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "2", "TOLLKEEPER_ADVANCED__BATCH_POLL_SECONDS": "0.1"}
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    server = make_tollkeeper(**environment)
    mark = server.folder / "crashed"
    server.start(PYTHONPATH=INJECT, TK_CRASH_AT=where, TK_CRASH_MARK=str(mark))
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    asked = {"input_file_id": upload(server, account), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    try:
        web.post(f"{server.v1}/batches", json=asked, headers=account.headers, timeout=20)
    except httpx.HTTPError:
        assert where.startswith((MADE, BOOKED))
    wait_until(mark.exists, 20, f"the crash {point}")
    server.kill()
    server.start()
    made = [row for row in sandbox.record() if row["path"] == "/v1/batches" and row["method"] == "POST"]
    assert bool(made) == runs
    wait_until(
        lambda: web.get(f"{server.v1}/batches", headers=account.headers, timeout=10).status_code == 200, 20, "up"
    )
    if runs:
        rows = wait_until(account.usage, 30, "it is charged")
        # its place in the record is not its number: the sandbox is cleared between the tests, and numbers go on
        usage = wait_until(lambda: next(r for r in sandbox.record() if r["seq"] == made[0]["seq"])["usage"], 10, "bill")
        charge = usage["input_tokens"] + usage["output_tokens"] * 4  # gpt-4.1 in batches: 1 / 4
        assert [int(row["chargedMillicredits"]) for row in rows] == [charge]
    wait_until(lambda: account.held() == 0, 30, "nothing is held")
    assert account.balance() == START - (charge if runs else 0)
    assert len(account.usage()) == int(runs)
    listed = web.get(f"{server.v1}/batches", headers=account.headers, timeout=10).json()["data"]
    assert [one["status"] for one in listed] == (["completed"] if runs else [])
    assert server.cli("reconcile") == {"ok": True, "findings": []}
