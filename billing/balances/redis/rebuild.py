"""Rebuilding one bucket of the Redis store from SQL, under a fence that late writes cannot cross.

Why epochs. A Redis that lost its last second (`appendfsync everysec`), was emptied, or came back from an old file is
consistent in itself: no figure looks wrong. So data loss is not searched for in the data. Every bucket has a token,
`<run id of the server>:<nonce>`, in `{bN}:epoch`, and every script call carries the token its process knows. A server
that restarted has another run id, an emptied one has no token: the token does not fit, the script answers {'epoch'}
and changes nothing (I9), and a process rebuilds the bucket. SQL is the truth it is rebuilt from (I6).

    (none)     never used, or emptied
    F:<nonce>  fenced: surviving charges are flushed to SQL, figures rewritten, surviving holds kept
    R:<token>  recovering: every process puts back its live holds and the charges that did not survive
    <token>    open

    none, another server's token, a left-behind F: or R: ──▶ F: ──▶ R: ──▶ open

F: no script but rewrite.lua, under this very nonce, writes. R: what was decided before may be finished (settle,
resettle, rehold, renew, mark, shrink); nothing new is admitted. Open: also hold, credit, load and reap.

One rebuilding, by whoever holds `{bN}:lock:<run id>` (10 s; it names the server, so that a lock that came back with
a restarted server's data binds nobody):

1. Fence Redis, then SQL (`buckets.epoch` = nonce). A flush that read its charges before and commits after is refused
   by SQL, because figures are about to be read without it; the charges' owners settle them again (I3).
2. Flush the charges that survived, by their ids (I4). Only then does SQL know exactly what survived.
3. Rewrite balances and limited keys from SQL; drop holds that SQL has a charge of; `held` is the sum of the others,
   whose leases start anew so that their owners can renew them.
4. R:, for 0.4 s. The processes learn of the new token from a refused script or within 0.25 s from the trim loop
   (store.py), and put back what is theirs (epochs.py `_restore`): charges that SQL does not have are settled again
   under the same id, once by their tombstones; holds are put back, with no more than is available (I1).
   A bucket without a token and without an account in SQL skips this.
5. Open. A process that comes later still puts back what is its own, before it uses the new token.

Only the holder of the fence writes, and only it moves on (advance.lua compares and sets): a rival whose lock ran out
finds the state changed and stops. A bucket in F: or R: without a lock was left by one that died: it is rebuilt again,
from the start; every step may be done twice.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from billing.balances.redis.connection import RedisConnection
from billing.ledger.ledger import Ledger
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry
from billing.money.spend_periods import period_start_ms

log = logging.getLogger("tollkeeper.redis")

LOCK_MS = 10_000
CHUNK = 500


class Survivor(NamedTuple):
    """A hold that is in Redis."""

    hold_id: str
    account_id: str
    amount: int
    key_id: str


class Rebuilder:
    """Rebuilder of buckets; knows nothing of what its process lives by."""

    def __init__(self, connection: RedisConnection, ledger: Ledger, lease_ms: int) -> None:
        """`lease_ms`: what surviving holds are given, so that their owners can renew them."""
        self._connection, self._ledger, self._lease_ms = connection, ledger, lease_ms
        self._rebuilt = 0

    def take_rebuilt(self) -> int:
        """Return the number of buckets rebuilt since this was asked last."""
        number, self._rebuilt = self._rebuilt, 0
        return number

    async def rebuild(
        self, bucket: int, run_id: str, recover: Callable[[str], Awaitable[None]], *, force: bool = False
    ) -> bool:
        """Rewrite a bucket from SQL; False when another process is at it.

        `recover(token)` is awaited in the recovering state: it puts back what this process lives by and gives the
        others time to do the same.
        """
        prefix, nonce = prefix_of(bucket), secrets.token_hex(4)
        lock = f"{prefix}lock:{run_id}"  # a lock that came back with a restarted server's data binds nobody
        if not await self._connection.call("SET", lock, nonce, "NX", "PX", LOCK_MS):
            return False
        try:
            before = await self._connection.call("GET", f"{prefix}epoch")
            if not force and before and before.decode().startswith(f"{run_id}:"):
                return True
            fence, token = f"F:{nonce}", f"{run_id}:{nonce}"
            await self._connection.call("SET", f"{prefix}epoch", fence)
            await self._ledger.fence(bucket, nonce)
            await self._flush_survivors(bucket, prefix, nonce)
            known = await self._rewrite_accounts(bucket, prefix, fence)
            await self._connection.call("DEL", f"{prefix}flushed")
            if not await self._advance(prefix, fence, f"R:{token}"):
                return False
            if before is not None or known:
                log.warning("bucket %d rebuilt from SQL: %d accounts", bucket, known)
                self._rebuilt += 1
                await recover(token)
            return await self._advance(prefix, f"R:{token}", token)
        finally:
            with contextlib.suppress(StoreUnavailable):
                if await self._connection.call("GET", lock) == nonce.encode():
                    await self._connection.call("DEL", lock)

    async def _advance(self, prefix: str, before: str, after: str) -> bool:
        return bool((await self._connection.run("advance", (f"{prefix}epoch",), (before, after)))[0] == b"ok")

    async def _flush_survivors(self, bucket: int, prefix: str, epoch: str) -> None:
        """Book the surviving charges in SQL (I4: by their ids); what cannot be booked stays where it is."""
        start = "-"
        while items := await self._connection.call("XRANGE", f"{prefix}log", start, "+", "COUNT", CHUNK):
            entries = [entry_of(bucket, item, epoch) for item in items]
            booked, stuck = await self._ledger.post_bookable(entries)
            if len(booked) + len(stuck) != len(entries):
                raise StoreUnavailable("redis", "another process rebuilds this bucket")
            if stuck:
                log.error("bucket %d: %d charges cannot be booked: %s", bucket, len(stuck), next(iter(stuck.values())))
            done = {entry.position for entry in booked}
            if done:
                mine = [item[0] for item, entry in zip(items, entries, strict=True) if entry.position in done]
                await self._connection.call("XDEL", f"{prefix}log", *mine)
            start = f"({items[-1][0].decode()}"

    async def _rewrite_accounts(self, bucket: int, prefix: str, fence: str) -> int:
        """Balances from SQL, held from the holds that survived; return how many accounts there are."""
        holds = await self.surviving_holds(prefix)
        charged = await self._ledger.charged_ids(hold.hold_id for hold in holds)
        for hold in holds:
            if hold.hold_id in charged:
                await self._connection.call("DEL", f"{prefix}h:{hold.hold_id}")
                await self._connection.call("ZREM", f"{prefix}leases", hold.hold_id)
        holds = [hold for hold in holds if hold.hold_id not in charged]
        held: dict[str, int] = {}
        for hold in holds:
            held[hold.account_id] = held.get(hold.account_id, 0) + hold.amount
        accounts = await self._ledger.posted_in(bucket)
        for start in range(0, len(accounts), CHUNK):
            await asyncio.gather(
                *(
                    self._connection.run(
                        "rewrite",
                        (f"{prefix}epoch", f"{prefix}a:{row.account_id}"),
                        (fence, "balance", row.balance, "held", held.get(row.account_id, 0), "seq", row.sequence),
                    )
                    for row in accounts[start : start + CHUNK]
                )
            )
        await self._rewrite_keys(prefix, holds, fence)
        seconds, _ = await self._connection.call("TIME")
        for hold in holds:
            await self._connection.call("ZADD", f"{prefix}leases", int(seconds) * 1_000 + self._lease_ms, hold.hold_id)
        return len(accounts)

    async def _rewrite_keys(self, prefix: str, holds: Iterable[Survivor], fence: str) -> None:
        """Limited keys: spending from SQL, what is in flight from the holds."""
        mine = list(holds)
        for name in await self.scan(f"{prefix}k:*"):
            key_id = name.removeprefix(f"{prefix}k:")
            period = ((await self._connection.call("HGET", name, "period")) or b"total").decode()
            spent = await self._ledger.key_spent(key_id, period_start_ms(period)) if period else 0
            of_key = [hold.amount for hold in mine if hold.key_id == key_id]
            fields = (fence, "spent", spent, "held", sum(of_key), "inflight", len(of_key))
            await self._connection.run("rewrite", (f"{prefix}epoch", name), fields)

    async def surviving_holds(self, prefix: str) -> list[Survivor]:
        """Return the holds that Redis has, by their leases; leases without a hold are dropped."""
        found = []
        for raw in await self._connection.call("ZRANGE", f"{prefix}leases", 0, -1):
            hold_id = raw.decode()
            values = await self._connection.call("HMGET", f"{prefix}h:{hold_id}", "a", "m", "k")
            if values[0] is None:
                await self._connection.call("ZREM", f"{prefix}leases", hold_id)
                continue
            found.append(Survivor(hold_id, values[0].decode(), int(values[1]), (values[2] or b"").decode()))
        return found

    async def scan(self, pattern: str) -> list[str]:
        """Return every key that matches, sorted."""
        cursor: bytes = b"0"
        found: set[str] = set()
        while True:
            cursor, names = await self._connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", CHUNK)
            found.update(name.decode() for name in names)
            if cursor == b"0":
                return sorted(found)


def prefix_of(bucket: int) -> str:
    """Return the prefix of a bucket's keys; by its tag they share a cluster slot."""
    return f"{{b{bucket}}}:"


def fields_of(item: Any) -> dict[bytes, bytes]:
    """Return the fields of a stream entry as hiredis gives it."""
    values = item[1]
    return dict(zip(values[::2], values[1::2], strict=True))


def entry_of(bucket: int, item: Any, epoch: str) -> Entry:
    """Return a stream entry as a journal entry; its position names the bucket."""
    fields = fields_of(item)
    return Entry(f"{bucket}:{item[0].decode()}", int(fields[b"c"]), int(fields[b"l"]), fields[b"r"], bucket, epoch)
