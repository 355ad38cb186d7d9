"""Nobody overspends: a thousand requests at once over four processes, and the cases in which peers serve for nothing."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.faults.cluster import accounts_apart
from tests.properties.proof.part import Figures
from tests.support import web
from tests.support.exact_k import REQUESTS, check_exactly
from tests.support.redis_groups import MASTERS, RedisCluster, started
from tests.support.servers import RedisServer, Sandbox, Tollkeeper, sandbox_says, start_sandbox, wait_until

PROCESSES = 4
EXACT = (37, 999, 0, 1, 500)
COST = 42_500
"""Millicredits of 1,000 tokens in and 4,000 out of gpt-4o, at 2.5 and 10."""
LEAST_SERVED = Fraction(9, 10)
"""Part of what a balance could pay for that is served however many ask at once: the first ones are held for by bytes."""
PROMPT = "whale " * 990
TOKENS_OUT = 4_000


@contextlib.contextmanager
def served(folder: Path, **environment: str) -> Iterator[tuple[Tollkeeper, Sandbox, RedisServer]]:
    """The product on one Redis over a simulator."""
    redis = RedisServer(folder / "redis")
    redis.start()
    try:
        with _served_at(redis.url, folder, environment) as (server, sandbox):
            yield server, sandbox, redis
    finally:
        redis.kill()


@contextlib.contextmanager
def served_on_cluster(folder: Path, **environment: str) -> Iterator[tuple[Tollkeeper, Sandbox, RedisCluster]]:
    """The product on three masters and their replicas over a simulator."""
    cluster = RedisCluster(folder / "cluster")
    with started(cluster), _served_at(cluster.url, folder, environment) as (server, sandbox):
        yield server, sandbox, cluster


@contextlib.contextmanager
def _served_at(redis_url: str, folder: Path, environment: dict[str, str]) -> Iterator[tuple[Tollkeeper, Sandbox]]:
    sandbox = start_sandbox()
    stores = {"TOLLKEEPER_REDIS__URL": redis_url, "TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url}
    server = Tollkeeper(folder, {**stores, **environment})
    try:
        yield server.start(), sandbox
    finally:
        server.kill()
        sandbox.stop()


def exactly_k(folder: Path, size: int, _seed: int) -> Figures:
    """Fire `REQUESTS` at once, for so many values of K."""
    with served(folder, TOLLKEEPER_LISTEN__WORKERS=str(PROCESSES)) as (server, sandbox, _):
        for affordable in EXACT[:size]:
            check_exactly(server, sandbox, server.account(), affordable)
    return _exactly(size)


def exactly_k_on_cluster(folder: Path, size: int, _seed: int) -> Figures:
    """Do the same on a cluster of six nodes, the accounts on one master after the other."""
    with served_on_cluster(folder, TOLLKEEPER_LISTEN__WORKERS=str(PROCESSES)) as (server, sandbox, cluster):
        for first in range(0, size, MASTERS):
            values = EXACT[first : min(first + MASTERS, size)]
            for account, affordable in zip(accounts_apart(server, cluster, 0, len(values)), values, strict=True):
                check_exactly(server, sandbox, account, affordable)
    return {**_exactly(size), "masters": min(size, MASTERS)}


def _exactly(size: int) -> Figures:
    return {"requests": REQUESTS * size, "processes": PROCESSES, "served beyond K": 0, "refused below K": 0}


class Case(NamedTuple):
    """So many requests over so many seconds on a balance in millicredits, with a maximum or none."""

    name: str
    balance: int
    requests: int
    seconds: float
    capped: bool


CASES = (
    Case("$0.10, 50 at once, no max_tokens", 100_000, 50, 0, capped=False),
    Case("$0.10, 50 over 2 s, no max_tokens", 100_000, 50, 2, capped=False),
    Case("$0.10, 50 over 2 s, max_tokens 4000", 100_000, 50, 2, capped=True),
    Case("$1.01, 200 over 2 s, max_tokens 4000", 1_010_000, 200, 2, capped=True),
    Case("$10.01, 500 at once, max_tokens 4000", 10_010_000, 500, 0, capped=True),
)
"""Those of which four gateways served 7 to 500 requests too many, down to -$11.24 (the code paths, against a Redis)."""


def peers_cases(folder: Path, size: int, _seed: int, **environment: str) -> Figures:
    """Play the cases; each figure is what was served and what is left of the balance, in millicredits."""
    found = {}
    with served(folder, TOLLKEEPER_LISTEN__WORKERS="2", **environment) as (server, sandbox, _):
        for case in CASES[:size]:
            found[case.name] = _played(server, sandbox, case)
    return found


def _played(server: Tollkeeper, sandbox: Sandbox, case: Case) -> str:
    account = server.account(f"{case.balance / 1_000:.3f}")
    account.wait_balance(case.balance)
    sandbox.clear()
    statuses = Counter(asyncio.run(_all(server.v1, account.headers, case)))
    assert set(statuses) <= {200, 402}, statuses
    wait_until(lambda: account.held() == 0, 30, "nothing is held")
    left, rows = account.balance(), account.usage()
    billed = sum(_bill(row["usage"]) for row in sandbox.record())
    assert left >= 0, f"{case.name}: {left}"
    assert left == case.balance - billed, (case.name, left, billed)
    assert len(rows) == statuses[200]
    if case.capped:
        affordable = case.balance // COST
        assert affordable * LEAST_SERVED <= statuses[200] <= affordable, (case.name, statuses)
    return f"{statuses[200]} of {case.requests} served, {left} left"


def _bill(usage: dict[str, Any]) -> int:
    return int(-(-(usage["prompt_tokens"] * 25 + usage["completion_tokens"] * 100) // 10))


async def _all(v1: str, headers: dict[str, str], case: Case) -> list[int]:
    said = sandbox_says(output_tokens=TOKENS_OUT, latency_ms=300)
    body: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT + said}]}
    content = json.dumps(body | ({"max_tokens": TOKENS_OUT} if case.capped else {}))
    limits = httpx.Limits(max_connections=case.requests)
    async with httpx.AsyncClient(verify=web.PLAIN, trust_env=False, limits=limits, timeout=120) as client:

        async def one(number: int) -> int:
            await asyncio.sleep(case.seconds * number / case.requests)
            sent = {**headers, "Content-Type": "application/json"}
            return (await client.post(f"{v1}/chat/completions", content=content, headers=sent)).status_code

        return await asyncio.gather(*(one(number) for number in range(case.requests)))
