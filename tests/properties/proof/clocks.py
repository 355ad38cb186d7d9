"""Machines whose wall clocks are an hour ahead, an hour behind, and jumping: money, leases, limits, webhooks, calls."""

import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from billing.payments.stripe.signatures import sign
from tests.faults.load import Load, account_with, assert_books_match_the_record, price
from tests.properties.proof.hosts import LEASE_SECONDS, Stores, at, host, shared_stores
from tests.properties.proof.part import Figures
from tests.support import web
from tests.support.clocks import Clock
from tests.support.exact_k import REQUESTS, check_exactly
from tests.support.live import SECRET, start_bank, stripe_environment
from tests.support.servers import Account, Sandbox, Tollkeeper, sandbox_says, wait_until
from tests.support.voice import call_of, calls

START = 1_000_000_000
HOUR = 3_600
AHEAD, BEHIND, JUMPING = range(3)
K = 37
A_MINUTE = 4
LEASES = 2
"""Leases for which a stream lives, while clocks jump."""
STREAM_TOKENS = 600
RESOLVED = 40
"""Seconds within which others resolve what a machine held that died: its lease and the reaper's look, not an hour."""


def jumping_clocks(folder: Path, size: int, seed: int) -> Figures:
    """Serve under load on three machines while the clock of one jumps so often, then lose each of them."""
    with _three(folder) as (hosts, clocks, stores):
        first, sandbox = hosts[AHEAD], stores.sandbox
        check_exactly(first, sandbox, first.account(), K, hosts[1:])
        account = account_with(first, START)
        in_calls = [call_of(at(one, account_with(first, START))) for one in hosts]
        loads = _jumps(hosts, clocks[JUMPING], account, size, seed)
        rows = [assert_books_match_the_record(account, sandbox, load, START) for load in loads][0]
        assert all(set(load.statuses) == {200} for load in loads), "somebody was refused because of a clock"
        assert {row["outcome"] for row in rows} == {"completed"}, "what lived was resolved by somebody else"
        assert not any("orphaned hold" in one.log() for one in hosts)
        assert all(calls(sandbox)[one]["running"] for one in in_calls), "another machine hung up a call"
        _limit_by_the_minute(hosts)
        clocks[JUMPING].move(0)
        clocks[JUMPING].wait_shown(hosts[JUMPING])
        _webhooks(hosts, clocks)
        for place in (AHEAD, BEHIND, JUMPING):
            _loses(hosts, clocks, place, sandbox)
        assert first.cli("reconcile") == {"ok": True, "findings": []}
    return {
        "requests": sum(sum(load.statuses.values()) for load in loads) + REQUESTS,
        "jumps of an hour or two": size,
        "served beyond K": 0,
        "lost": 0,
        "charged twice": 0,
        "taken from who lived": 0,
        "machines lost": len(hosts),
        "kept for an hour": 0,
    }


@contextlib.contextmanager
def _three(folder: Path) -> Iterator[tuple[list[Tollkeeper], list[Clock], Stores]]:
    with contextlib.ExitStack() as stack:
        stores = stack.enter_context(shared_stores(folder))
        bank, process = start_bank()
        stack.callback(process.wait)
        stack.callback(process.kill)
        environment = {**stores.environment, **stripe_environment(bank)}
        clocks = [Clock(folder / f"clock{place}", by) for place, by in enumerate((HOUR, -HOUR, 0))]
        hosts = [
            stack.enter_context(host(folder / f"host{place}", environment, **clock.environment))
            for place, clock in enumerate(clocks)
        ]
        for one, clock in zip(hosts, clocks, strict=True):
            clock.wait_shown(one)
        yield hosts, clocks, stores


