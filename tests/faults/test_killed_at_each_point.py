"""kill -9 of the proxy at each named point: against the simulator's own record, every answer that could reach a client is
charged exactly once, none twice, holds end at zero, the books agree."""

from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.servers import INJECT, Account, RedisServer, Sandbox, Serve, Tollkeeper, sandbox_says, wait_until

START = 1_000_000
STORES = {
    "embedded": "billing.balances.embedded:EmbeddedBalances",
    "redis": "billing.balances.redis.store:RedisBalances",
}

# point → (where, flush interval). STORE stands for the balance store's class.
POINTS = {
    "after the hold": "STORE.hold:after:1",
    "after upstream's headers": "proxy.gateway.upstream.pool:UpstreamPool.send:after:1",
    "with the first bytes of a stream": "proxy.server.transport.client_connection:ClientConnection.write_now:after:1",
    "in the middle of a stream": "proxy.gateway.answers.meter:StreamMeter.feed:after:8",
    "before settling": "STORE.settle:before:1",
    "after settling, before the flush": "STORE.settle:after:1",
    "between a charge's rows and the sums of its day": "billing.storage.bulk:add_to:before:1",
    "between SQL commit and acknowledgement": "billing.ledger.ledger:Ledger.post_current:after:1",
}


class Crashing:
    """A Tollkeeper that dies at a point, once, and what brings it back."""

    def __init__(self, server: Tollkeeper, kind: str, point: str) -> None:
        self.server, self.kind, self.point = server, kind, point
        self.mark = server.folder / "crashed"

    def start(self) -> Account:
        where = POINTS[self.point].replace("STORE", STORES[self.kind])
        flush = {"TOLLKEEPER_ADVANCED__JOURNAL_FLUSH_INTERVAL_MS": "600000"} if "before the flush" in self.point else {}
        self.server.start(PYTHONPATH=INJECT, TK_CRASH_AT=where, TK_CRASH_MARK=str(self.mark), **flush)
        account = self.server.account(str(START // 1_000))
        account.wait_balance(START)
        return account

    def wait_for_the_crash(self) -> None:
        wait_until(self.mark.exists, 10, f"the crash {self.point}")

    def come_back(self) -> None:
        """Embedded: someone starts it again. Redis: the supervisor does; we restart it all the same, without the injection."""
        self.server.kill()
        self.server.start()


@pytest.fixture(params=["embedded", "redis"])
def server(request: pytest.FixtureRequest, make_tollkeeper: Serve) -> tuple[Tollkeeper, str]:
    environment = {"TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "1"}
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment |= {"TOLLKEEPER_REDIS__URL": redis.url}
    return make_tollkeeper(**environment), request.param


def read_until_it_breaks(account: Account, *, stream: bool) -> tuple[str | None, bytes]:
    """(request id if a head arrived, body bytes that arrived) of one request."""
    text = sandbox_says(output_tokens=30, chunk_interval_ms=20)  # a busy machine reads several at once
    body = {"model": "gpt-4o-mini", "max_tokens": 50, "stream": stream, "messages": [{"role": "user", "content": text}]}
    got, request_id = b"", None
    try:
        with web.stream(
            "POST", f"{account.server.v1}/chat/completions", json=body, headers=account.headers, timeout=20
        ) as answer:
            request_id = answer.headers.get("x-request-id")
            for part in answer.iter_raw():
                got += part
    except httpx.HTTPError:
        pass
    return request_id, got


def price(usage: dict[str, Any]) -> int:
    """gpt-4o-mini: 0.15 and 0.60 USD per million tokens, up to the millicredit."""
    return int(-(-(usage["prompt_tokens"] * 15 + usage["completion_tokens"] * 60) // 100))


@pytest.mark.parametrize("point", POINTS)
def test_killed(server: tuple[Tollkeeper, str], sandbox: Sandbox, point: str) -> None:
    crashing = Crashing(*server, point)
    account = crashing.start()
    stream = point.endswith("of a stream")
    _, got = read_until_it_breaks(account, stream=stream)
    crashing.wait_for_the_crash()
    crashing.come_back()
    wait_until(lambda: account.held() == 0, 15, "no hold is left")
    rows = account.usage()
    served = sandbox.record()
    assert len(rows) <= len(served) <= 1
    charged = sum(int(row["chargedMillicredits"]) for row in rows)
    assert account.balance() == START - charged
    assert crashing.server.cli("reconcile")["ok"]
    if point == "after the hold":
        assert served == []
        assert rows == []
    if got:
        assert len(rows) == 1
    if point.startswith(("after settling", "between")):
        assert rows[0]["chargedMillicredits"] == str(price(served[0]["usage"]))
        assert rows[0]["usageSource"] == "upstream"
    if point == "in the middle of a stream":
        assert got.count(b"data:") >= 2
        assert (rows[0]["usageSource"], rows[0]["outcome"]) == ("bounded", "orphaned")
        # at least what the input costs, at most what was held for it (bytes, cache-write price) and 50 tokens of output
        assert served[0]["usage"]["prompt_tokens"] * 15 / 100 <= charged <= 400 * 0.1875 + 50 * 0.6
    # the service goes on, and the same books hold the next request
    answer = account.chat(max_tokens=5)
    assert answer.status_code == 200
    wait_until(lambda: len(account.usage()) == len(rows) + 1, 5, "the next request is booked")
    assert crashing.server.cli("reconcile")["ok"]


@pytest.mark.parametrize(
    "point",
    ["proxy.gateway.answers.meter:StreamMeter.feed:before:9", "proxy.gateway.settlement:decide_settlement:before:1"],
)
def test_a_fault_of_ours_in_a_stream_charges_what_was_shown(
    make_tollkeeper: Serve, sandbox: Sandbox, point: str
) -> None:
    """Not a crash: the process lives on, the client's stream breaks off, the hold does not stay, and no output was free."""
    server = make_tollkeeper()
    mark = server.folder / "raised"
    server.start(PYTHONPATH=INJECT, TK_CRASH_AT=point, TK_CRASH_MARK=str(mark), TK_CRASH_HOW="raise")
    account = server.account(str(START // 1_000))
    account.wait_balance(START)
    _, got = read_until_it_breaks(account, stream=True)
    wait_until(mark.exists, 10, "the fault")
    wait_until(lambda: account.held() == 0 and account.usage(), 10, "the hold is resolved")
    row, pieces = account.usage()[0], got.count(b'"content":"') - 1
    assert pieces >= 5
    assert (row["usageSource"], row["outcome"]) == ("bounded", "orphaned")
    assert row["outputTokens"] >= pieces
    charged = int(row["chargedMillicredits"])
    assert charged >= price({**sandbox.record()[0]["usage"], "completion_tokens": pieces})
    assert account.balance() == START - charged
    assert server.cli("reconcile")["ok"]
