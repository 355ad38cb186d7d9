"""Rebuilding one bucket of the Redis store from SQL, under a fence that late writes cannot cross.

Why epochs. A Redis that lost its last second (`appendfsync everysec`), was emptied, or came back from an old file is
consistent in itself: no figure looks wrong. So data loss is not searched for in the data. Every bucket has a token,
`<run id of the server>:<nonce>`, in `{bN}:epoch`, and every script call carries the token its process knows. A server
that restarted has another run id, an emptied one has no token: the token does not fit, the script answers {'epoch'}
and changes nothing (I9), and a process rebuilds the bucket. SQL is the truth it is rebuilt from (I6).

A replica that was promoted, by Sentinels or in a cluster, has the token of the server before it: it does not fit. A
cluster's slot that moved comes with all its keys, whole (a script needs them all: half-way no node runs one), and with
the token of the node it left: it does not fit either, and what the journal brought along is flushed in step 2. Two
servers that take each other's place twice may both keep their run ids: so a token that a process does not know yet must
also be the one that SQL knows, and those it serves under are compared with SQL's every second (epochs.py).

    (none)     never used, or emptied
    F:<nonce>  fenced: surviving charges are flushed to SQL, figures rewritten, surviving holds kept
    R:<token>  recovering: every process puts back its live holds and the charges that did not survive
    <token>    open

    none, another server's token, a left-behind F: or R: ──▶ F: ──▶ R: ──▶ open

F: no script but rewrite.lua, under this very nonce, writes. R: what was decided before may be finished (settle,
resettle, rehold, renew, mark, shrink); nothing new is admitted. Open: also hold, credit, load and reap.

One rebuilding, by whoever holds `{bN}:lock:<run id>` (10 s, and anew with each step that was done, so that a bucket
of any size is rebuilt once, and a rebuilder that hangs is overtaken; it names the server, so that a lock that came
back with a restarted server's data binds nobody). A process rebuilds a few buckets at a time, and each serves again
as soon as it is done:

1. Fence Redis, then SQL (`buckets.epoch` = nonce). A flush that read its charges before and commits after is refused
   by SQL, because figures are about to be read without it; the charges' owners settle them again (I3).
2. Flush the charges that survived, by their ids (I4). Only then does SQL know exactly what survived: but for those
   that it does not take, which stay in the journal, are taken off the balances, and leave tombstones for their owners.
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
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from billing.balances.owed import Owed, owed_by, owed_of
from billing.balances.redis.servers.connection import RedisConnection
from billing.balances.redis.servers.serving import Servers
from billing.ledger.ledger import Ledger, PostedBalance
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry
from billing.money.spend_periods import period_start_ms

log = logging.getLogger("tollkeeper.redis")

Item = TypeVar("Item")
LOCK_MS = 10_000
CHUNK = 500
TOMBSTONE_SECONDS = 86_400
"""As lua/common.lua leaves them."""
PAGE = 10_000
"""Accounts read from SQL at once: some 3 MB."""
ABOUT_BUDGETS = ("period", "models", "key", "account", "user")
"""What Redis has of a budget, for reading from SQL what was spent of it; an account where it is of an end user's."""
BUCKETS_AT_ONCE = 4
"""Buckets that one process rebuilds at a time: what one waits for, SQL or Redis, is the others' turn."""


class Survivor(NamedTuple):
    """A hold that is in Redis."""

    hold_id: str
    account_id: str
    amount: int
    key_id: str
    budgets: str
    """As lua/common.lua writes them: scope=period;..."""


class OvertakenError(Exception):
    """Another process has taken this rebuilding over; what it does now counts."""


class Lock(NamedTuple):
    """The lock of one rebuilding, its server, and the prefix of its bucket's keys."""

    server: RedisConnection
    prefix: str
    name: str
    nonce: str


