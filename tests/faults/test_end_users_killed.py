"""kill -9 while an end user's requests run: what they were charged is what their window has, and what is left is left."""

import pytest

from tests.support import web
from tests.support.servers import INJECT, RedisServer, Serve, sandbox_says, wait_until
from tests.support.team import ServiceApp, a_day

POINTS = {
    "in the middle of a stream": "proxy.gateway.answers.meter:StreamMeter.feed:after:8",
    "after settling, before the flush": "STORE.settle:after:1",
}
STORES = {
    "embedded": "billing.balances.embedded:EmbeddedBalances",
    "redis": "billing.balances.redis.store:RedisBalances",
}
USER = "Tollkeeper-User"


@pytest.mark.parametrize("point", list(POINTS))
@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_killed_the_window_has_what_was_charged_and_holds_nothing(
    kind: str, point: str, make_tollkeeper: Serve, request: pytest.FixtureRequest
) -> None:
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "1"}
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment |= {"TOLLKEEPER_REDIS__URL": redis.url}
    server = make_tollkeeper(**environment)
    mark, where = server.folder / "crashed", POINTS[point].replace("STORE", STORES[kind])
    flush = {"TOLLKEEPER_ADVANCED__JOURNAL_FLUSH_INTERVAL_MS": "600000"} if "flush" in point else {}
    server.start(PYTHONPATH=INJECT, TK_CRASH_AT=where, TK_CRASH_MARK=str(mark), **flush)
    account = server.account("1000")
    account.wait_balance(1_000_000)
    app = ServiceApp(server)
    app.rules(account.account_id, **a_day("0.100"))  # before its key was ever asked for: in force at once
    headers = {**account.headers, USER: "anna"}
    text = sandbox_says(output_tokens=12, chunk_interval_ms=20)
    body = {"model": "gpt-4o-mini", "max_tokens": 20, "stream": True, "messages": [{"role": "user", "content": text}]}
    try:
        with web.stream("POST", f"{server.v1}/chat/completions", json=body, headers=headers, timeout=20) as answer:
            b"".join(answer.iter_raw())
    except Exception:  # noqa: BLE001 - the connection ends however it ends
        pass
    wait_until(mark.exists, 10, "the crash")
    server.kill()
    server.start()
    wait_until(lambda: account.held() == 0, 20, "nothing is held")
    wait_until(lambda: len(server.cli("usage", account.account_id)["data"]) == 1, 20, "it is booked")
    (row,) = server.cli("usage", account.account_id)["data"]
    charged = int(row["chargedMillicredits"])
    assert row["endUser"] == "anna"
    assert 0 < charged < 100
    assert app.user(account.account_id, "anna")["budgets"][0]["usedMillicredits"] == str(charged)
    small = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}  # 5 at most

    def one() -> int:
        return web.post(f"{server.v1}/chat/completions", json=small, headers=headers, timeout=20).status_code

    codes = [one() for _ in range(25)]
    assert codes.count(200) == (100 - charged) // 5
    assert codes == sorted(codes)
