"""Credits that expire: announced before, then taken through the ledger, exactly once, wherever the jobs run.

    look       the lots that are due, and what of them may go: not what running requests hold, nor what was charged and
               is not booked yet (the lot that expires first pays for it)
    hold       so much in the balance store, as a request does: from now on nobody spends it (I1)
    book       on the locked balance: what of the lot may go by the store's figures of now → transfer, lot and outbox in
               one transaction; its reference is the lot's and its number (I4)
    release    once the store has applied the outbox row: the balance is lower by what was held

Killed before it is booked, the hold ends by itself and nothing has expired. Killed after it, the outbox row is there:
the relay applies it, well within the lease of a hold on Redis, and before anybody is served where the store is
embedded. What requests held stays in its lot, and goes with a later run: a request that began in time is paid with
what there was.
"""

import asyncio
import contextlib
import logging
import secrets
from typing import NamedTuple

import msgspec
from sqlalchemy import select, update

from billing.ledger.credits.lots import COLUMNS, BookedBalance, LotRow, bring_up_to_date, expiring_of, take_expired
from billing.ledger.flush import Store, relay_once
from billing.ledger.ledger import Ledger
from billing.ledger.notices import Notice, NoticeQueue
from billing.ledger.transfers import move
from billing.money.amounts import Millicredits
from billing.money.credits.expiring import mark_of, may_expire
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import Held, HoldRequest, KeyLimits
from billing.money.postings import expiry_posting
from billing.money.usage_record import UsageRecord, encode_record
from billing.payments.purchase_store import change_purchase, lock_purchase
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts, transfers
from billing.storage.tables.credits import expiring_lots

log = logging.getLogger("tollkeeper.jobs")

BATCH = 500
LEASE_MS = 60_000
APPLY_SECONDS, LOOK_SECONDS = 5.0, 0.05
NO_LIMITS = KeyLimits()


class ExpiryResult(NamedTuple):
    """Lots that were announced, lots of which something expired, and the millicredits of that."""

    announced: int
    expired: int
    millicredits: int


class _Due(NamedTuple):
    """A hold on what is about to expire."""

    lot: LotRow
    hold_id: str
    amount: int


class _Booked(NamedTuple):
    """A hold whose credits are booked as expired, if the transaction came to its end: its transfer and outbox row."""

    account_id: str
    reference: str
    sequence: int


