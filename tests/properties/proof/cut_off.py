"""A machine that reaches nobody and whom nobody reaches, without a word, for longer than its leases, and then comes back."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from billing.money.usage_record import REST_SUFFIX
from tests.faults.load import Load, account_with, assert_books_match_the_record, serves
from tests.properties.proof.hosts import Stores, at, host, shared_stores
from tests.properties.proof.part import Figures
from tests.support import web
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import Account, Tollkeeper, sandbox_says, wait_until

START = 1_000_000_000
NEVER = 2**30
"""Pieces of data of which one meets a fault: none does, of so many."""
RESOLVED = 45
"""Seconds within which others resolve what it held: its lease, and the reaper's look."""
CLIENTS = 5
LONG_TOKENS = 600
LONG = sandbox_says(output_tokens=LONG_TOKENS, chunk_interval_ms=25)
"""An answer that goes on for as long as a cut: most of it arrives afterwards."""


def cut_off(folder: Path, size: int, seed: int) -> Figures:
    """Cut a machine off under load so often, while another serves on the same stores."""
    with shared_stores(folder) as stores, _behind(stores) as (ways, behind):
        with (
            host(folder / "other", stores.environment) as other,
            host(folder / "cut", {**stores.environment, **behind}) as cut,
        ):
            there = account_with(other, START)
            here = at(cut, account_with(other, START))
            longest, resolved = 0.0, 0
            with Load(here, CLIENTS, seed) as load, Load(there, 2, seed + 7) as beside, ThreadPoolExecutor() as pool:
                for _ in range(size):
                    load.more(20, 30)
                    long = pool.submit(_read_long, here, begun := threading.Event())
                    assert begun.wait(20), "a long answer has begun"
                    load.wait_for_streams()
                    for way in ways.values():
                        way.cut()
                    longest = max(longest, _while_cut(cut, here, at(other, here), beside))
                    for way in ways.values():
                        way.mend()
                    wait_until(lambda: serves(here), 30, "it serves again")
                    assert long.result(60).endswith("[DONE]\n\n"), (
                        f"a client that waits gets all: {long.result()[-300:]}"
                    )
                    load.more(20, 30)
            wait_until(lambda: here.held() == 0, 30, "nothing is held")
            rows = assert_books_match_the_record(here, stores.sandbox, load, START)
            assert_books_match_the_record(there, stores.sandbox, beside, START)
            resolved = sum(row["outcome"] == "orphaned" for row in rows)
            assert resolved, "it held nothing while it was cut off"
            assert load.statuses.get(503, 0), "nothing was refused while it was cut off"
            assert set(beside.statuses) == {200}, beside.statuses
    return {
        "requests": sum(sum(one.statuses.values()) for one in (load, beside)),
        "cuts": size,
        "refused meanwhile": load.statuses[503],
        "longest wait for a refusal": f"{longest:.1f} s",
        "resolved by others": resolved,
        "of them settled late, for the rest": sum(row["requestId"].endswith(REST_SUFFIX) for row in rows),
        "lost": 0,
        "charged twice": 0,
        "held at the end": 0,
    }


@contextlib.contextmanager
def _behind(stores: Stores) -> Iterator[tuple[dict[str, FaultProxy], Mapping[str, str]]]:
    """(The ways to the stores and to upstream, settings of who takes them.)"""
    targets = {"redis": stores.redis.port, "sql": str(stores.sql_socket), "upstream": stores.sandbox.port}
    with contextlib.ExitStack() as stack:
        ways = {name: stack.enter_context(FaultProxy(target, NEVER, 0)) for name, target in targets.items()}
        yield (
            ways,
            {
                "TOLLKEEPER_REDIS__URL": f"redis://127.0.0.1:{ways['redis'].port}/0",
                "TOLLKEEPER_DATABASE__URL": f"postgresql+asyncpg://postgres:@127.0.0.1:{ways['sql'].port}/postgres",
                "TOLLKEEPER_UPSTREAM__BASE_URL": f"http://127.0.0.1:{ways['upstream'].port}/v1",
            },
        )


def _read_long(account: Account, begun: threading.Event) -> str:
    """Read the long answer to its end, or to where it breaks off; `begun` is set at its first bytes."""
    body = {"model": "gpt-4o-mini", "max_tokens": LONG_TOKENS, "stream": True}
    body |= {"messages": [{"role": "user", "content": LONG}]}
    url, found = f"{account.server.v1}/chat/completions", ""
    with (
        contextlib.suppress(httpx.HTTPError),
        web.stream("POST", url, json=body, headers=account.headers, timeout=60) as answer,
    ):
        for text in answer.iter_text():
            found += text
            begun.set()
    return found


def _while_cut(cut: Tollkeeper, here: Account, seen: Account, beside: Load) -> float:
    """Wait until others have resolved what it held; it refuses, always and soon. Return the longest wait, in seconds."""
    longest = 0.0

    def resolved() -> bool:
        nonlocal longest
        began = time.monotonic()
        answer = here.chat(max_tokens=2)
        assert (answer.status_code, bool(answer.headers["retry-after"])) == (503, True), answer.text
        longest = max(longest, time.monotonic() - began)
        return seen.held() == 0

    wait_until(resolved, RESOLVED, "what it held is resolved by others")
    assert web.get(f"{cut.url}/readyz", timeout=10).status_code == 503
    beside.more(10, 20)
    return longest
