"""The flush, shared out among the jobs processes of all machines: each books the charges of some buckets.

Who flushes stands in Redis, by name and until when each is believed to live; each takes the buckets of its place among
the names. Nobody waits for anybody: while two see different names both book a bucket, of which SQL takes each charge
once (I4), as when a leader hung. A name lasts while its process reaches SQL, else it would keep charges from the ledger
that others could book.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from billing.balances.redis.journal import pending_entries
from billing.balances.redis.servers.serving import Servers
from billing.ledger.flush import ChargeJournal
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry

log = logging.getLogger("tollkeeper.jobs")


class FlushShare:
    """The journal, of the buckets that this process books."""

    def __init__(
        self,
        servers: Servers,
        journal: ChargeJournal,
        reach_sql: Callable[[], Awaitable[object]],
        name: str,
        lease_ms: int,
    ) -> None:
        """No bucket before the first look. `journal` is of all buckets; `reach_sql` raises StoreUnavailable where SQL
        does not answer; `name` is no other process's.
        """
        self._servers, self._journal, self._reach_sql = servers, journal, reach_sql
        self._name, self._lease_ms = name, lease_ms
        self.buckets: Sequence[int] = ()

    async def look(self) -> int:
        """See Share: for as long as a lease lasts. Raises StoreUnavailable, and leaves the buckets as they were."""
        await self._reach_sql()
        server, key = self._servers.lease_of("flushers")
        names = [raw.decode() for raw in await server.run("share", (key,), (self._name, self._lease_ms))]
        buckets = buckets_of(self._name, names)
        if buckets != self.buckets:
            log.info("booking the charges of %d of %d buckets, as one of %d", len(buckets), BUCKETS, len(names))
        self.buckets = buckets
        return 0

    async def leave(self) -> None:
        """See Share."""
        server, key = self._servers.lease_of("flushers")
        with contextlib.suppress(StoreUnavailable):  # then it ends by itself
            await server.call("ZREM", key, self._name)

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


def buckets_of(name: str, names: Sequence[str]) -> Sequence[int]:
    """Return the buckets of one of several who flush: each has one owner, and nobody many more than another."""
    place, parts = sorted(names).index(name), len(names)
    return range(BUCKETS * place // parts, BUCKETS * (place + 1) // parts)
