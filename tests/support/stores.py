"""Balance stores for tests, real ones, with a real SQL ledger beneath."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from billing.balances.embedded import EmbeddedBalances
from billing.balances.redis.store import RedisBalances
from billing.ledger.accounts import Accounts
from billing.ledger.ledger import Ledger
from billing.money.amounts import Millicredits
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry, HoldRequest, KeyLimits
from billing.money.usage_record import UsageRecord, encode_record
from billing.storage.database import Database, now_ms
from billing.storage.migrate import current_revision, newest_revision
from tests.support.schema import lay_sqlite
from tests.support.servers import within

_references = itertools.count()
NO_LIMITS = KeyLimits()


@dataclass
class Books:
    """A store and its ledger."""

    database: Database
    ledger: Ledger
    accounts: Accounts
    store: EmbeddedBalances | RedisBalances
    folder: Path
    redis_url: str

    async def account(self, millicredits: int = 0) -> str:
        """A new account with so much in the ledger, not yet seen by the store."""
        account_id = await self.accounts.create("test")
        if millicredits:
            await self.ledger.grant(
                account_id, Millicredits(millicredits), f"start {next(_references)}", "test", "start"
            )
        return account_id

    async def correct(self, account_id: str, millicredits: int) -> None:
        """An admin's adjustment, all the way into the store."""
        await self.ledger.grant(account_id, Millicredits(millicredits), f"fix {next(_references)}", "test", "fix")
        for row in await self.ledger.outbox_pending(1000):
            if row.account_id == account_id:
                await self.store.credit(account_id, row.sequence, row.delta)
        await self.ledger.outbox_applied([row.row_id for row in await self.ledger.outbox_pending(1000)])

    async def flush(self) -> int:
        """Everything pending into SQL."""
        moved = 0
        while entries := await self.store.pending(500):
            moved += await self.ledger.post(entries)
            await self.store.acknowledge(entries)
        return moved

    async def reopen(self) -> None:
        """The store as a new process would find it."""
        await self.store.close()
        self.store = make_store(self.folder, self.redis_url, self.ledger)
        await self.store.open()


def make_store(folder: Path, redis_url: str, ledger: Ledger) -> EmbeddedBalances | RedisBalances:
    if redis_url:
        return RedisBalances(redis_url, ledger, 2, 60_000)
    return EmbeddedBalances(folder / "embedded.db", ledger, 2)


async def open_books(folder: Path, redis_url: str, database_url: str = "") -> Books:
    """`database_url`: a migrated database, such as the fixture `fresh_postgres` lays; else SQLite in the folder."""
    if not database_url:
        lay_sqlite(folder / "ledger.db")
    database = Database(database_url or f"sqlite+aiosqlite:///{folder}/ledger.db", 3, 10)
    assert await current_revision(database) == newest_revision()
    ledger = Ledger(database)
    store = make_store(folder, redis_url, ledger)
    await store.open()
    return Books(database, ledger, Accounts(database), store, folder, redis_url)


async def close_books(books: Books) -> None:
    await books.store.close()
    await books.database.close()


def record(charge_id: str, account_id: str, cost: int = 1, created_at: int | None = None, end_user: str = "") -> bytes:
    """A usage record as the data path writes it: of now when not told otherwise, so in the day and month that run."""
    return encode_record(
        UsageRecord(
            charge_id=charge_id,
            account_id=account_id,
            key_id="key_1",
            endpoint="/v1/chat/completions",
            model="gpt-4o-mini",
            created_at=now_ms() if created_at is None else created_at,
            held_millicredits=1,
            cost_millicredits=cost,
            usage_source="upstream",
            outcome="completed",
            rates=msgspec.Raw(b"{}"),
            end_user=end_user,
        )
    )


def request(
    hold_id: str, account_id: str, amount: int, limits: KeyLimits = NO_LIMITS, key_id: str = "key_1", tokens: int = 10
) -> HoldRequest:
    """A hold request with a minute's lease."""
    return HoldRequest(
        hold_id, account_id, key_id, Millicredits(amount), tokens, 60_000, limits, record(hold_id, account_id)
    )


def charge(number: int, account: str, charged: int = 10, loss: int = 0) -> Entry:
    return Entry(str(number), charged, loss, record(f"c{number}", account, cost=3))


def store_of(books: Books) -> RedisBalances:
    """The store of books on Redis."""
    assert isinstance(books.store, RedisBalances)
    return books.store


def another(books: Books, lease_ms: int = 60_000) -> RedisBalances:
    """A second process's store on the same Redis and ledger."""
    return RedisBalances(books.redis_url, books.ledger, 2, lease_ms)


async def serves(store: RedisBalances, account: str) -> bool:
    try:
        await store.read(account)
    except StoreUnavailable:
        return False
    return True


async def until(check: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait without blocking the loop that the stores live in."""
    deadline = time.monotonic() + within(seconds)
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
