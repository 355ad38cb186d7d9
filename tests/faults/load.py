"""A steady load from threads, with what every client saw, to be compared with the simulator's own record."""

import random
import threading
from typing import Any, Self

import httpx

from tests.support.servers import Account, Sandbox


class Load:
    """Clients that call chat completions, half of them streamed, until stopped."""

    def __init__(self, account: Account, clients: int = 5, seed: int = 1) -> None:
        self.account, self.seed = account, seed
        self.statuses: dict[int | str, int] = {}
        self.answered: set[str] = set()
        self.bad: list[str] = []
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

    def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1_000 + number)
        with httpx.Client(timeout=20, headers=self.account.headers) as client:
            while not self._stop.is_set():
                self._one(client, chance)

    def _one(self, client: httpx.Client, chance: random.Random) -> None:
        content = f"question {chance.random()}"
        body = {
            "model": "gpt-4o-mini",
            "max_tokens": 30,
            "stream": chance.random() < 0.5,
            "messages": [{"role": "user", "content": content}],
        }
        outcome: int | str
        try:
            answer = client.post(f"{self.account.server.v1}/chat/completions", json=body)
            outcome = answer.status_code
        except httpx.HTTPError as error:
            answer, outcome = None, type(error).__name__
        with self._lock:
            self.statuses[outcome] = self.statuses.get(outcome, 0) + 1
            if answer is not None and outcome == 200:
                self.answered.add(answer.headers["x-request-id"])
            if answer is not None and outcome == 503:
                shape = answer.json()["error"]
                if not (shape["code"] and shape["message"] and answer.headers.get("retry-after")):
                    self.bad.append(answer.text)


def assert_books_match_the_record(account: Account, sandbox: Sandbox, load: Load, start: int) -> list[dict[str, Any]]:
    """Every answer a client got is charged once and right, nothing is charged that the simulator did not see."""
    rows = account.usage()
    by_id = {row["requestId"]: row for row in rows}
    assert len(by_id) == len(rows), "a request was charged twice"
    record = {row["clientRequestId"]: row for row in sandbox.record()}
    assert load.answered <= by_id.keys(), f"lost: {len(load.answered - by_id.keys())}"
    assert by_id.keys() <= record.keys(), "charged what was never served"
    for request_id, row in by_id.items():
        if row["usageSource"] == "upstream":
            usage = record[request_id]["usage"]
            assert row["chargedMillicredits"] == str(-(-(usage["prompt_tokens"] * 15 + usage["completion_tokens"] * 60) // 100))
    assert account.balance() == start - sum(int(row["chargedMillicredits"]) for row in rows)
    assert account.held() == 0
    assert account.server.cli("reconcile") == {"ok": True, "findings": []}
    assert load.bad == []
    return rows
