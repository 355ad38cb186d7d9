"""A steady load from threads, with what every client saw, to be compared with the simulator's own record."""

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx
import psutil

from billing.money.usage_record import REST_SUFFIX
from tests.support import web
from tests.support.processes import children
from tests.support.servers import Account, RedisServer, Sandbox, Serve, Tollkeeper, sandbox_says, wait_until

Strike = Callable[[random.Random], None]
"""Does something to a store, and returns once it serves again."""

MAX_TOKENS = 30
AIMED = 0.4
"""Part of the kills of processes that are as an answer begins."""
STORM_ENVIRONMENT = {
    "TOLLKEEPER_LISTEN__WORKERS": "2",
    "TOLLKEEPER_ADVANCED__HOLD_LEASE_SECONDS": "2",
    "TOLLKEEPER_LOG__ACCESS": "false",
}


def two_workers(make_tollkeeper: Serve, redis_url: str) -> Tollkeeper:
    """Serve with two workers on a Redis."""
    environment = {
        "TOLLKEEPER_REDIS__URL": redis_url,
        "TOLLKEEPER_LISTEN__WORKERS": "2",
        "TOLLKEEPER_LOG__ACCESS": "false",
    }
    return make_tollkeeper(**environment).start()


def account_with(server: Tollkeeper, start: int) -> Account:
    """Make an account with so many millicredits, which its store knows of."""
    made = server.account(str(start // 1_000))
    made.wait_balance(start)
    return made


def serves(account: Account) -> bool:
    """Tell whether a chat of an account's is answered."""
    return account.chat(max_tokens=2).status_code == 200


class Load:
    """Clients that call chat completions until stopped: whole answers, streams at full speed, and slow streams."""

    def __init__(self, account: Account, clients: int = 5, seed: int = 1) -> None:
        self.account, self.seed = account, seed
        self.statuses: dict[int | str, int] = {}
        self.shown: set[str] = set()
        """Requests of which a client got at least one byte of a paid answer."""
        self.streaming = 0
        """Streams whose first bytes are here, and whose end is not."""
        self.bad: list[str] = []
        self.at_first_byte: Callable[[], None] | None = None
        """Called once, as a client gets the first byte of a paid answer."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, number: int, seconds: float = 20) -> None:
        """Wait until so many more requests were answered whole."""
        wanted = self.statuses.get(200, 0) + number
        wait_until(
            lambda: self.statuses.get(200, 0) >= wanted, seconds, f"{number} more requests are served ({self.statuses})"
        )

    def wait_for_streams(self, number: int = 2) -> None:
        """Wait until so many streams are in flight."""
        wait_until(lambda: self.streaming >= number, 20, "streams are in flight")

    def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1_000 + number)
        with web.client(timeout=20, headers=self.account.headers) as client:
            while not self._stop.is_set():
                outcome: int | str
                try:
                    outcome = self._one(client, chance)
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                with self._lock:
                    self.statuses[outcome] = self.statuses.get(outcome, 0) + 1
                if outcome != 200:
                    self._stop.wait(0.02)

    def _one(self, client: httpx.Client, chance: random.Random) -> int:
        kind = chance.choice(("whole", "stream", "slow"))
        slow = sandbox_says(output_tokens=15, chunk_interval_ms=20) if kind == "slow" else ""
        messages = [{"role": "user", "content": f"question {chance.random()} {slow}"}]
        body = {"model": "gpt-4o-mini", "max_tokens": MAX_TOKENS, "stream": kind != "whole", "messages": messages}
        with client.stream("POST", f"{self.account.server.v1}/chat/completions", json=body) as answer:
            if answer.status_code == 200:
                self._read(answer)
            else:
                answer.read()
                error = answer.json()["error"]
                wrong = not (error["code"] and error["message"]) or (
                    answer.status_code == 503 and not answer.headers.get("retry-after")
                )
                if wrong:
                    self.bad.append(answer.text)
        return answer.status_code

    def _read(self, answer: httpx.Response) -> None:
        begun = False
        try:
            for part in answer.iter_raw():
                if part and not begun:
                    begun = True
                    struck, self.at_first_byte = self.at_first_byte, None
                    if struck is not None:
                        struck()
                    with self._lock:
                        self.shown.add(answer.headers["x-request-id"])
                        self.streaming += 1
        finally:
            if begun:
                with self._lock:
                    self.streaming -= 1


def price(usage: dict[str, Any]) -> int:
    """gpt-4o-mini: 0.15 and 0.60 USD per million tokens, up to the millicredit."""
    return int(-(-(usage["prompt_tokens"] * 15 + usage["completion_tokens"] * 60) // 100))


def assert_books_match_the_record(account: Account, sandbox: Sandbox, load: Load, start: int) -> list[dict[str, Any]]:
    """Every answer of which a client got a byte is charged once and right; nothing is charged that was not served."""
    wait_until(lambda: account.held() == 0, 30, "no hold is left")
    rows = account.usage()
    assert len({row["requestId"] for row in rows}) == len(rows), "a request was charged twice"
    by_id = _requests(rows)
    record = {row["clientRequestId"]: row for row in sandbox.record()}
    assert load.shown <= by_id.keys(), f"lost: {len(load.shown - by_id.keys())} of {len(load.shown)}"
    assert by_id.keys() <= record.keys(), "charged what was never served"
    for request_id, row in by_id.items():
        served, charged = record[request_id], int(row["chargedMillicredits"])
        if row["outcome"] == "insured":
            assert charged == 0, row
        elif row["usageSource"] == "upstream":
            assert charged == max(price(served["usage"]), row.get("orphaned", 0)), (row, served["usage"])
        else:  # what was shown, counted, or the last checkpoint: no less than its input costs, no more than what was held:
            # a token a byte at the price of a cache write (0.1875 USD per million), and the whole cap
            least = price(
                {"prompt_tokens": served["usage"]["prompt_tokens"] if served["usage"] else 0, "completion_tokens": 0}
            )
            assert least <= charged <= served["requestBodyBytes"] * 0.1875 + MAX_TOKENS * 0.6 + 1, (
                row,
                served["usage"],
            )
    assert account.balance() == start - sum(int(row["chargedMillicredits"]) for row in rows)
    assert account.server.cli("reconcile") == {"ok": True, "findings": []}
    assert load.bad == []
    return rows


def _requests(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by their request. One that was taken for dead and settled after all (ADR 13) is its last row, with the charge of
    both; `orphaned` is what the first has charged, which is never given back.
    """
    found = {row["requestId"]: row for row in rows}
    for rest_id in [name for name in found if name.endswith(REST_SUFFIX)]:
        rest, request_id = found.pop(rest_id), rest_id.removesuffix(REST_SUFFIX)
        before = int(found[request_id]["chargedMillicredits"])
        charged = str(before + int(rest["chargedMillicredits"]))
        found[request_id] = {**rest, "requestId": request_id, "chargedMillicredits": charged, "orphaned": before}
    return found


def restarts(redis: RedisServer) -> Strike:
    """Kill a Redis, and start it again with what it had on disk."""

    def strike(_chance: random.Random) -> None:
        redis.kill()
        redis.start()

    return strike


def _kill(process: psutil.Process, aimed: Load | None) -> None:
    """Kill a process, as a client of `aimed` gets the first byte of an answer."""

    def kill() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()

    if aimed is None:
        kill()
        return
    aimed.at_first_byte = kill
    wait_until(lambda: aimed.at_first_byte is None, 30, "an answer begins")


def storm(accounts: Sequence[Account], strike: Strike, kills: int, seed: int, strikes: float = 0.2) -> list[Load]:
    """Kill workers, jobs process and counter at random, so often, or `strike`, while clients call; wait until nothing is
    held. Who dies is drawn apart: what a seed does to the store stays, however many processes there are.

    `strikes`: part of the kills that is the store's; of the others `AIMED` are as an answer begins to be shown, when what is
    owed for it must have left the process. Returns a load for each account.
    """
    chance, aim, victim = (random.Random(seed + number) for number in range(3))
    server = accounts[0].server
    clients = max(2, 6 // len(accounts))
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(Load(account, clients, seed + place * 7)) for place, account in enumerate(accounts)
        ]
        for _ in range(kills):
            chance.choice(loads).more(chance.randrange(5, 60), 30)
            if chance.random() < strikes:
                strike(chance)
            else:
                found: list[psutil.Process] = wait_until(lambda: children(server), 5, "there are children")
                _kill(victim.choice(found), aim.choice(loads) if aim.random() < AIMED else None)
        for load in loads:
            load.more(50 // len(loads), 30)
    for account in accounts:
        wait_until(lambda: account.held() == 0, 30, "orphans are resolved")  # noqa: B023
    return loads
