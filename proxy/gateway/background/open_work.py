"""Work that goes on upstream without its request, background responses and batches: held, asked about, settled once.

The process that leads looks at all of it again and again. First each is held for, so that no hold runs out while
another is asked about; then upstream is asked, a few at a time.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from billing.ledger.flush import repeat, while_leading
from billing.ledger.ledger import Ledger
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.pricing import BookOrigin, PriceBook
from billing.storage.database import now_ms
from proxy.gateway.background.terms import Catalogues, recorded_terms
from proxy.gateway.callers.labels import Labels
from proxy.gateway.plan import Plan
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import Services
from proxy.gateway.upstream.route import Served

log = logging.getLogger("tollkeeper.background")

MOST_OPEN = 10_000
"""Rows that are looked at: the hold of one that is not would run out."""


class OpenRow(Protocol):
    """A row of SQL that is not settled."""

    @property
    def charge_id(self) -> str:
        """Id of its hold and of its charge."""

    @property
    def upstream(self) -> str:
        """Name of the upstream that runs it."""


class Record(Protocol):
    """The facts in its row that every kind has."""

    @property
    def started_ms(self) -> int:
        """Unix milliseconds at which its request came."""

    @property
    def book(self) -> BookOrigin | None:
        """Prices it began under."""

    @property
    def insurance(self) -> bool | None:
        """True where an answer without anything is free."""

    @property
    def end_user(self) -> str:
        """Label of its usage row."""

    @property
    def tags(self) -> str:
        """Labels of its usage row, as JSON."""


class HeldWork(Protocol):
    """Work that this process holds for."""

    @property
    def hold(self) -> RequestHold:
        """Its hold, resumed."""


RowT = TypeVar("RowT", bound=OpenRow)
HeldT = TypeVar("HeldT", bound=HeldWork)


class OpenWork(ABC, Generic[RowT, HeldT]):
    """The one poller of a kind; run it where the jobs run."""

    kind: str
    """What one of them is called in the log."""

    def __init__(self, services: Services, ledger: Ledger, catalogues: Catalogues, *, at_once: int) -> None:
        """Take the services of this process; nothing is held yet. `at_once`: how many are asked about side by side."""
        self._services, self._ledger, self._catalogues = services, ledger, catalogues
        self._objects = services.tenants.objects
        self._held: dict[str, HeldT] = {}
        self._slots = asyncio.Semaphore(at_once)

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Time between two looks."""

    @abstractmethod
    async def _open(self) -> Sequence[RowT]:
        """Rows that are not settled, oldest first. Raises StoreUnavailable."""

    @abstractmethod
    async def _take_on(self, row: RowT) -> HeldT | None:
        """Hold for it; None where nothing is to be asked about. Raises StoreUnavailable."""

    @abstractmethod
    async def _look_at(self, held: HeldT) -> int:
        """Ask upstream, and settle when it has ended. Returns 1 then."""

    @abstractmethod
    async def _end(self, row: RowT) -> bool:
        """Mark it as settled; False when it was."""

    async def poll(self) -> int:
        """Look at all that is open once; return how many were settled. Raises StoreUnavailable."""
        rows = await self._open()
        for charge_id in self._held.keys() - {row.charge_id for row in rows}:
            self._held.pop(charge_id).hold.forget()
        # one that cannot be taken on keeps no other from it
        held = [(await asyncio.gather(self._holding_for(row), return_exceptions=True))[0] for row in rows]
        asked = [self._ask_about(one) for one in held if one is not None and not isinstance(one, BaseException)]
        # all of them to their ends: one that is still at work must not be asked about a second time
        found = await asyncio.gather(*asked, return_exceptions=True)
        for one in (*held, *found):
            if isinstance(one, BaseException):
                raise one
        return sum(one for one in found if isinstance(one, int))

    def resign(self) -> None:
        """Leave everything to the process that leads now: what it ends must not be held on to here."""
        while self._held:
            self._held.popitem()[1].hold.forget()

    async def _holding_for(self, row: RowT) -> HeldT | None:
        held = self._held.get(row.charge_id) or await self._take_on(row)
        if held is not None:
            self._held[row.charge_id] = held
        return held

    async def _ask_about(self, held: HeldT) -> int:
        async with self._slots:
            return await self._look_at(held)

    async def _resumable(
        self, row: RowT, record: Record, plan: Callable[[PriceBook], Plan]
    ) -> tuple[Plan, RequestHold] | None:
        """Find the plan and the hold it had, by the terms it began under; None where it is charged already, which ends
        it, and where it cannot be priced. Raises StoreUnavailable.
        """
        try:
            known = (one.hold.terms.prices for one in self._held.values())
            terms = await recorded_terms(self._services, self._catalogues, record.book, record.insurance, known)
            planned = plan(terms.prices)
        except StoreUnavailable:
            raise
        except BillingError as error:
            log.error("%s %s cannot be priced: %s", self.kind, row.charge_id, error)  # noqa: TRY400 - a price is missing, nothing failed
            return None
        if await self._ledger.charged_ids([row.charge_id]):
            await self._end(row)
            return None
        started = time.monotonic() - (now_ms() - record.started_ms) / 1_000
        served = Served(row.upstream)
        hold = RequestHold(self._services, terms, row.charge_id, record.started_ms, started, served=served)
        hold.labels = Labels(record.end_user, record.tags)
        return planned, hold


async def follow_open(poller: OpenWork[RowT, HeldT], leads: Callable[[], Awaitable[bool]]) -> None:
    """Poll for ever, wherever `leads()` says that this process is the one to do so."""

    async def poll() -> int:
        await poller.poll()
        return 0

    await repeat(while_leading(leads, poll, poller.resign), poller.seconds, poller.kind)
