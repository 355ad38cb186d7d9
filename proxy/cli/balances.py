"""`tollkeeper rebuild` and `drain`: the balance store; and reading it beside a running server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from billing.accounting.reconcile import ReadStore, traces
from billing.balances.embedded import EmbeddedBalances
from billing.balances.journal_file import journal_depth, lock_file, read_figures
from billing.balances.redis.store import RedisBalances
from billing.ledger.flush import drain
from billing.ledger.ledger import Ledger
from billing.money.amounts import display_credits
from billing.money.errors import StoreUnavailable
from config.settings import Settings
from proxy.cli.context import Add, Context, Refusal, Result
from proxy.customer_api.money_in import notice_queue
from proxy.server.jobs import store_reader

DRAIN_WAIT_SECONDS = 60


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    add(commands, "rebuild", _rebuild, "Rebuild the balance store from the ledger.")
    add(commands, "drain", _drain, "Flush all that is pending, then report.")


@contextlib.asynccontextmanager
async def open_reader(context: Context) -> AsyncIterator[ReadStore | None]:
    """Reader of the balance store, beside a running server; None while the embedded one has never been opened."""
    settings = context.settings
    if not settings.redis.url:
        theirs = Path(settings.embedded.path).exists() and not (await traces(context.database, 0)).redis  # noqa: ASYNC240 - a command does nothing else meanwhile
        yield store_reader(settings, None) if theirs else None
        return
    store = RedisBalances(
        settings.redis.url, context.ledger, settings.redis.timeout_seconds, settings.advanced.hold_lease_seconds * 1_000
    )
    await store.open()
    try:
        yield store_reader(settings, store)
    finally:
        await store.close()


async def _rebuild(context: Context) -> Result:
    settings = context.settings
    if settings.redis.url:
        async with _opened(
            RedisBalances(settings.redis.url, context.ledger, settings.redis.timeout_seconds, _lease_ms(settings))
        ) as store:
            await store.rebuild()
    elif (await traces(context.database, 0)).redis:
        raise Refusal(
            "the service of this ledger keeps balances in Redis, and redis.url is not set here: "
            "set TOLLKEEPER_REDIS__URL"
        )
    else:
        async with _opened(
            EmbeddedBalances(
                Path(settings.embedded.path), _telling(context), settings.advanced.embedded_timeout_seconds
            )
        ):
            pass  # opening it is rebuilding it: orphans settled, journal flushed, balances read from SQL
    accounts = await context.ledger.number_of_accounts()
    return {"ok": True, "accounts": accounts}, f"Rebuilt the balances of {accounts} accounts from the ledger.", 0


def _telling(context: Context) -> Ledger:
    """Return the ledger of a command that may book charges: whoever listens hears of them. Raises ConfigError."""
    return Ledger(context.database, notices=notice_queue(context.settings, context.database))


async def _drain(context: Context) -> Result:
    settings, ledger = context.settings, _telling(context)
    if settings.redis.url:
        store = RedisBalances(settings.redis.url, ledger, settings.redis.timeout_seconds, _lease_ms(settings))
        async with _opened(store):
            moved: tuple[int, int] = await drain(store, store, ledger)
            pending, _ = await store.depth()
            _, held, _ = await store.all_figures()
    else:
        moved, pending, held = await _drain_embedded(context, ledger)
    result = {
        "chargesFlushed": moved[0],
        "creditsApplied": moved[1],
        "pendingCharges": pending,
        "heldMillicredits": str(sum(held.values())),
        "accountsWithHolds": len([amount for amount in held.values() if amount]),
    }
    text = (
        f"Flushed {moved[0]} charges and applied {moved[1]} credits; "
        f"{pending} charges pending, {display_credits(sum(held.values()))} credits held."
    )
    return result, text, 1 if pending else 0


async def _drain_embedded(context: Context, ledger: Ledger) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Flush ourselves when no server runs; else wait while the running one does."""
    settings, path = context.settings, Path(context.settings.embedded.path)
    if not path.exists():  # noqa: ASYNC240 - a command does nothing else meanwhile
        return (0, 0), 0, {}
    if not _server_runs(path):
        store = EmbeddedBalances(path, ledger, settings.advanced.embedded_timeout_seconds)
        before = journal_depth(path)[0]
        async with _opened(store):
            moved = await drain(store, store, ledger)
        return (before + moved.charges, moved.credits), journal_depth(path)[0], {}
    charges = journal_depth(path)[0]
    credited = len(await context.ledger.outbox_pending(500))
    deadline = time.monotonic() + DRAIN_WAIT_SECONDS
    while (journal_depth(path)[0] or await context.ledger.outbox_pending(1)) and time.monotonic() < deadline:  # noqa: ASYNC110 - another process drains
        await asyncio.sleep(0.05)
    return (charges, credited), journal_depth(path)[0], read_figures(path)[1]


def _server_runs(path: Path) -> bool:
    try:
        lock_file(path).close()
    except StoreUnavailable:
        return True
    return False


async def account_figures(context: Context, account_id: str) -> tuple[int | None, int, int]:
    """Return (cached balance or None when the store has not seen the account, held, unflushed) in millicredits."""
    async with open_reader(context) as read:
        if read is None:
            return None, 0, 0
        figures, held, unflushed = await read([account_id])
    reading = figures.get(account_id)
    return (reading.balance if reading else None), held.get(account_id, 0), unflushed.get(account_id, 0)


@contextlib.asynccontextmanager
async def _opened(store: Any) -> AsyncIterator[Any]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def _lease_ms(settings: Settings) -> int:
    return settings.advanced.hold_lease_seconds * 1_000
