"""The daily charge of vector stores: asked for, decided and charged by one process, once an account, day and upstream.

    ask       each store is asked about every hour; whatever is said of one meanwhile is written down as well
    decide    when a day (UTC) is over: a row in SQL says what each account owes, with the usage row that books it
    charge    hold what is available → is it in the ledger already? → settle: the customer pays what it has, the rest is
              the platform's loss (I2)
    close     the row is closed when the charge is seen in the ledger, and whoever could not pay is told

The row's charge id is hold id and charge id. Killed anywhere, the row is open still, and the next process goes on: a
hold without a checkpoint is released by the store, a charge that was settled is found in the ledger before another one
is made. For that the row is claimed first, and nobody settles who has had it for longer than half of the claim; then
its hold is made, and what was settled before that has left the store's journal once all that is in there is younger
(I4).
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import httpx
import msgspec

from billing.ledger.flush import Store, repeat
from billing.ledger.notices import NoticeQueue
from billing.ledger.objects.vector_stores import DAY_MS, OwedDay, PaidDay, StoredDay
from billing.money.amounts import Millicredits
from billing.money.catalogue.models import STORAGE
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import Held, HoldRequest
from billing.money.pricing import PriceBook
from billing.money.usage_record import UsageRecord, encode_record
from billing.storage.database import now_ms
from proxy.gateway.admission import NO_LIMITS, is_free
from proxy.gateway.services import Services
from proxy.gateway.vector_stores.sizes import size_in
from proxy.gateway.vector_stores.storage_price import day_charge, is_priced, stored_usage

log = logging.getLogger("tollkeeper.storage")

STEP_SECONDS = 5.0
ASK_MS = 3_600_000
"""Time after which a store is asked about that nobody looked at."""
ASK_AT_ONCE = 40
AGAIN_MS = 60_000
"""Time after which a store of which upstream said nothing is asked about again."""
CLOSE_MS = 600_000
"""Time after a day until it is decided: what was seen at its end is written down by then."""
ACCOUNTS, DAYS_AT_ONCE, CHARGES_AT_ONCE = 200, 500, 8
LOW_DAYS = 7
"""Days of storage that a balance should last for; below, `balance.low` is told."""
HOLD_TRIES = 5
CLOCKS_APART_MS = 1_000
CLAIM_MS = 20_000
"""Time for which one process alone may charge a day."""
FLUSH_SECONDS, QUEUED_SECONDS = 8.0, 60.0
LOOK_SECONDS = 0.05
QUIET_SECONDS = 3_600.0
"""Time between two lines that say that storage has no price."""
ENDPOINT = "/v1/vector_stores"


class StorageCharge:
    """The one that charges for storage; run it where the jobs run."""

    def __init__(self, services: Services, store: Store, notices: NoticeQueue) -> None:
        """`store`: of balances, with its journal."""
        self._services, self._store, self._notices = services, store, notices
        self._objects, self._stores = services.tenants.objects, services.tenants.objects.stores
        self._decided_until = -1
        self._quiet_until = 0.0
        self._not_before: dict[str, float] = {}
        """Charge ids that were settled here → when they may be tried again, should that be lost (monotonic seconds)."""
        self._slots = asyncio.Semaphore(CHARGES_AT_ONCE)

    async def step(self) -> int:
        """Do what is due; return how much was done. Raises StoreUnavailable."""
        return await self.ask() + await self.decide() + await self.charge()

    async def ask(self) -> int:
        """Ask upstream what stores take that nobody looked at for an hour; return how many answered.

        One that does not answer is asked again later, and keeps nobody's from being asked about.
        """
        answered = 0
        ids = await self._stores.unseen_since(now_ms() - ASK_MS, ASK_AT_ONCE)
        kept_at, away = await self._objects.kept_at(ids), set[str]()
        for store_id in ids:
            where = kept_at.get(store_id, "")
            if where in away:
                await self._stores.ask_again(store_id, now_ms() - ASK_MS + AGAIN_MS)
                continue
            try:
                answer = await self._services.upstreams.client(where).get(f"/vector_stores/{store_id}")
                found = answer.json() if answer.status_code == httpx.codes.OK else {}
            except (httpx.HTTPError, ValueError) as error:
                log.warning("upstream does not say what the vector store %s takes (%s)", store_id, type(error).__name__)
                away.add(where)
                await self._stores.ask_again(store_id, now_ms() - ASK_MS + AGAIN_MS)
                continue
            if answer.status_code == httpx.codes.NOT_FOUND:
                await self._objects.forget(store_id)
            elif (size := size_in(found) if isinstance(found, dict) else None) is not None:
                await self._stores.saw([size])
            else:
                await self._stores.ask_again(store_id, now_ms() - ASK_MS + AGAIN_MS)
                continue
            answered += 1
        return answered

    async def decide(self) -> int:
        """Decide what the days that are over cost; return how many were decided."""
        until = (now_ms() - CLOSE_MS) // DAY_MS - 1
        if until <= self._decided_until:
            return 0
        days = await self._stores.undecided(until, ACCOUNTS)
        if not days:
            self._decided_until = until
            return 0
        if not is_priced(self._services.prices):
            if time.monotonic() < self._quiet_until:
                return 0
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.error("vector stores are stored, and the rate card has no price for storage: their days stay open")
            return 0
        homes = await self._stores.homes_of({day.account_id for day in days})
        await self._stores.decide([self._owed(day, homes.get(day.account_id, day.account_id)) for day in days])
        return len(days)

    def _owed(self, day: StoredDay, home_id: str) -> OwedDay:
        """Price a day and make its usage row. Nothing stored owes nothing. `home_id`: of a wallet, whose it is."""
        date = datetime.fromtimestamp(day.day * DAY_MS / 1_000, UTC).date().isoformat()
        charge_id, now = charge_id_of(date, day), now_ms()
        if not day.bytes:
            return OwedDay(day.account_id, day.day, charge_id, 0, 0, "", now)
        charge = day_charge(self._prices_at(day.upstream, home_id), day.bytes)
        free = is_free(self._services.settings, home_id)
        due = 0 if free else charge.amount
        record = UsageRecord(
            charge_id=charge_id,
            account_id=day.account_id,
            key_id="",
            endpoint=ENDPOINT,
            model=STORAGE,
            created_at=now,
            held_millicredits=due,
            cost_millicredits=charge.cost,
            usage_source="upstream",
            outcome="completed",
            rates=charge.rates,
            free=free,
            tool_calls=msgspec.json.encode(dict(stored_usage(day.bytes).calls)).decode(),
            upstream=day.upstream,
        )
        row = encode_record(record).decode()
        return OwedDay(day.account_id, day.day, charge_id, day.bytes, due, row, now, day.upstream)

    def _prices_at(self, upstream: str, account_id: str) -> PriceBook:
        """Prices of the upstream that keeps it; the default one's where it is gone, or its own card has none."""
        services, terms = self._services, self._services.terms_by.get(upstream)
        book = services.sold_to(account_id, terms, now_ms()).prices if terms is not None else None
        return book if book is not None and is_priced(book) else services.prices_of(account_id)

    # -- charging ---------------------------------------------------------------------------------

    async def charge(self) -> int:
        """Charge and close the days that are open; return how many were charged or closed."""
        done, after = 0, (0, "")
        while days := await self._stores.open(DAYS_AT_ONCE, after):
            after = (days[-1].created_at, days[-1].charge_id)
            booked = await self._stores.booked(days)
            for paid in booked:
                done += await self._close(paid)
            known = {paid.owed.charge_id for paid in booked}
            left = [self._charge_one(day) for day in days if day.charge_id not in known]
            found = await asyncio.gather(*left, return_exceptions=True)  # all to their ends: none is left half done
            for one in found:
                if isinstance(one, BaseException):
                    raise one
            done += sum(one for one in found if isinstance(one, int))
        return done

    async def _charge_one(self, day: OwedDay) -> int:
        """Charge one day, if that was not done before. Raises StoreUnavailable."""
        async with self._slots:
            began = time.monotonic()
            if began < self._not_before.get(day.charge_id, 0):
                return 0
            if not await self._stores.claim(day.charge_id, CLAIM_MS) or not await self._hold(day):
                return 0
            settled = False
            try:
                if await self._is_flushed(time.monotonic()) and not await self._stores.booked([day]):
                    settled = await self._settle(day, began)
            finally:
                if not settled and day.charge_id not in self._not_before:
                    with contextlib.suppress(StoreUnavailable):
                        await self._store.release(day.charge_id, day.account_id)
            return int(settled)

    async def _hold(self, day: OwedDay) -> bool:
        """Hold what is due, or what is available of it; False when others are faster each time."""
        amount, lease_ms = day.due_millicredits, self._services.settings.advanced.hold_lease_seconds * 1_000
        for _ in range(HOLD_TRIES):
            request = HoldRequest(
                day.charge_id, day.account_id, "", Millicredits(amount), 0, lease_ms, NO_LIMITS, day.record.encode()
            )
            try:
                result = await self._store.hold(request)
            except AccountNotFound:
                return False
            if isinstance(result, Held):
                return True
            amount = max(0, min(amount, result.balance - result.held))
        return False

    async def _is_flushed(self, held_at: float) -> bool:
        """Wait until every charge that was settled before `held_at` is in the ledger; False when that takes too long.

        What is settled later under this id, by a process that was cut off, resolves the hold that is there now.
        """
        while time.monotonic() - held_at < FLUSH_SECONDS:
            waiting, age_ms = await self._store.depth()
            if not waiting or age_ms + CLOCKS_APART_MS < (time.monotonic() - held_at) * 1_000:
                return True
            await asyncio.sleep(LOOK_SECONDS)
        log.warning("a day of storage is not charged now: the ledger lags behind")
        return False

    async def _settle(self, day: OwedDay, began: float) -> bool:
        """Settle, unless this process was held up for so long that another may be at it soon."""
        if (time.monotonic() - began) * 2_000 > CLAIM_MS:
            return False
        # where it fails the store has queued it: no other hold of its id may be made until that has gone out
        self._not_before[day.charge_id] = time.monotonic() + QUEUED_SECONDS
        due = Millicredits(day.due_millicredits)
        await self._store.settle(day.charge_id, day.account_id, due, day.record.encode())
        if day.account_id in self._services.hold_queue.waiting:
            self._services.hold_queue.ended(day.account_id)
        return True

    async def _close(self, paid: PaidDay) -> int:
        account_id = paid.owed.account_id
        self._not_before.pop(paid.owed.charge_id, None)
        read = await self._store.read(account_id)
        grace_ms = self._services.settings.storage.grace_days * DAY_MS
        daily = await self._stores.last_due(account_id)
        await self._stores.settle(paid, read.balance - read.held, daily, LOW_DAYS, grace_ms, self._notices)
        if paid.loss:
            log.warning("%s could not pay %d millicredits of its storage", account_id, paid.loss)
        return 1


def charge_id_of(date: str, day: StoredDay) -> str:
    """Name the charge of a day (its date as ISO has it); of what is not kept at the default upstream, by that too."""
    name = f"storage-{date}-{day.account_id}"
    return f"{name}-{hashlib.sha256(day.upstream.encode()).hexdigest()[:12]}" if day.upstream else name


async def follow_storage(charge: StorageCharge, leads: Callable[[], Awaitable[bool]]) -> None:
    """Charge for ever, wherever `leads()` says that this process is the one to do so."""

    async def step() -> int:
        return await charge.step() if await leads() else 0

    await repeat(step, STEP_SECONDS, "charging for storage")