class Rebuilder:
    """Rebuilder of buckets; knows nothing of what its process lives by."""

    def __init__(self, servers: Servers, ledger: Ledger, lease_ms: int) -> None:
        """`lease_ms`: what surviving holds are given, so that their owners can renew them."""
        self._of, self._ledger, self._lease_ms = servers.of, ledger, lease_ms
        self._rebuilt = 0
        self._turn = asyncio.Semaphore(BUCKETS_AT_ONCE)
        self._scans: dict[RedisConnection, tuple[KeyScan, KeyScan]] = {}
        """Of each server: limited keys, budgets."""
        self.progress = 0
        """Grows with each step that was done, here or by whoever holds a lock: a start waits while it does."""

    def take_rebuilt(self) -> int:
        """Return the number of buckets rebuilt since this was asked last."""
        number, self._rebuilt = self._rebuilt, 0
        return number

    async def rebuild(
        self, bucket: int, recover: Callable[[str], Awaitable[None]], *, force: bool = False, instead_of: str = ""
    ) -> bool:
        """Rewrite a bucket from SQL, one that fits its server only by `force` or if its state is still `instead_of`;
        False when another process is at it.

        `recover(token)` is awaited in the recovering state: it puts back what this process lives by and gives the
        others time to do the same.
        """
        connection = self._of[bucket]  # to the end: where the bucket goes meanwhile, it is rebuilt again
        run_id, prefix, nonce = connection.run_id, prefix_of(bucket), secrets.token_hex(4)
        # a lock that came back with a restarted server's data binds nobody
        lock = Lock(connection, prefix, f"{prefix}lock:{run_id}", nonce)
        token, locked = f"{run_id}:{nonce}", False
        try:
            async with self._turn:
                locked = bool(await connection.call("SET", lock.name, nonce, "NX", "PX", LOCK_MS))
                if not locked:
                    self.progress += 1
                    return False
                before = await state_of(connection, bucket)
                if not force and before != instead_of and before.startswith(f"{run_id}:"):
                    return True
                known = await self._rewrite(bucket, lock, token)
            if before or known:
                log.warning("bucket %d rebuilt from SQL: %d accounts", bucket, known)
                self._rebuilt += 1
                await recover(token)
            return await self._advance(lock, f"R:{token}", token)
        except OvertakenError:
            return False
        finally:
            if locked:
                with contextlib.suppress(StoreUnavailable):
                    await connection.run("extend", (lock.name,), (nonce, 0))

    async def _rewrite(self, bucket: int, lock: Lock, token: str) -> int:
        """Do steps 1 to 3, up to the recovering state; return how many accounts there are."""
        prefix, fence = lock.prefix, f"F:{lock.nonce}"
        await lock.server.call("SET", f"{prefix}epoch", fence)
        await self._ledger.fence(bucket, lock.nonce)
        owed = await self._owed(lock, await self._flush_survivors(bucket, lock))
        holds = await self._holds_without_charge(lock)
        known = await self._rewrite_accounts(bucket, lock, holds, owed)
        await self._rewrite_keys(lock, holds)
        await self._rewrite_budgets(lock, holds, owed)
        await self._renew_leases(lock, holds)
        await lock.server.call("DEL", f"{prefix}flushed")
        if not await self._advance(lock, fence, f"R:{token}"):
            raise OvertakenError
        return known

    async def _step(self, lock: Lock) -> None:
        """Keep the lock, as something was done. Raises OvertakenError."""
        if (await lock.server.run("extend", (lock.name,), (lock.nonce, LOCK_MS)))[0] != b"ok":
            raise OvertakenError
        self.progress += 1

    async def _advance(self, lock: Lock, before: str, after: str) -> bool:
        return bool((await lock.server.run("advance", (f"{lock.prefix}epoch",), (before, after)))[0] == b"ok")

    async def _flush_survivors(self, bucket: int, lock: Lock) -> list[Entry]:
        """Book surviving charges in SQL (I4: by their ids); return those that cannot be, and stay where they are."""
        start, left = "-", list[Entry]()
        while items := await lock.server.call("XRANGE", f"{lock.prefix}log", start, "+", "COUNT", CHUNK):
            entries = [entry_of(bucket, item, lock.nonce) for item in items]
            booked, stuck = await self._ledger.post_bookable(entries)
            if len(booked) + len(stuck) != len(entries):
                raise OvertakenError
            if stuck:
                log.error("bucket %d: %d charges cannot be booked: %s", bucket, len(stuck), next(iter(stuck.values())))
            done = {entry.position for entry in booked}
            if done:
                mine = [item[0] for item, entry in zip(items, entries, strict=True) if entry.position in done]
                await lock.server.call("XDEL", f"{lock.prefix}log", *mine)
            left += [entry for entry in entries if entry.position in stuck]
            start = f"({items[-1][0].decode()}"
            await self._step(lock)
        return left

    async def _owed(self, lock: Lock, left: Sequence[Entry]) -> list[Owed]:
        """Return what is owed for charges that SQL does not have and the journal still does.

        A tombstone tells whoever settled one of them, and would settle it again, that it survived.
        """
        owed = owed_of(left)
        for one in owed:
            tombstone = f"{lock.prefix}t:{one.record.charge_id}"
            await lock.server.call("SET", tombstone, "1", "NX")  # the reaper's says more
            await lock.server.call("EXPIRE", tombstone, TOMBSTONE_SECONDS)
        return owed

    async def _holds_without_charge(self, lock: Lock) -> list[Survivor]:
        """Return the holds that survived; those that SQL has a charge of are dropped."""
        holds = []
        for found in chunks(await surviving_holds(lock.server, lock.prefix), CHUNK):
            charged = await self._ledger.charged_ids(hold.hold_id for hold in found)
            if charged:
                await lock.server.call("DEL", *(f"{lock.prefix}h:{hold_id}" for hold_id in charged))
                await lock.server.call("ZREM", f"{lock.prefix}leases", *charged)
            holds += [hold for hold in found if hold.hold_id not in charged]
            await self._step(lock)
        return holds

    async def _rewrite_accounts(self, bucket: int, lock: Lock, holds: Sequence[Survivor], owed: Sequence[Owed]) -> int:
        """Balances from SQL without what is `owed`, held from the holds that survived; return how many accounts."""

        def left(row: PostedBalance) -> int:
            return row.balance - owed_by(row.account_id, owed)

        held: defaultdict[str, int] = defaultdict(int)
        for hold in holds:
            held[hold.account_id] += hold.amount
        known, last = 0, ""
        while page := await self._ledger.posted_in(bucket, last, PAGE):
            for part in chunks(page, CHUNK):
                names = [f"{lock.prefix}a:{row.account_id}" for row in part]
                rows = [("balance", left(row), "held", held[row.account_id], "seq", row.sequence) for row in part]
                await self._write(lock, names, rows)
            known, last = known + len(page), page[-1].account_id
        return known

    async def _rewrite_keys(self, lock: Lock, holds: Sequence[Survivor]) -> None:
        """Limited keys: what is in flight, from the holds."""
        in_flight: defaultdict[str, int] = defaultdict(int)
        for hold in holds:
            in_flight[hold.key_id] += 1
        start = len(f"{lock.prefix}k:")
        for names in chunks(await self._scans_of(lock.server)[0].of(lock.prefix), CHUNK):
            await self._write(lock, names, [("inflight", in_flight[name[start:]]) for name in names])

    async def _rewrite_budgets(self, lock: Lock, holds: Sequence[Survivor], owed: Sequence[Owed]) -> None:
        """Budgets: what was spent from SQL and what is `owed`, what is held from the holds."""
        held: defaultdict[str, int] = defaultdict(int)
        for hold in holds:
            for part in filter(None, hold.budgets.split(";")):
                held[part.partition("=")[0]] += hold.amount
        start = len(f"{lock.prefix}s:")
        for names in chunks(await self._scans_of(lock.server)[1].of(lock.prefix), CHUNK):
            known = await asyncio.gather(*(lock.server.call("HMGET", name, *ABOUT_BUDGETS) for name in names))
            alike: defaultdict[tuple[str, bytes, str], list[tuple[str, str]]] = defaultdict(list)
            for name, (period, models, key_id, account, user) in zip(names, known, strict=True):
                if period and models and key_id:  # else it went meanwhile
                    whose = (account or b"").decode()
                    alike[period.decode(), models, whose].append((name, (user or key_id).decode()))
            for (period, models, account_id), budgets in alike.items():
                globs = msgspec.json.decode(models, type=tuple[str, ...] | None)
                owners, since = [owner for _, owner in budgets], period_start_ms(period)
                if account_id:
                    spent = await self._ledger.end_users_spent(account_id, owners, since, globs)
                else:
                    spent = await self._ledger.keys_spent(owners, since, globs)
                whose = (account_id, since, globs)
                left = {one: sum(each.charged for each in owed if each.counts_for(one, *whose)) for one in owners}
                rows = [
                    ("period", period, "spent", spent[owner] + left[owner], "held", held[name[start:]])
                    for name, owner in budgets
                ]
                await self._write(lock, [name for name, _ in budgets], rows)

    async def _write(self, lock: Lock, names: Sequence[str], rows: Sequence[tuple[str | int, ...]]) -> None:
        """Write fields and values into these hashes, under the fence. Raises OvertakenError."""
        values = [value for row in rows for value in row]
        arguments = (f"F:{lock.nonce}", len(rows[0]), *values)
        if (await lock.server.run("rewrite", (f"{lock.prefix}epoch", *names), arguments))[0] != b"ok":
            raise OvertakenError
        await self._step(lock)

    async def _renew_leases(self, lock: Lock, holds: Sequence[Survivor]) -> None:
        seconds, _ = await lock.server.call("TIME")
        until = int(seconds) * 1_000 + self._lease_ms
        for part in chunks(holds, CHUNK):
            pairs = [value for hold in part for value in (until, hold.hold_id)]
            await lock.server.call("ZADD", f"{lock.prefix}leases", *pairs)

    def _scans_of(self, server: RedisConnection) -> "tuple[KeyScan, KeyScan]":
        if server not in self._scans:
            scan = partial(scan_keys, server)
            still = {one: scans for one, scans in self._scans.items() if one in self._of}
            self._scans = {**still, server: (KeyScan(scan, "k"), KeyScan(scan, "s"))}
        return self._scans[server]


