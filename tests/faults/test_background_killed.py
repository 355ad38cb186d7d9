"""A background response outlives the process that was asked for it: kill -9 at each step, and it is charged once, exactly."""

import contextlib
import re

import httpx
import pytest

from tests.support import web
from tests.support.servers import INJECT, Account, RedisServer, Sandbox, Serve, sandbox_says, wait_until
from tests.support.wire import Wire

START = 1_000_000
BALANCES = {
    "embedded": "billing.balances.embedded:EmbeddedBalances",
    "redis": "billing.balances.redis.store:RedisBalances",
}
# point → where the process dies, STORE standing for the balance store's class
POINTS = {
    "while it runs": "proxy.gateway.background.poller:BackgroundResponses._take_on:after:1",
    "before its end is noted": "billing.ledger.objects.upstream_objects:UpstreamObjects.end_background:before:1",
    "after its end is noted, before settling": "billing.ledger.objects.upstream_objects:UpstreamObjects.end_background:after:1",
    "after settling": "proxy.gateway.background.poller:BackgroundResponses._settle:after:1",
}


@pytest.mark.parametrize(
    ("point", "stream"),
    [*((point, False) for point in POINTS), ("while it runs", True), ("before its end is noted", True)],
)
@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed(
    kind: str, point: str, stream: bool, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
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
    request_id = answered(account, {**body, "stream": stream})
    wait_until(mark.exists, 20, f"the crash {point}")
    server.kill()
    server.start()
    rows = wait_until(account.usage, 30, "it is charged")
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    # the upstream's own count: gpt-4.1 2 / 8
    (job,) = [row["usage"] for row in sandbox.record() if row.get("jobStatus") == "completed"]
    charge = job["input_tokens"] * 2 + job["output_tokens"] * 8
    assert [int(row["chargedMillicredits"]) for row in rows] == [charge]
    assert request_id in ("", rows[0]["requestId"])
    wait_until(lambda: account.balance() == START - charge, 10, "the balance is what is left")
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def answered(account: Account, body: dict[str, object]) -> str:
    """Its request id; "" when the process died before it said it. A stream is left when the process dies."""
    url = f"{account.server.v1}/responses"
    request_id = ""
    with (
        contextlib.suppress(httpx.TransportError),
        web.stream("POST", url, json=body, headers=account.headers, timeout=20) as answer,
    ):
        assert answer.status_code == 200
        request_id = answer.headers["x-request-id"]
        answer.read()
    return request_id


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed_while_its_stream_is_read(
    kind: str, make_tollkeeper: Serve, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    """The reader comes back to the next process and reads on where it was; one charge, by the job's usage."""
    # longer than a busy machine pauses: a hold that runs out is rightly charged at its bound
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "10"}
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    server = make_tollkeeper(**environment).start()
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    said = sandbox_says(background_ms=3_000, queued_ms=50, output_tokens=40)
    body = {"model": "gpt-4.1", "input": f"hello {said}", "max_output_tokens": 50, "background": True}
    with Wire(account, {**body, "stream": True}, "/v1/responses") as wire:
        begun = wire.read_events(8)
        server.kill()
    server.start()
    found = re.search(rb'"id":"(resp_\w+)"', begun)
    assert found is not None
    last = int(re.findall(rb'"sequence_number":(\d+)', begun)[-1])
    url = f"{server.v1}/responses/{found[1].decode()}?stream=true&starting_after={last}"
    rest = web.get(url, headers=account.headers, timeout=30).text
    assert f'"sequence_number":{last + 1}' in rest
    assert '"type":"response.completed"' in rest
    (row,) = wait_until(account.usage, 30, "it is charged")
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    (job,) = [record["usage"] for record in sandbox.record() if record.get("jobStatus") == "completed"]
    charge = job["input_tokens"] * 2 + job["output_tokens"] * 8
    assert (row["requestId"], int(row["chargedMillicredits"])) == (wire.request_id, charge)
    wait_until(lambda: account.balance() == START - charge, 10, "the balance is what is left")
    assert server.cli("reconcile") == {"ok": True, "findings": []}
