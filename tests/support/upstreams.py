"""Several upstreams behind one Tollkeeper: sandboxes with keys of their own, and the `[[upstreams]]` that name them."""

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

import httpx

from tests.support import web
from tests.support.servers import Account, Sandbox, Tollkeeper, start_sandbox, wait_until

INPUT, OUTPUT = Decimal("0.15"), Decimal("0.6")
"""Prices of gpt-4o-mini, in millicredits a token."""


@dataclass
class Place:
    """A sandbox with a key of its own, and its entry in proxy.toml."""

    name: str
    key: str
    sandbox: Sandbox
    more: dict[str, Any] = field(default_factory=dict)

    def entry(self, folder: Path) -> str:
        """The lines of its entry; its key stands in a file."""
        path = folder / f"{self.name}.key"
        path.write_text(self.key)
        members = {"name": self.name, "base_url": self.sandbox.url, "api_key_file": str(path), **self.more}
        lines = [f"{name} = {_toml(value)}" for name, value in members.items()]
        return "\n".join(["[[upstreams]]", *lines, ""])

    def signal(self, number: int) -> None:
        self.sandbox.process.send_signal(number)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {_toml(one)}' for name, one in value.items()) + "}"
    return json.dumps(value)


@contextmanager
def places(*names: str) -> Iterator[list[Place]]:
    """Sandboxes of these names, each with a key that no other takes."""
    made = [
        Place(name, f"sk-canary-{name}-5d8b604", start_sandbox("--api-key", f"sk-canary-{name}-5d8b604"))
        for name in names
    ]
    yield made
    for place in made:
        place.signal(signal.SIGCONT)
        place.sandbox.stop()


def write(server: Tollkeeper, used: list[Place], **sections: dict[str, Any]) -> None:
    """Write the server's proxy.toml with these upstreams."""
    lines = [place.entry(server.folder) for place in used]
    for section, members in sections.items():
        lines += [f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in members.items()), ""]
    (server.folder / "proxy.toml").write_text("\n".join(lines))


@dataclass
class Reply:
    """What one request came to; `body` of a stream that broke off is what came."""

    status: int
    request_id: str
    body: str

    @property
    def whole(self) -> bool:
        return self.status == 200 and (
            self.body.rstrip().endswith("data: [DONE]") or self.body.lstrip().startswith("{")
        )


def ask(account: Account, *, stream: bool, **more: Any) -> Reply:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}
    try:
        with (
            web.client(timeout=60) as client,
            client.stream(
                "POST", f"{account.server.v1}/chat/completions", json=body, headers=account.headers
            ) as answer,
        ):
            came = ""
            try:
                for piece in answer.iter_text():
                    came += piece
            except httpx.HTTPError:
                pass
            return Reply(answer.status_code, answer.headers.get("x-request-id", ""), came)
    except httpx.HTTPError as error:
        return Reply(0, "", repr(error))


PAUSE_SECONDS = 0.02
"""Between two requests of a thread: what is tested are many at once, not a machine without a free moment."""


class Load:
    """Requests from several threads, every other one a stream, until it is told to stop."""

    def __init__(self, account: Account, threads: int = 8, **body: Any) -> None:
        self.account, self.body = account, body
        self.replies: list[Reply] = []
        self._going, self._threads = True, threads
        self._pool = ThreadPoolExecutor(threads)
        self._running = [self._pool.submit(self._run, number) for number in range(threads)]

    def _run(self, number: int) -> None:
        while self._going:
            number += 1
            self.replies.append(ask(self.account, stream=bool(number % 2), **self.body))
            time.sleep(PAUSE_SECONDS)

    def wait_for(self, more: int) -> None:
        """Until so many more requests came to their ends."""
        before = len(self.replies)
        wait_until(lambda: len(self.replies) >= before + more, 60, f"{more} more requests")

    def stop(self) -> list[Reply]:
        self._going = False
        for one in self._running:
            one.result(90)
        self._pool.shutdown()
        return self.replies


def served_by(used: list[Place]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Request id → (name, record) of everything that the upstreams say they served."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for place in used:
        for row in place.sandbox.record():
            if row.get("clientRequestId"):
                found.setdefault(row["clientRequestId"], []).append((place.name, row))
    return found


def price(usage: dict[str, Any], factor: Decimal = Decimal(1)) -> int:
    """What gpt-4o-mini costs for that usage, in millicredits."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    plain = usage["prompt_tokens"] - cached
    return ceil((plain * INPUT + cached * INPUT / 2 + usage["completion_tokens"] * OUTPUT) * factor)


def check_charges(account: Account, replies: list[Reply], used: list[Place]) -> list[dict[str, Any]]:
    """Every whole answer is charged once, by what the upstream that served it has in its record; returns the rows."""
    rows = {row["requestId"]: row for row in account.usage()}
    served, factors = served_by(used), {place.name: Decimal(place.more.get("price_adjustment", "1")) for place in used}
    for reply in replies:
        if not reply.whole:
            continue
        row = rows[reply.request_id]
        there = [
            record for name, record in served[reply.request_id] if name == row["upstream"] and record["status"] == 200
        ]
        (record,) = [one for one in there if one["outcome"] == "completed"]
        due = price(record["usage"], factors[row["upstream"]])
        assert (int(row["chargedMillicredits"]), int(row["costMillicredits"])) == (due, due), (row, record)
    charged = sum(int(row["chargedMillicredits"]) for row in rows.values())
    me = account.me()
    assert int(me["heldMillicredits"]) == 0
    assert account.server.cli("reconcile", code=None)["findings"] == [], "the books agree"
    assert 10_000_000_000 - int(me["balanceMillicredits"]) == charged
    return list(rows.values())


def check_owed(server: Tollkeeper) -> None:
    """The ledger owes each upstream what the rows that it served cost."""
    server.cli("drain", code=None)
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as database:
        owed = dict(
            database.execute(
                "SELECT credit_account, sum(amount_millicredits) FROM transfers WHERE kind = 'usage_cost' GROUP BY 1"
            )
        )
        spent = dict(database.execute("SELECT upstream, sum(cost_millicredits) FROM usage GROUP BY 1"))
    assert owed == {f"payable:{name or 'openai'}": amount for name, amount in spent.items() if amount}


def metric(server: Tollkeeper, name: str) -> dict[str, float]:
    """Samples of a series by its labels."""
    text = web.get(f"{server.url}/metrics", timeout=10).text
    return {
        line.split(" ")[0][len(name) :]: float(line.split(" ")[1])
        for line in text.splitlines()
        if line.startswith(name + "{")
    }
