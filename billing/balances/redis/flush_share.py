"""The flush, shared out among the jobs processes of all machines: each books the charges of some buckets.

Who books a bucket's charges stands beside it in Redis, by name and until when each is believed to live: whoever reaches
the bucket and can write to SQL. The bucket is that one's whose turn it is among the names. Nobody waits for anybody:
while two see different names both book a bucket, of which SQL takes each charge once (I4), as when a leader hung.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from billing.balances.redis.journal import EVERY, PREFIXES, pending_entries
from billing.balances.redis.servers.serving import Servers
from billing.ledger.flush import ChargeJournal
from billing.ledger.summaries.usage_days import PARTS
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry

log = logging.getLogger("tollkeeper.jobs")

ASK_SECONDS = 0.5
"""A look waits so long for SQL: its own time, and the pause to the next one, must fit into what a name lasts."""
IN_TURN = sorted(EVERY, key=lambda bucket: (bucket % PARTS, bucket))
"""Buckets in the order in which they are shared out: those that add to the same sums of a day go to the same process,
or one would wait for the other's commits."""


def nobody_left() -> None:
    """Nothing is to be done when others are gone."""


class FlushShare:
    """The journal, of the buckets that this process books."""

    def __init__(
        self,
        servers: Servers,
        journal: ChargeJournal,
        reach_sql: Callable[[], Awaitable[object]],
        name: str,
        lease_ms: int,
        patience_seconds: int | float,
        on_fewer: Callable[[], None] = nobody_left,
    ) -> None:
        """No bucket before the first look. `journal` is of all buckets; `name` is no other process's.

        `reach_sql` raises where charges cannot be booked: after `patience_seconds` without an answer our names end.
        `on_fewer` is told when one of those who flush is gone.
        """
        self._servers, self._journal, self._reach_sql, self._on_fewer = servers, journal, reach_sql, on_fewer
        self._name, self._lease_ms, self._patience = name, lease_ms, patience_seconds
        self._asking: asyncio.Future[object] | None = None
        self._reached_at = -patience_seconds
        self._known = frozenset[str]()
        self.buckets: Sequence[int] = ()

    async def look(self) -> int:
        """See Share: for as long as a lease lasts. Raises StoreUnavailable, and leaves the buckets as they were."""
        await self._ask_sql()
        if time.monotonic() > self._reached_at + self._patience:
            raise StoreUnavailable("sql", "books no charges of this process")
        names = await self._names(self._lease_ms)
        buckets = [bucket for bucket in IN_TURN if bucket in names and owner(bucket, names[bucket]) == self._name]
        all_names = frozenset().union(*names.values())
        if buckets != self.buckets:
            log.info("booking the charges of %d of %d buckets, as one of %d", len(buckets), BUCKETS, len(all_names))
        if self._known - all_names:
            self._on_fewer()
        self.buckets, self._known = buckets, all_names
        return 0

    async def leave(self) -> None:
        """See Share: what is nobody's then stays ours. Raises StoreUnavailable."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        names = await self._names(0)
        self.buckets = [bucket for bucket in IN_TURN if bucket in self.buckets or not names.get(bucket)]

    async def pending(self, limit: int) -> list[Entry]:
        """See ChargeJournal: at most `limit` from each of our buckets."""
        return await pending_entries(self._servers, limit, self.buckets)

    async def acknowledge(self, entries: list[Entry]) -> None:
        """See ChargeJournal."""
        await self._journal.acknowledge(entries)

    async def refused(self, entries: list[Entry]) -> None:
        """See ChargeJournal."""
        await self._journal.refused(entries)

    async def depth(self) -> tuple[int, int]:
        """See ChargeJournal: of all buckets."""
        return await self._journal.depth()

    async def _ask_sql(self) -> None:
        """Find out whether charges can be booked; where SQL is slow, at one of the next looks."""
        asking = self._asking = self._asking or asyncio.ensure_future(self._reach_sql())
        await asyncio.wait((asking,), timeout=ASK_SECONDS)
        if asking.done():
            self._asking = None
            if not asking.cancelled() and asking.exception() is None:
                self._reached_at = time.monotonic()

    async def _names(self, lease_ms: int) -> Mapping[int, Collection[str]]:
        """Write our name beside every bucket (0 ms: take it away); return who is there, of the buckets that answer.

        Raises StoreUnavailable where none does.
        """

        async def ask(bucket: int) -> Any:  # in a coroutine: a connection that is down says so at once
            key = f"{PREFIXES[bucket]}flushers"
            return await self._servers.of[bucket].run("share", (key,), (self._name, lease_ms))

        answers = await asyncio.gather(*map(ask, EVERY), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for failure in failures:
            if len(failures) == BUCKETS or not isinstance(failure, StoreUnavailable):
                raise failure
        told = zip(EVERY, answers, strict=True)
        return {bucket: [raw.decode() for raw in names] for bucket, names in told if isinstance(names, list)}


def owner(bucket: int, names: Collection[str]) -> str:
    """Return who of several books a bucket: nobody has many more than another."""
    return sorted(names)[IN_TURN.index(bucket) * len(names) // BUCKETS]
