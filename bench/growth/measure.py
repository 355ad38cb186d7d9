"""What is measured of a ledger of some size: pages, views, reports, flushing. Each figure is this process's own."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.growth.data import DAY_MS, KEYS, MODELS, account_of
from billing.accounting.daily_finance import Finance, day_of
from billing.accounting.journal import Books
from billing.accounting.kept_books import keep_books
from billing.accounting.reconcile import check_ledger
from billing.accounting.statements import Statements
from billing.accounting.usage_summary import UsageSummaries
from billing.ledger.accounts import Accounts
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.customers.use import KeyUses
from billing.ledger.ledger import Ledger
from billing.ledger.usage_rows import UsageFilters
from billing.money.buckets import bucket_of
from billing.money.holds import Entry
from billing.money.usage_record import UsageRecord, encode_record
from billing.storage.database import Database
from proxy.server.supervisor import tune_process

CALLS = 120
FLUSHED = 16_000
FLUSH_BATCH = 500 * 16
"""As the flush takes from Redis: 500 charges of each of 16 buckets."""
PAGE = 50
BIG = account_of(0)


def per_call(database: Database) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What a page or an API call reads, by its name; account 0 has a tenth of all charges."""
    ledger, now = Ledger(database), time.time_ns() // 1_000_000
    summaries, finance = UsageSummaries(database), Finance(database)
    deep = (now - 45 * DAY_MS, "~")
    month = UsageFilters(since_ms=now - 30 * DAY_MS, until_ms=now)
    keys = KeyUses(database)
    accounts = Accounts(database)

    async def key_uses() -> None:
        await keys.of(await accounts.keys_of(BIG), now)

    async def me() -> None:
        await ledger.transfers_of(BIG, 10)
        await ledger.usage_of(BIG, 10)

    return {
        "me": me,
        "usage, first page": lambda: ledger.usage_of(BIG, PAGE),
        "usage, 45 days deep": lambda: ledger.usage_of(BIG, PAGE, UsageFilters(before=deep)),
        "usage, a model that was never used": lambda: ledger.usage_of(BIG, PAGE, UsageFilters(model="none")),
        "usage, a tag that was never used": lambda: ledger.usage_of(BIG, PAGE, UsageFilters(tag="none")),
        "ledger, first page": lambda: ledger.transfers_of(BIG, PAGE),
        "credits page: 30 days by day and model": lambda: summaries.sums(month, ("day", "model"), BIG),
        "credits page: keys": key_uses,
        "usage summary of 30 days": lambda: summaries.sums(month, ("day",), BIG),
        "what a key spent in all": lambda: ledger.keys_spent(["key_0_0"], 0),
        "ops page: models of 7 days": lambda: finance.top_models(now - 6 * DAY_MS, 10),
        "ops page: owed to customers": lambda: finance.owed(now),
        "account search, by id": lambda: AccountSearch(database).find(AccountFilters(account_of(7)), 20),
    }


def reports(database: Database) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What is computed over everything, by its name."""
    today = day_of(time.time_ns() // 1_000_000)
    month = (today.replace(day=1) - timedelta(days=1)).isoformat()[:7]
    return {
        "statement of a month": lambda: Statements(database).read(BIG, month),
        "books kept at the ends of two months, at first": lambda: keep_books(database, time.time_ns() // 1_000_000),
        "books journal, 30 days": lambda: Books(database).journal(today - timedelta(days=30), today),
        "books journal, a day": lambda: Books(database).journal(today - timedelta(days=1), today - timedelta(days=1)),
        "finance of a day": lambda: Finance(database).compute(today - timedelta(days=1)),
        "reconcile": lambda: check_ledger(database),
    }


def cpu_seconds(folder: str) -> float:
    """Return the CPU time so far of this process and of the PostgreSQL server that serves from a folder."""
    found = time.process_time()
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "postgres" and any(folder in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += sum(sum(one.cpu_times()[:2]) for one in (process, *process.children()))
    return found


async def timed(call: Callable[[], Awaitable[Any]], folder: str, calls: int = CALLS) -> dict[str, float]:
    """Return milliseconds of CPU time a call, of the median call, and of the one in a hundred that takes longest.

    CPU time here and in the database is what does not depend on who else is busy on this machine.
    """
    taken = []
    await call()
    busy = cpu_seconds(folder)
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1_000)
    taken.sort()
    busy = (cpu_seconds(folder) - busy) * 1_000 / calls
    return {"CPU": busy, "p50": taken[len(taken) // 2], "p99": taken[min(len(taken) - 1, len(taken) * 99 // 100)]}


async def once(call: Callable[[], Awaitable[Any]], folder: str) -> dict[str, float]:
    """Return seconds, those of CPU time here and in the database, and the peak of this process's memory in MB, the program itself among it."""
    began, busy = time.perf_counter(), cpu_seconds(folder)
    await call()
    seconds, busy = time.perf_counter() - began, cpu_seconds(folder) - busy
    # not the peak of getrusage, which is also of who started this process
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return {"CPU s": busy, "seconds": seconds, "MB": int(peak) / 1_024}


def in_a_process_of_its_own(url: str, folder: str, name: str) -> dict[str, float]:
    """Compute one report, in a process whose memory is nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_report, url, folder, name).result()


def _report(url: str, folder: str, name: str) -> dict[str, float]:
    async def run() -> dict[str, float]:
        database = Database(url, 2, 5, 3_600)
        try:
            return await once(reports(database)[name], folder)
        finally:
            await database.close()

    return asyncio.run(run())


def new_charges(number: int, accounts: int) -> list[Entry]:
    """Make so many charges of now, of accounts in turn, as the data path writes them."""
    now, entries = time.time_ns() // 1_000_000, []
    for one in range(number):
        account = account_of(one * 7919 % accounts)
        made = UsageRecord(
            charge_id=f"flushed_{one}",
            account_id=account,
            key_id=f"key_{one * 7919 % accounts}_{one % KEYS}",
            endpoint="/v1/chat/completions",
            model=MODELS[one % len(MODELS)],
            created_at=now,
            held_millicredits=2_000,
            cost_millicredits=900,
            usage_source="upstream",
            outcome="completed",
            rates=msgspec.Raw(b'{"input":"0.15","output":"0.6","markup":"1.2"}'),
            input_tokens=900,
            output_tokens=100,
        )
        entries.append(Entry(str(one), 1_000, 0, encode_record(made), bucket_of(account)))
    return entries


async def flush(database: Database, accounts: int, folder: str) -> dict[str, float]:
    """Return charges booked a second, and microseconds of CPU time of one, here and in the database."""
    ledger, entries = Ledger(database), new_charges(FLUSHED, accounts)
    tune_process()  # as those that serve are
    began, busy = time.perf_counter(), cpu_seconds(folder)
    for start in range(0, FLUSHED, FLUSH_BATCH):
        await ledger.post_current(entries[start : start + FLUSH_BATCH])
    seconds = time.perf_counter() - began
    return {"charges/s": FLUSHED / seconds, "CPU µs": (cpu_seconds(folder) - busy) / FLUSHED * 1e6}
