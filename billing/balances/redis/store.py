"""The Redis store: any number of processes and machines; one script call a hold, one a settle.

Keys of bucket 17 share a slot by their tag: {b17}:a:<account> {b17}:h:<hold> {b17}:k:<key> {b17}:leases
{b17}:log {b17}:t:<hold> (tombstones) {b17}:epoch {b17}:lock:<run id> {b17}:flushed.

**Epoch.** Every script call carries the bucket's token, `<run id of the server>:<nonce>`. A server that
restarted has another run id, a server that was emptied has no token: either way the token no longer fits,
nothing is admitted (fail closed), and one process rebuilds the bucket from SQL before it opens again (rebuilding.py).

A process keeps each settled charge until it is known flushed, so a Redis that lost its last second
(`appendfsync everysec`) loses no charge while the processes live.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

from billing.balances.redis import snapshots
from billing.balances.redis.connection import RedisLink
from billing.balances.redis.rebuild import Rebuilder, entry_of, prefix_of
from billing.balances.redis.script_calls import (
    Due,
    Live,
    hold_call,
    reap_call,
    rehold_call,
    release_of,
    resettle_call,
    rest_after_reaping,
    settle_call,
)
from billing.ledger.ledger import Ledger
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Checkpoint, Entry, Gone, Held, HoldRequest, Outstanding, Reading, Refused, Settled
from billing.money.spend_periods import period_start_ms

log = logging.getLogger("tollkeeper.redis")

GRACE_SECONDS = 0.4
LOCK_MS = 10_000
POLL_SECONDS = 0.03
DELIVER_SECONDS = 0.1
TRIM_SECONDS = 0.25
RELEASED_SECONDS = 10.0
REAP_GRACE_SECONDS = 3.0
RETRY_SECONDS = 0.2
ATTEMPTS = 6
CHUNK = 500


class RedisBalances:
    """Implements Balances and Journal on Redis. Call `open()` first; every await is bounded."""

    def __init__(self, url: str, ledger: Ledger, timeout_seconds: int | float, lease_ms: int) -> None:
        """`timeout_seconds` bounds every call; past it StoreUnavailable is raised."""
        self._ledger, self._timeout, self._lease_ms = ledger, timeout_seconds, lease_ms
        self._link = RedisLink(url, timeout_seconds, self._connected)
        self._rebuilder = Rebuilder(self._link, ledger, lease_ms)
        self._run_id, self._connected_at = "", 0.0
        self._tokens: list[str] = [""] * BUCKETS
        self._open: list[bool] = [False] * BUCKETS
        self._entering: dict[int, asyncio.Task[None]] = {}
        self._live: dict[str, Live] = {}
        self._undelivered: dict[str, Due] = {}
        self._kept: list[dict[str, tuple[str, Due]]] = [{} for _ in range(BUCKETS)]
        self._lost: list[dict[str, Due]] = [{} for _ in range(BUCKETS)]
        self._released: deque[tuple[float, Due]] = deque()
        self._prefix = [prefix_of(bucket) for bucket in range(BUCKETS)]
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, wait_seconds: int | float = 10) -> None:
        """Connect, and wait until every bucket serves. Raises StoreUnavailable when that takes too long."""
        self._link.start()
        self._tasks = [asyncio.create_task(loop()) for loop in (self._renew_loop, self._deliver_loop, self._trim_loop)]
        try:
            async with asyncio.timeout(wait_seconds):
                while not all(self._open):
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            await self.close()
            raise StoreUnavailable("redis", "cannot be reached, or its balances cannot be rebuilt from SQL") from None

    async def close(self) -> None:
        """Deliver what can be delivered, then disconnect."""
        if self._link.ready and self._undelivered:
            with contextlib.suppress(StoreUnavailable):
                await self._deliver()
        self._end([*self._tasks, *self._entering.values()])
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._link.close()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def ping(self) -> None:
        """Raise StoreUnavailable unless every bucket serves now."""
        if not self._link.ready or not all(self._open):
            raise StoreUnavailable(
                "redis", "is not reachable" if not self._link.ready else "balances are being rebuilt"
            )

    # -- Balances ---------------------------------------------------------------------------------

    async def hold(self, request: HoldRequest) -> Held | Refused:
        """See Balances."""
        bucket = bucket_of(request.account_id)
        for _ in range(ATTEMPTS):
            token = await self._serving(bucket)
            try:
                reply = await self._link.run(*hold_call(self._prefix[bucket], token, request))
            except StoreUnavailable as error:
                if error.in_doubt:
                    self._undelivered[request.hold_id] = release_of(request)
                raise
            except asyncio.CancelledError:
                self._undelivered[request.hold_id] = release_of(request)
                raise
            verdict = reply[0]
            if verdict == b"ok":
                self._live[request.hold_id] = Live(request, 0, request.record, time.monotonic())
                return Held(int(reply[1]), int(reply[2]))
            if verdict == b"refused":
                return Refused(reply[1].decode(), int(reply[2]), int(reply[3]), int(reply[4]), int(reply[5]))
            await self._make_up_for(verdict, bucket, request)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def wait_persisted(self, hold_id: str) -> None:
        """A hold that Redis acknowledged is as durable as its `appendfsync` says."""

    async def settle(
        self, hold_id: str, account_id: str, due: Millicredits, record: bytes, tokens: int = -1
    ) -> Settled | Gone:
        """See Balances. When it raises StoreUnavailable the resolution is queued here and delivered later."""
        live = self._live.get(hold_id)
        if live is None:
            reading = await self.read(account_id)
            return Gone(reading.balance, reading.held)
        wanted = Due(live.request, due, record, tokens)
        self._undelivered[hold_id] = wanted
        return await self._resolve(wanted)

    async def release(self, hold_id: str, account_id: str) -> Settled | Gone:
        """See Balances."""
        return await self.settle(hold_id, account_id, Millicredits(0), b"", 0)

    def checkpoint(self, mark: Checkpoint) -> None:
        """See Balances."""
        live = self._live.get(mark.hold_id)
        if live is None:
            return
        self._live[mark.hold_id] = Live(live.request, mark.amount, mark.record or live.record, live.since)
        bucket = bucket_of(mark.account_id)
        if self._open[bucket] and self._link.ready:
            prefix = self._prefix[bucket]
            keys = (f"{prefix}epoch", f"{prefix}h:{mark.hold_id}")
            with contextlib.suppress(StoreUnavailable):  # the queue is full: it is told again when the link comes back
                self._link.run("mark", keys, (self._tokens[bucket], mark.amount, mark.record)).add_done_callback(
                    _swallow
                )

    def shrink(self, hold_id: str, account_id: str, amount: Millicredits) -> None:
        """See Balances."""
        live = self._live.get(hold_id)
        if live is None or amount >= live.request.amount:
            return
        self._live[hold_id] = live._replace(request=live.request._replace(amount=amount))
        bucket = bucket_of(account_id)
        if self._open[bucket] and self._link.ready:
            prefix = self._prefix[bucket]
            keys = (f"{prefix}epoch", f"{prefix}a:{account_id}", f"{prefix}h:{hold_id}", f"{prefix}k:")
            with contextlib.suppress(StoreUnavailable):
                self._link.run("shrink", keys, (self._tokens[bucket], amount)).add_done_callback(_swallow)

    def detach(self, hold_id: str, account_id: str) -> None:
        """See Balances."""
        self.checkpoint(Checkpoint(hold_id, account_id, Millicredits(0), b""))
        self._live.pop(hold_id, None)

    async def credit(self, account_id: str, sequence: int, delta: Millicredits) -> bool:
        """See Balances."""
        bucket = bucket_of(account_id)
        for _ in range(ATTEMPTS):
            token, prefix = await self._serving(bucket), self._prefix[bucket]
            keys = (f"{prefix}epoch", f"{prefix}a:{account_id}")
            verdict = (await self._link.run("credit", keys, (token, sequence, delta)))[0]
            if verdict in (b"ok", b"gap"):
                return bool(verdict == b"ok")
            await self._make_up_for(verdict, bucket, None, account_id)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def read(self, account_id: str) -> Reading:
        """See Balances."""
        bucket = bucket_of(account_id)
        for _ in range(ATTEMPTS):
            await self._serving(bucket)
            found = await self._link.call("HMGET", f"{self._prefix[bucket]}a:{account_id}", "balance", "held", "seq")
            if found[0] is not None:
                return Reading(*(int(value) for value in found))
            await self._load_account(bucket, account_id)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    # -- Journal ----------------------------------------------------------------------------------

    async def pending(self, limit: int) -> list[Entry]:
        """The oldest unflushed charges of every bucket, at most `limit` from each.

        None of a bucket that is being rebuilt.
        """
        states = await self._everywhere(
            lambda prefix: ("GET", f"{prefix}epoch")
        )  # asked first, so never newer than what follows
        replies = await self._everywhere(lambda prefix: ("XRANGE", f"{prefix}log", "-", "+", "COUNT", limit))
        return [
            entry_of(bucket, item, state.decode().partition(":")[2])
            for bucket, (state, reply) in enumerate(zip(states, replies, strict=True))
            if state and not state.startswith((b"F:", b"R:"))
            for item in reply
        ]

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Forget charges that SQL has committed, and tell every process up to where."""
        by_bucket: dict[int, list[str]] = {}
        for entry in entries:
            number, position = entry.position.split(":")
            by_bucket.setdefault(int(number), []).append(position)
        calls = []
        for bucket, positions in by_bucket.items():
            calls.append(self._link.call("XDEL", f"{self._prefix[bucket]}log", *positions))
            calls.append(self._link.call("SET", f"{self._prefix[bucket]}flushed", positions[-1]))
        await asyncio.gather(*calls)

    async def refused(self, entries: Sequence[Entry]) -> None:
        """SQL knows another epoch of these buckets.

        Where Redis does not, SQL was exchanged: rebuild, or they wait for ever.
        """
        for bucket, epoch in sorted({(entry.bucket, entry.epoch) for entry in entries}):
            state = await self._link.call("GET", f"{self._prefix[bucket]}epoch")
            if state == f"{self._run_id}:{epoch}".encode():
                log.error(
                    "bucket %d: the database knows another epoch (was it restored from a backup?); rebuilding", bucket
                )
                await self._rebuild(bucket, force=True)

    async def depth(self) -> tuple[int, int]:
        """(unflushed charges, age of the oldest in milliseconds)."""
        lengths = await self._everywhere(lambda prefix: ("XLEN", f"{prefix}log"))
        if not sum(lengths):
            return 0, 0
        heads = await self._everywhere(lambda prefix: ("XRANGE", f"{prefix}log", "-", "+", "COUNT", 1))
        oldest = min(int(head[0][0].split(b"-")[0]) for head in heads if head)
        return sum(lengths), max(0, time.time_ns() // 1_000_000 - oldest)

    async def outstanding(self) -> Outstanding:
        """The holds of all processes, and of those that died."""
        parts = await asyncio.gather(
            *(self._link.run("holds", (f"{prefix}leases", prefix), ()) for prefix in self._prefix)
        )
        oldest = min((int(part[2]) for part in parts if int(part[2])), default=0)
        age = max(0, time.time_ns() // 1_000_000 - oldest) if oldest else 0
        return Outstanding(sum(int(part[0]) for part in parts), sum(int(part[1]) for part in parts), age)

    def rebuilt(self) -> int:
        """Buckets that this process rebuilt since the last time this was asked."""
        return self._rebuilder.take_rebuilt()

    def unflushed(self) -> int:
        """How many settled charges this process still keeps."""
        return sum(map(len, self._kept)) + sum(map(len, self._lost)) + len(self._undelivered)

    async def all_figures(self, only: Collection[str] | None = None) -> snapshots.Figures:
        """What Redis has: figures, the sum of live holds and of unflushed charges, each by account.

        Of `only` these accounts as one snapshot a bucket; of all no snapshot (billing/accounting/reconcile.py knows how
        to compare it).
        """
        return await (
            snapshots.everyone(self._link, self._rebuilder) if only is None else snapshots.some(self._link, only)
        )

    # -- Jobs ---------------------------------------------------------------------------------------

    async def reap(self) -> int:
        """Resolve holds whose lease is over, by their checkpoint; return how many.

        Not within 3 s of connecting: after a freeze every lease looks over until its owner has renewed it.
        """
        if not self._link.ready or time.monotonic() - self._connected_at < REAP_GRACE_SECONDS:
            return 0
        seconds, _ = await self._link.call("TIME")
        due = int(seconds) * 1_000
        found = await self._everywhere(
            lambda prefix: ("ZRANGEBYSCORE", f"{prefix}leases", "-inf", due, "LIMIT", 0, CHUNK)
        )
        reaped = 0
        for bucket, ids in enumerate(found):
            for hold_id in (raw.decode() for raw in ids):
                reaped += await self._reap_one(bucket, hold_id)
        return reaped

    async def lead(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold the named lease if it is free or ours already; only its holder runs the jobs."""
        if await self._link.call("SET", f"tollkeeper:{name}", owner, "NX", "PX", lease_ms):
            return True
        if await self._link.call("GET", f"tollkeeper:{name}") == owner.encode():
            await self._link.call("PEXPIRE", f"tollkeeper:{name}", lease_ms)
            return True
        return False

    async def rebuild(self) -> None:
        """Rebuild every bucket from SQL under the fence, whatever state it is in."""
        await asyncio.gather(*(self._rebuild_and_enter(bucket) for bucket in range(BUCKETS)))

    async def _rebuild_and_enter(self, bucket: int) -> None:
        while not await self._rebuild(bucket, force=True):
            await asyncio.sleep(POLL_SECONDS)
        await self._enter(bucket)

    # -- Calls that repair what was missing -----------------------------------------------------------

    async def _make_up_for(
        self, verdict: bytes, bucket: int, request: HoldRequest | None, account_id: str = ""
    ) -> None:
        """Do what a script asked for before it can be tried again."""
        if verdict == b"epoch":
            self._reenter(bucket)
        elif verdict == b"unknown":
            await self._load_account(bucket, request.account_id if request else account_id)
        elif verdict == b"unknown_key" and request is not None:
            await self._load_key(bucket, request)
        else:
            raise StoreUnavailable("redis", f"answered {verdict!r}")

    async def _load_account(self, bucket: int, account_id: str) -> None:
        posted = await self._ledger.posted(account_id)
        keys = (f"{self._prefix[bucket]}epoch", f"{self._prefix[bucket]}a:{account_id}")
        await self._link.run("load", keys, (self._tokens[bucket], "account", posted.balance, posted.sequence))

    async def _load_key(self, bucket: int, request: HoldRequest) -> None:
        limits, spent = request.limits, 0
        if limits.spend_limit is not None:
            spent = await self._ledger.key_spent(request.key_id, period_start_ms(limits.period))
        keys = (f"{self._prefix[bucket]}epoch", f"{self._prefix[bucket]}k:{request.key_id}")
        await self._link.run("load", keys, (self._tokens[bucket], "key", limits.period, spent))

    async def _serving(self, bucket: int) -> str:
        """The bucket's token, once it is open; waits no longer than the bound."""
        if self._open[bucket] and self._link.ready:
            return self._tokens[bucket]
        if not self._link.ready:
            raise StoreUnavailable("redis", "is not reachable")
        deadline = time.monotonic() + self._timeout
        while not self._open[bucket]:
            if time.monotonic() > deadline or not self._link.ready:
                raise StoreUnavailable("redis", "balances are being rebuilt")
            await asyncio.sleep(POLL_SECONDS)
        return self._tokens[bucket]

    async def _resolve(self, wanted: Due) -> Settled | Gone:
        """Send one settle; on success it is off the queue and kept until flushed."""
        request = wanted.request
        bucket = bucket_of(request.account_id)
        for _ in range(ATTEMPTS):
            token = await self._serving(bucket)
            reply = await self._link.run(*settle_call(self._prefix[bucket], token, wanted))
            verdict = reply[0]
            if verdict == b"ok":
                self._keep(bucket, wanted, reply[5])
                return Settled(int(reply[1]), int(reply[2]), int(reply[3]), int(reply[4]))
            if verdict == b"gone":
                # settled by a try whose reply was lost: kept like any other, in case Redis forgets it
                self._keep(bucket, wanted, await self._position_now() if wanted.record else b"")
                return Gone(int(reply[1]), int(reply[2]))
            if verdict == b"reaped":
                return await self._settle_rest(wanted, reply)
            await self._make_up_for(verdict, bucket, request)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def _settle_rest(self, wanted: Due, reply: Any) -> Settled | Gone:
        """We were cut off for longer than our lease, and taken for dead: charge what the reaper could not know of."""
        hold_id, charged = wanted.request.hold_id, int(reply[3])
        rest = self._instead(wanted, charged, reply[4])
        log.warning(
            "hold %s was resolved as an orphan's: %d millicredits of %d are still due",
            hold_id,
            max(0, wanted.due - charged),
            wanted.due,
        )
        if rest is None:
            return Gone(int(reply[1]), int(reply[2]))
        settled = await self._resolve(rest)
        return settled._replace(charged=charged + settled.charged) if isinstance(settled, Settled) else settled

    def _instead(self, wanted: Due, charged: int, booked: bytes) -> Due | None:
        """Put what is still due in the place of what was."""
        rest = rest_after_reaping(wanted, charged, booked)
        self._undelivered.pop(wanted.request.hold_id, None)
        self._live.pop(wanted.request.hold_id, None)
        if rest is not None:
            self._undelivered[rest.request.hold_id] = rest
        return rest

    async def _position_now(self) -> bytes:
        """A journal position that nothing written until now lies beyond."""
        seconds, microseconds = await self._link.call("TIME")
        return b"%d-0" % (int(seconds) * 1_000 + int(microseconds) // 1_000 + 1)

    def _keep(self, bucket: int, wanted: Due, position: bytes) -> None:
        """The resolution is delivered: keep a charge until it is flushed, and a release for as long as Redis may lose
        it.
        """
        hold_id = wanted.request.hold_id
        self._undelivered.pop(hold_id, None)
        live = self._live.pop(hold_id, None)
        if wanted.record:
            self._kept[bucket][hold_id] = (position.decode(), wanted)
        elif live is not None and live.checkpoint:
            self._released.append((time.monotonic(), wanted))

    # -- Background loops --------------------------------------------------------------------------

    async def _renew_loop(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3_000)
            with contextlib.suppress(StoreUnavailable):
                await self._renew()

    async def _renew(self) -> None:
        ids: dict[int, list[str]] = {}
        for hold_id, live in self._live.items():
            ids.setdefault(bucket_of(live.request.account_id), []).append(hold_id)
        for bucket, wanted in ids.items():
            keys = (f"{self._prefix[bucket]}epoch", f"{self._prefix[bucket]}leases")
            for start in range(0, len(wanted), CHUNK):
                part = wanted[start : start + CHUNK]
                await self._link.run("renew", keys, (self._tokens[bucket], self._lease_ms, *part))

    async def _deliver_loop(self) -> None:
        while True:
            await asyncio.sleep(DELIVER_SECONDS)
            if self._undelivered and self._link.ready:
                with contextlib.suppress(StoreUnavailable):
                    await self._deliver()

    async def _deliver(self) -> None:
        """Resolve what could not be resolved when it was decided."""
        for wanted in list(self._undelivered.values()):
            if self._open[bucket_of(wanted.request.account_id)]:
                await self._resolve(wanted)

    async def _trim_loop(self) -> None:
        """Let go of charges that are known to be in SQL; learn of a new epoch where no request would tell us."""
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            while self._released and self._released[0][0] < time.monotonic() - RELEASED_SECONDS:
                self._released.popleft()
            in_use = {bucket_of(live.request.account_id) for live in self._live.values()}
            for bucket, kept in enumerate(self._kept):
                if self._open[bucket] and (kept or bucket in in_use):
                    with contextlib.suppress(StoreUnavailable):
                        await self._trim_bucket(bucket, kept)

    async def _trim_bucket(self, bucket: int, kept: dict[str, tuple[str, Due]]) -> None:
        prefix, token = self._prefix[bucket], self._tokens[bucket]
        asked = self._link.call("GET", f"{prefix}flushed")
        state = await self._link.call("GET", f"{prefix}epoch")  # asked second: while it is ours, so was the mark
        mark = await asked
        if state != token.encode():
            self._reenter(bucket)
        elif mark:
            self._trim(kept, _position(mark.decode()))

    @staticmethod
    def _trim(kept: dict[str, tuple[str, Due]], flushed: tuple[int, int]) -> None:
        done = [hold_id for hold_id, (position, _) in kept.items() if _position(position) <= flushed]
        for hold_id in done:
            del kept[hold_id]

    # -- Epochs: entering, rebuilding, restoring ------------------------------------------------------

    async def _connected(self, run_id: str) -> None:
        """The link reached a server: find every bucket's state, rebuild what does not fit this server."""
        self._run_id, self._connected_at = run_id, time.monotonic()
        self._open = [False] * BUCKETS
        self._end(self._entering.values())
        self._entering.clear()
        entering = [asyncio.create_task(self._enter(bucket)) for bucket in range(BUCKETS)]
        try:
            await asyncio.gather(*entering)
        finally:
            self._end(
                entering
            )  # when the link was lost one has said so, and the others must not go on over the next one
        for hold_id, live in list(self._live.items()):  # what could not be told while the link was down
            if live.checkpoint:
                self.checkpoint(
                    Checkpoint(hold_id, live.request.account_id, Millicredits(live.checkpoint), live.record)
                )
        await self._renew()

    def _end(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Cancel each once, and wait for them at `close()`: aiosqlite never ends a close that is cancelled a second
        time.
        """
        for task in tasks:
            if task.done():
                continue
            if not task.cancelling():
                task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _reenter(self, bucket: int) -> None:
        """A script said that our token is stale: close the bucket here until we know the new one."""
        self._open[bucket] = False
        task = self._entering.get(bucket)
        if task is None or task.done():
            self._entering[bucket] = asyncio.create_task(self._enter_quietly(bucket))

    async def _enter_quietly(self, bucket: int) -> None:
        while (
            self._link.ready
        ):  # SQL may be away while Redis is not; when the link comes back, every bucket is entered anew
            try:
                await self._enter(bucket)
            except StoreUnavailable as error:
                log.warning("bucket %d cannot be entered now: %s", bucket, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _enter(self, bucket: int) -> None:
        """Return once the bucket is open to us. Raises StoreUnavailable when the link is lost."""
        while True:
            raw = await self._link.call("GET", f"{self._prefix[bucket]}epoch")
            state = raw.decode() if raw else ""
            token = state.removeprefix("R:")
            if not token.startswith(f"{self._run_id}:"):
                await self._try_rebuild(bucket)
                continue
            if token != self._tokens[bucket]:
                if self._tokens[bucket]:
                    await self._restore(bucket, token)
                self._tokens[bucket] = token
            if state == token:
                self._open[bucket] = True
                return
            await self._try_rebuild(bucket)  # waits, unless the one that was at it has died

    async def _try_rebuild(self, bucket: int) -> None:
        try:
            if not await self._rebuild(bucket):
                await asyncio.sleep(POLL_SECONDS)
        except StoreUnavailable as error:
            if error.store == "redis":
                raise
            log.warning("bucket %d cannot be rebuilt now: %s", bucket, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _rebuild(self, bucket: int, *, force: bool = False) -> bool:
        return await self._rebuilder.rebuild(bucket, self._run_id, partial(self._recover_ours, bucket), force=force)

    async def _recover_ours(self, bucket: int, token: str) -> None:
        """Put back what is ours while the others do the same, then give them the rest of the grace time."""
        started = time.monotonic()
        if self._tokens[bucket]:
            await self._restore(bucket, token)
        self._tokens[bucket] = token
        await asyncio.sleep(max(0.0, GRACE_SECONDS - (time.monotonic() - started)))

    async def _restore(self, bucket: int, token: str) -> None:
        """Data may be lost: put back live holds, and settle again the charges that SQL does not have.

        Survivors were flushed before the bucket began to recover, so SQL knows exactly what survived. May fail half-way
        and be run again: what is done is off the list, or known by its tombstone.
        """
        lost = self._lost[bucket]
        lost.update(
            {
                due.request.hold_id: due
                for due in self._undelivered.values()
                if bucket_of(due.request.account_id) == bucket
            }
        )
        lost.update(
            {due.request.hold_id: due for _, due in self._released if bucket_of(due.request.account_id) == bucket}
        )
        lost.update({hold_id: due for hold_id, (_, due) in self._kept[bucket].items()})
        self._kept[bucket].clear()
        for hold_id in await self._ledger.charged_ids(lost):
            lost.pop(hold_id, None)
            self._undelivered.pop(hold_id, None)
            self._live.pop(hold_id, None)
        for hold_id, due in list(lost.items()):
            reply = await self._resettle(bucket, token, due)
            if reply[0] == b"reaped":
                self._instead(due, int(reply[3]), reply[4])
                lost.pop(hold_id, None)
                continue
            position = reply[5] if reply[0] == b"ok" else await self._position_now()
            self._keep(bucket, due, position)
            lost.pop(hold_id, None)
        # also those whose charge was decided meanwhile: it can only be delivered to a hold that is there
        for live in [one for one in self._live.values() if bucket_of(one.request.account_id) == bucket]:
            await self._link.run(*rehold_call(self._prefix[bucket], token, live))

    async def _resettle(self, bucket: int, token: str, due: Due) -> Any:
        reply = await self._link.run(*resettle_call(self._prefix[bucket], token, due))
        if reply[0] not in (b"ok", b"gone", b"reaped"):
            raise StoreUnavailable("redis", "was rebuilt again meanwhile")
        return reply

    async def _reap_one(self, bucket: int, hold_id: str) -> int:
        prefix = self._prefix[bucket]
        account_id = ((await self._link.call("HGET", f"{prefix}h:{hold_id}", "a")) or b"-").decode()
        reply = await self._link.run(*reap_call(prefix, self._tokens[bucket], account_id, hold_id))
        if reply[0] == b"epoch":
            self._reenter(bucket)
        if reply[0] == b"ok":
            log.warning(
                "orphaned hold %s of %s resolved: %s millicredits charged", hold_id, account_id, reply[1].decode()
            )
        return int(reply[0] == b"ok")

    async def _everywhere(self, command: Any) -> list[Any]:
        return await asyncio.gather(*(self._link.call(*command(prefix)) for prefix in self._prefix))


def _position(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)


def _swallow(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