class Expiry:
    """Lets credits expire. Raises StoreUnavailable; what is half done then is finished by the next run."""

    def __init__(self, database: Database, ledger: Ledger, store: Store, notices: NoticeQueue) -> None:
        """`store`: the balances that requests are held from; `notices` take what is told."""
        self._db, self._ledger, self._store, self._notices = database, ledger, store, notices
        self._booked: dict[str, _Booked] = {}
        """Holds to release once the store has applied what was booked, or it is known that nothing was."""

    async def run(self, announce_ms: int) -> ExpiryResult:
        """Announce what expires within so many milliseconds, and take what has. Raises StoreUnavailable."""
        await self._finish()
        async with self._db.read() as connection:  # nobody's credits end early because this machine's clock is ahead
            now = await self._db.clock_ms(connection)
        announced = await self._announce(now, now + announce_ms) if announce_ms else 0
        due = await self._due(now)
        if due:
            await relay_once(self._store, self._ledger)  # of an account whose money is on its way nothing is taken
        amounts = [await self._expire(lot) for lot in due]
        taken = [amount for amount in amounts if amount]
        return ExpiryResult(announced, len(taken), sum(taken))

    async def _due(self, until: int) -> list[LotRow]:
        """Return open lots that expire until then, the first first."""
        query = select(*COLUMNS).where(expiring_lots.c.closed_at.is_(None), expiring_lots.c.expires_at <= until)
        query = query.order_by(expiring_lots.c.expires_at, expiring_lots.c.created_at).limit(BATCH)
        async with self._db.read() as connection:
            return [LotRow(*row) for row in await connection.execute(query)]

    # -- telling of it before ---------------------------------------------------------------------

    async def _announce(self, now: int, until: int) -> int:
        """Tell of what expires until then, once each; return of how many lots."""
        query = (
            select(expiring_lots.c.account_id)
            .join(accounts, accounts.c.id == expiring_lots.c.account_id)
            .where(expiring_lots.c.closed_at.is_(None), expiring_lots.c.announced_at.is_(None))
            .where(expiring_lots.c.expires_at <= until, expiring_lots.c.expires_at > now)
            .where(accounts.c.closed_at.is_(None))
        )
        async with self._db.read() as connection:
            found = list((await connection.execute(query.distinct().limit(BATCH))).scalars())
        told = 0
        for account_id in found:
            async with self._db.write() as connection:
                lots, _ = await bring_up_to_date(connection, account_id)
                soon = [lot for lot in lots if lot.announced_at is None and now < lot.expires_at <= until]
                for lot in soon:
                    same = (expiring_lots.c.kind == lot.kind, expiring_lots.c.reference_id == lot.reference_id)
                    await connection.execute(update(expiring_lots).where(*same).values(announced_at=now))
                await self._notices.write(connection, [_notice("credits.expiring", lot, 0) for lot in soon])
            told += len(soon)
        return told

    # -- taking it --------------------------------------------------------------------------------

    async def _expire(self, lot: LotRow) -> int:
        """Take what of a lot may go now; return the millicredits. Nothing while its account's money is on its way."""
        try:
            due = await self._hold(lot)
        except AccountNotFound:
            log.error("the store knows no account of the lot %s", lot.lot_id)  # noqa: TRY400 - no fault with a trace
            return 0
        if due is None:
            return 0
        try:
            amount = await self._book(due)
        finally:
            if due.hold_id not in self._booked:
                await self._release(due.hold_id, lot.account_id)
        await self._finish()
        return amount

    async def _hold(self, lot: LotRow) -> _Due | None:
        """Hold what may go of a lot, as far as it can be seen without a lock; None: nothing can be taken now."""
        lots = await expiring_of(self._db, lot.account_id)
        posted = await self._ledger.posted(lot.account_id)
        reading = await self._store.read(lot.account_id)
        if reading.sequence != posted.sequence:
            return None  # money has moved that the store has not been told of: with the next run
        promised = reading.held + posted.balance - reading.balance
        amount = min(
            may_expire([row.lot for row in lots], lot.lot_id, promised), max(0, reading.balance - reading.held)
        )
        if not amount:
            await self._close_used_up(lot)
            return None
        hold_id = f"expiry-{secrets.token_hex(10)}"
        request = HoldRequest(
            hold_id, lot.account_id, "", Millicredits(amount), 0, LEASE_MS, NO_LIMITS, _record(hold_id, lot, amount)
        )
        made = await self._store.hold(request)
        return _Due(lot, hold_id, amount) if isinstance(made, Held) else None

    async def _close_used_up(self, lot: LotRow) -> None:
        """Keep that a lot is used up, where it is: it is not looked at again."""
        async with self._db.write() as connection:
            await bring_up_to_date(connection, lot.account_id)

    async def _book(self, due: _Due) -> int:
        """Book what of the held credits expires; return the millicredits, 0 where that cannot be said now."""
        lot, now = due.lot, now_ms()
        async with self._db.write() as connection:
            # in the order in which claims lock them
            purchase = await lock_purchase(connection, lot.reference_id) if lot.kind == "purchase_bonus" else None
            lots, standing = await bring_up_to_date(connection, lot.account_id)
            mine = next((row for row in lots if row.lot_id == lot.lot_id), None)
            amount = await self._may_go(due, lots, standing)
            if mine is None or not amount:
                return 0
            reference = f"{mark_of(lot.lot_id)}:{mine.expirations + 1}"
            await move(connection, [expiry_posting(lot.account_id, amount, reference, now)])
            await take_expired(connection, mine, amount)
            if purchase is not None:
                await change_purchase(connection, purchase, {"bonus_expired": purchase.bonus_expired + amount})
            await self._notices.write(connection, [_notice("credits.expired", mine, amount)])
            # before the commit: should no answer come, it may be booked all the same
            self._booked[due.hold_id] = _Booked(lot.account_id, reference, standing.sequence + 1)
        return amount

    async def _may_go(self, due: _Due, lots: list[LotRow], standing: BookedBalance) -> int:
        """Return what of a hold may expire, by the store's figures of now; the account's balance is locked.

        Nobody spends what is held here, and nothing is booked meanwhile: what the store has charged beyond the ledger,
        and what it holds for others, is all that may still be taken of the lots.
        """
        reading = await self._store.read(due.lot.account_id)
        if reading.sequence != standing.sequence:
            return 0
        promised = reading.held - due.amount + standing.posted - reading.balance
        return min(due.amount, may_expire([row.lot for row in lots], due.lot.lot_id, promised))

    async def _finish(self) -> None:
        """Release the holds of what was booked, once the store has applied it; the rest waits for a later run."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + APPLY_SECONDS
        while self._booked and loop.time() < deadline:
            await relay_once(self._store, self._ledger)
            for hold_id, booked in list(self._booked.items()):
                applied = (await self._store.read(booked.account_id)).sequence >= booked.sequence
                if applied or not await self._is_booked(booked.reference):
                    await self._release(hold_id, booked.account_id)
                    del self._booked[hold_id]
            if self._booked:
                await asyncio.sleep(LOOK_SECONDS)

    async def _is_booked(self, reference: str) -> bool:
        query = select(transfers.c.id).where(transfers.c.kind == "expiry", transfers.c.reference_id == reference)
        async with self._db.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def _release(self, hold_id: str, account_id: str) -> None:
        with contextlib.suppress(StoreUnavailable):  # it is queued, or its lease ends
            await self._store.release(hold_id, account_id)


def _notice(kind: str, lot: LotRow, amount: int) -> Notice:
    """Say what expires, or has: `amount` millicredits, 0: all that is left."""
    name = f"expir{'ed' if amount else 'ing'}:{lot.kind[:1]}:{lot.reference_id}"
    data = {
        "source": "bonus" if lot.kind == "purchase_bonus" else "grant",
        "reference": lot.reference_id,
        "millicredits": str(amount or lot.remaining_millicredits),
        "expiresAtMs": lot.expires_at,
    }
    return Notice(f"{name}:{lot.expirations + 1}" if amount else name, lot.account_id, kind, data)


def _record(hold_id: str, lot: LotRow, amount: int) -> bytes:
    """Return a record for the hold, which every store wants; nothing is ever charged by it."""
    record = UsageRecord(
        charge_id=hold_id,
        account_id=lot.account_id,
        key_id="",
        endpoint="expiry",
        model="",
        created_at=now_ms(),
        held_millicredits=amount,
        cost_millicredits=0,
        usage_source="counted",
        outcome="completed",
        rates=msgspec.Raw(b"{}"),
    )
    return encode_record(record)