class KeyScan:
    """Limited keys, or budgets, that Redis knows, of every bucket in one scan of the keyspace.

    Buckets that are rebuilt together share a scan: each gets one that began after its fence, so that no key is missing.
    """

    def __init__(self, scan: Callable[[str], Awaitable[list[str]]], kind: str) -> None:
        """`scan(pattern)` returns the names of all keys that match; `kind`: k, limited keys, or s, their budgets."""
        self._scan, self._kind = scan, kind
        self._next: asyncio.Task[dict[str, list[str]]] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def of(self, prefix: str) -> list[str]:
        """Return the names of a bucket's keys of this kind, sorted. Raises StoreUnavailable."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
            self._next.add_done_callback(_ignore)  # those that asked may have been cancelled
        return (await asyncio.shield(self._next)).get(prefix, [])

    async def _run(self) -> dict[str, list[str]]:
        async with self._one_at_a_time:
            self._next = None  # whoever comes from now on is in the one after this
            found: defaultdict[str, list[str]] = defaultdict(list)
            for name in await self._scan(f"{{b*}}:{self._kind}:*"):
                found[name[: name.index(f":{self._kind}:") + 1]].append(name)
            return found


async def surviving_holds(server: RedisConnection, prefix: str) -> list[Survivor]:
    """Return the holds that a server has of a bucket, by their leases; leases without a hold are dropped."""
    found = []
    for ids in chunks(await server.call("ZRANGE", f"{prefix}leases", 0, -1), CHUNK):
        names = [raw.decode() for raw in ids]
        holds = await asyncio.gather(*(server.call("HMGET", f"{prefix}h:{name}", "a", "m", "k", "b") for name in names))
        for hold_id, (account_id, amount, *rest) in zip(names, holds, strict=True):
            if account_id is None:
                await server.call("ZREM", f"{prefix}leases", hold_id)
                continue
            key_id, budgets = ((value or b"").decode() for value in rest)
            found.append(Survivor(hold_id, account_id.decode(), int(amount), key_id, budgets))
    return found


async def scan_keys(server: RedisConnection, pattern: str) -> list[str]:
    """Return every key of a server that matches, sorted."""
    cursor: bytes = b"0"
    found: set[str] = set()
    while True:
        cursor, names = await server.call("SCAN", cursor, "MATCH", pattern, "COUNT", CHUNK)
        found.update(name.decode() for name in names)
        if cursor == b"0":
            return sorted(found)


async def state_of(server: RedisConnection, bucket: int) -> str:
    """Return a bucket's state, "" where it has none. Raises StoreUnavailable.

    Asked for with a key that never is: of a slot that is on its way to another node, a cluster then says so.
    """
    prefix = prefix_of(bucket)
    state, _ = await server.call("MGET", f"{prefix}epoch", f"{prefix}none")
    return state.decode() if state else ""


def nonce_of(token: str) -> str:
    """Return the epoch of a token, as SQL knows it."""
    return token.rpartition(":")[2]


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a sequence into parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def prefix_of(bucket: int) -> str:
    """Return the prefix of a bucket's keys; by its tag they share a cluster slot."""
    return f"{{b{bucket}}}:"


def fields_of(item: Any) -> dict[bytes, bytes]:
    """Return the fields of a stream entry as hiredis gives it."""
    values = item[1]
    return dict(zip(values[::2], values[1::2], strict=True))


def _ignore(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


def entry_of(bucket: int, item: Any, epoch: str) -> Entry:
    """Return a stream entry as a journal entry; its position names the bucket."""
    fields = fields_of(item)
    return Entry(f"{bucket}:{item[0].decode()}", int(fields[b"c"]), int(fields[b"l"]), fields[b"r"], bucket, epoch)
