"""A background response outlives the process that was asked for it: kill -9 at each step, and it is charged once, exactly."""

from pathlib import Path

import pytest

from tests.support import web
from tests.support.servers import RedisServer, Sandbox, Serve, sandbox_says, wait_until

INJECT = str(Path(__file__).parent / "inject")
START = 1_000_000
BALANCES = {
    "embedded": "billing.balances.embedded:EmbeddedBalances",
    "redis": "billing.balances.redis.store:RedisBalances",
}
# point → where the process dies, STORE standing for the balance store's class
POINTS = {
    "while it runs": "proxy.gateway.background.poller:BackgroundResponses._take_on:after:1",
    "before its end is noted": "billing.ledger.upstream_objects:UpstreamObjects.end_background:before:1",
    "after its end is noted, before settling": "billing.ledger.upstream_objects:UpstreamObjects.end_background:after:1",
    "after settling": "proxy.gateway.background.poller:BackgroundResponses._settle:after:1",
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed(
    kind: str, point: str, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    environment = {
        "TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "2",
        "TOLLKEEPER_BILLING__ALLOW_STORE": "true",
        "TOLLKEEPER_BILLING__ALLOW_BACKGROUND": "true",
    }
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    server = make_tollkeeper(**environment)
    mark = server.folder / "crashed"
    server.start(PYTHONPATH=INJECT, TK_CRASH_AT=POINTS[point].replace("STORE", BALANCES[kind]), TK_CRASH_MARK=str(mark))
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    body = {
        "model": "gpt-4.1",
        "input": "hello " + sandbox_says(background_ms=100),
        "max_output_tokens": 50,
        "background": True,
    }
    answer = web.post(f"{server.v1}/responses", json=body, headers=account.headers, timeout=20)
    assert answer.json()["status"] == "queued"
    request_id, response_id = answer.headers["x-request-id"], answer.json()["id"]
    wait_until(mark.exists, 20, f"the crash {point}")
    server.kill()
    server.start()
    rows = wait_until(account.usage, 30, "it is charged")
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    # the upstream's own count: gpt-4.1 2 / 8
    (job,) = [
        row["usage"]
        for row in sandbox.record()
        if row.get("responseId") == response_id and row.get("jobStatus") == "completed"
    ]
    charge = job["input_tokens"] * 2 + job["output_tokens"] * 8
    assert [(row["requestId"], int(row["chargedMillicredits"])) for row in rows] == [(request_id, charge)]
    wait_until(lambda: account.balance() == START - charge, 10, "the balance is what is left")
    assert server.cli("reconcile") == {"ok": True, "findings": []}