def _jumps(hosts: Sequence[Tollkeeper], clock: Clock, account: Account, size: int, seed: int) -> list[Load]:
    """Move a clock so often under load, while streams live on each machine for longer than their leases."""
    chance = random.Random(seed)
    every_ms = LEASES * LEASE_SECONDS * 1_000 // STREAM_TOKENS
    long = sandbox_says(output_tokens=STREAM_TOKENS, chunk_interval_ms=every_ms)
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(Load(at(one, account), 2, seed + place * 7)) for place, one in enumerate(hosts)]
        pool = stack.enter_context(ThreadPoolExecutor())
        streams = []
        for _ in range(size):
            streams += [
                pool.submit(at(one, account).chat, long, stream=True, max_tokens=STREAM_TOKENS) for one in hosts
            ]
            clock.move(chance.choice([by for by in (-HOUR, 0, HOUR) if by != clock.seconds]))
            clock.wait_shown(hosts[JUMPING])
            for load in loads:
                load.more(10, 30)
        answers = [one.result(60) for one in streams]
        assert {answer.status_code for answer in answers} == {200}, [answer.text[:200] for answer in answers]
    wait_until(lambda: account.held() == 0, 30, "nothing is held")
    return loads


def _loses(hosts: Sequence[Tollkeeper], clocks: Sequence[Clock], place: int, sandbox: Sandbox) -> None:
    """Kill a machine in the middle of a stream: the others resolve what it held, once; then it comes back."""
    lost, other = hosts[place], hosts[place - 1]
    account = account_with(other, START)
    body = {
        "model": "gpt-4o-mini",
        "stream": True,
        "max_tokens": STREAM_TOKENS,
        "messages": [{"role": "user", "content": sandbox_says(output_tokens=STREAM_TOKENS, chunk_interval_ms=50)}],
    }
    url = f"{lost.v1}/chat/completions"
    with (
        contextlib.suppress(httpx.HTTPError),
        web.stream("POST", url, json=body, headers=account.headers, timeout=30) as answer,
    ):
        for _ in answer.iter_raw():
            lost.kill()
    wait_until(lambda: account.held() == 0, RESOLVED, "what a lost machine held is resolved")
    (row,) = account.usage()
    (served,) = [one for one in sandbox.record() if one["clientRequestId"] == row["requestId"]]
    least = price({"prompt_tokens": served["usage"]["prompt_tokens"] if served["usage"] else 1, "completion_tokens": 0})
    assert (row["outcome"], least <= int(row["chargedMillicredits"])) == ("orphaned", True), row
    assert account.balance() == START - int(row["chargedMillicredits"])
    lost.start(**clocks[place].environment)
    clocks[place].wait_shown(lost)


def _limit_by_the_minute(hosts: Sequence[Tollkeeper]) -> None:
    """Ask more often than a key may, at each machine in turn: it is one limit, by Redis' clock."""
    account = account_with(hosts[AHEAD], START)
    made = hosts[AHEAD].cli("key", "create", account.account_id, "--rpm", str(A_MINUTE))
    began = time.monotonic()
    answers = [
        Account(hosts[number % len(hosts)], account.account_id, made["apiKey"]).chat(max_tokens=2)
        for number in range(3 * A_MINUTE)
    ]
    served = sum(answer.status_code == 200 for answer in answers)
    came_back = int((time.monotonic() - began) * A_MINUTE / 60) + 1
    assert A_MINUTE <= served <= A_MINUTE + came_back, [answer.status_code for answer in answers]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert all(0 < int(answer.headers["retry-after"]) <= 60 for answer in refused)


def _webhooks(hosts: Sequence[Tollkeeper], clocks: Sequence[Clock]) -> None:
    """Deliver an event that is signed now: who takes it for one of another hour says so, and keeps nothing."""
    for place, (one, clock) in enumerate(zip(hosts, clocks, strict=True)):
        event = {"id": f"evt_{place}", "object": "event", "type": "invoice.paid", "livemode": False}
        body = json.dumps({**event, "created": int(time.time())}).encode()
        headers = {"stripe-signature": sign(body, SECRET, int(time.time()))}
        answer = web.post(f"{one.url}/webhooks/stripe", content=body, headers=headers, timeout=10)
        if clock.seconds:
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "signature_time"), answer.text
            assert "seconds ago" in one.log()
        else:
            assert answer.status_code == 200, answer.text
