"""The Redis store: any number of processes and machines; one script call a hold, one a settle.

Keys of bucket 17 share a slot by their tag: {b17}:a:<account> {b17}:h:<hold> {b17}:k:<key> {b17}:leases
{b17}:s:<budget> {b17}:log {b17}:t:<hold> (tombstones) {b17}:epoch {b17}:lock:<run id> {b17}:flushed.

Every script call carries the bucket's token; where it does not fit, nothing is admitted (I9) and the bucket is rebuilt
from SQL: theory at the head of rebuild.py, this process's part in epochs.py. What this process must not lose is in
own_holds.py. Holding and settling are single steps of Lua (lua/hold.lua: I1; lua/common.lua `resolve`: I2).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from billing.balances.redis import snapshots
from billing.balances.redis.epochs import POLL_SECONDS, Epochs, cannot_open
from billing.balances.redis.journal import (
    PREFIXES,
    acknowledge_entries,
    journal_depth,
    outstanding_holds,
    pending_entries,
    position_now,
)
from billing.balances.redis.missing import Missing
from billing.balances.redis.own_holds import OwnHolds
from billing.balances.redis.reaping import Reaper, take_lead
from billing.balances.redis.rebuild import Rebuilder, chunks
from billing.balances.redis.script_calls import (
    LOOK,
    RESUME,
    LiveHold,
    Resolution,
    held_reply,
    hold_call,
    refused_reply,
    release_of,
    settle_call,
)
from billing.balances.redis.servers.by_url import open_servers
from billing.balances.redis.servers.connection import STALE, Elsewhere, RedisConnection, answer_to
from billing.ledger.ledger import Ledger
from billing.money.amounts import Millicredits
from billing.money.buckets import BUCKETS, bucket_of
from billing.money.errors import StoreUnavailable
from billing.money.holds import Checkpoint, Entry, Gone, Held, HoldRequest, Outstanding, Reading, Refused, Settled

log = logging.getLogger("tollkeeper.redis")

DELIVER_SECONDS = 0.1
TRIM_SECONDS = 0.25
ATTEMPTS = 6
CHUNK = 500


class RedisBalances:
    """Balances and ChargeJournal on Redis. Call `open()` first; every await is bounded."""

    def __init__(self, url: str, ledger: Ledger, timeout_seconds: int | float, lease_ms: int) -> None:
        """`timeout_seconds` bounds every call; past it StoreUnavailable is raised."""
        self._timeout, self._lease_ms = timeout_seconds, lease_ms
        self.servers = open_servers(url, timeout_seconds, self._connected, self._moved)
        self._of = self.servers.of
        self._own = OwnHolds()
        self._rebuilder = Rebuilder(self.servers, ledger, lease_ms)
        self._epochs = Epochs(self.servers, self._rebuilder, self._own, ledger, self._opened)
        self._missing = Missing(self.servers, self._epochs, ledger)
        self._reaper = Reaper(self.servers, self._epochs)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, wait_seconds: int | float = 10) -> None:
        """Connect, and wait until every bucket serves.

        A rebuilding takes as long as there are accounts: only `wait_seconds` without progress raise StoreUnavailable.
        Of a cluster some buckets are enough then.
        """
        self.servers.start()
        loops = (self._renew_loop, self._deliver_loop, self._trim_loop, self._epochs.verify_loop)
        self._tasks = [asyncio.create_task(loop()) for loop in loops]
        progress, deadline = (0, 0), time.monotonic() + wait_seconds
        while not all(self._epochs.open):
            await asyncio.sleep(POLL_SECONDS)
            before, progress = progress, (sum(self._epochs.open), self._rebuilder.progress)
            if progress != before:
                deadline = time.monotonic() + wait_seconds
            elif time.monotonic() > deadline:
                if self.servers.divided and any(self._epochs.open):
                    log.warning("%s", self.away())
                    return
                reached, failure = self.servers.any_ready, self.servers.failure
                await self.close()
                raise cannot_open(reached, self._epochs.failure, failure)

    async def close(self) -> None:
        """Deliver what can be delivered, then disconnect."""
        if self.servers.any_ready and self._own.undelivered:
            await self._deliver()
        self._epochs.end(self._tasks)
        self._epochs.end_entering()
        await self._epochs.ended()
        await self.servers.close()
        await self._epochs.ended()

    async def ping(self) -> None:
        """Raise StoreUnavailable unless every bucket serves now; on a cluster, unless any does (see `away`)."""
        away = self.buckets_away()
        if away == BUCKETS or (away and not self.servers.divided):
            reached = self.servers.any_ready
            raise StoreUnavailable("redis", "balances are being rebuilt" if reached else "is not reachable")

    def buckets_away(self) -> int:
        """See Store."""
        return BUCKETS - sum(map(self._epochs.serves, range(BUCKETS)))

    def away(self) -> str:
        """See Store."""
        away = self.buckets_away()
        if away in (0, BUCKETS) or not self.servers.divided:
            return ""
        return (
            f"{away} of {BUCKETS} buckets of balances are not served: their node of the cluster is away, or they move"
        )

    # -- Balances ---------------------------------------------------------------------------------

    async def hold(self, request: HoldRequest) -> Held | Refused:
        """See Balances."""
        bucket = bucket_of(request.account_id)
        for _ in range(ATTEMPTS):
            token = await self._epochs.serving(bucket, self._timeout)
            try:
                reply = await self._of[bucket].run(*hold_call(PREFIXES[bucket], token, request))
            except Elsewhere:
                reply = STALE
            except StoreUnavailable as error:
                if error.in_doubt:
                    self._own.undelivered[request.hold_id] = release_of(request)
                raise
            except asyncio.CancelledError:
                self._own.undelivered[request.hold_id] = release_of(request)
                raise
            if (found := await self._held(reply, bucket, request)) is not None:
                return found
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def look(self, request: HoldRequest) -> Refused | None:
        """See Balances."""
        bucket = bucket_of(request.account_id)
        for _ in range(ATTEMPTS):
            token = await self._epochs.serving(bucket, self._timeout)
            reply = await answer_to(self._of[bucket].run(*hold_call(PREFIXES[bucket], token, request, LOOK)))
            if reply[0] in (b"ok", b"refused"):
                return refused_reply(reply) if reply[0] == b"refused" else None
            await self._missing.make_up_for(reply[0], bucket, request.account_id, request)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def resume(self, request: HoldRequest) -> Held | Refused | Gone:
        """See Balances. In doubt nothing is released: whoever takes it on next finds it, or its lease ends."""
        bucket = bucket_of(request.account_id)
        for _ in range(ATTEMPTS):
            token = await self._epochs.serving(bucket, self._timeout)
            reply = await answer_to(self._of[bucket].run(*hold_call(PREFIXES[bucket], token, request, RESUME)))
            if reply[0] == b"gone":
                return Gone(int(reply[1]), int(reply[2]))
            if (found := await self._held(reply, bucket, request)) is not None:
                return found
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def _held(self, reply: Any, bucket: int, request: HoldRequest) -> Held | Refused | None:
        """Read the answer to a hold; None: what was missing is there now, so try again."""
        if reply[0] == b"ok":
            self._own.live[request.hold_id] = LiveHold(request, 0, request.record, time.monotonic())
            return held_reply(reply)
        if reply[0] == b"refused":
            return refused_reply(reply)
        await self._missing.make_up_for(reply[0], bucket, request.account_id, request)
        return None

    async def wait_persisted(self, hold_id: str) -> None:
        """See Balances: what Redis acknowledged is as persistent as its `appendfsync` says; the rest leaves now."""
        live = self._own.live.get(hold_id)
        if live is None:
            return
        account_id = live.request.account_id
        bucket = bucket_of(account_id)
        if not live.told:
            await self._epochs.serving(bucket, self._timeout)
            self.checkpoint(Checkpoint(hold_id, account_id, Millicredits(live.checkpoint), live.record))
            if not self._own.live.get(hold_id, live).told:
                raise StoreUnavailable("redis", "is not reachable")
        self._of[bucket].push()

    async def settle(
        self, hold_id: str, account_id: str, due: Millicredits, record: bytes, tokens: int = -1
    ) -> Settled | Gone:
        """See Balances. When it raises StoreUnavailable the resolution is queued here and delivered later."""
        live = self._own.live.get(hold_id)
        if live is None:
            reading = await self.read(account_id)
            return Gone(reading.balance, reading.held)
        wanted = Resolution(live.request, due, record, tokens)
        self._own.undelivered[hold_id] = wanted
        return await self._resolve(wanted)

    async def release(self, hold_id: str, account_id: str) -> Settled | Gone:
        """See Balances."""
        return await self.settle(hold_id, account_id, Millicredits(0), b"", 0)

    def checkpoint(self, mark: Checkpoint, *, at_once: bool = False) -> None:
        """See Balances."""
        live = self._own.live.get(mark.hold_id)
        if live is None:
            return
        bucket, told = bucket_of(mark.account_id), False
        if self._epochs.serves(bucket):
            prefix = PREFIXES[bucket]
            keys = (f"{prefix}epoch", f"{prefix}h:{mark.hold_id}")
            with contextlib.suppress(StoreUnavailable):  # the queue is full: told when it reconnects
                self._of[bucket].tell("mark", keys, (self._epochs.tokens[bucket], mark.amount, mark.record))
                told = True
            if at_once:
                self._of[bucket].push()
        record = mark.record or live.record
        self._own.live[mark.hold_id] = LiveHold(live.request, mark.amount, record, live.since, told)

    def shrink(self, hold_id: str, account_id: str, amount: Millicredits) -> None:
        """See Balances."""
        live = self._own.live.get(hold_id)
        if live is None or amount >= live.request.amount:
            return
        self._own.live[hold_id] = live._replace(request=live.request._replace(amount=amount))
        bucket = bucket_of(account_id)
        if self._epochs.serves(bucket):
            prefix = PREFIXES[bucket]
            keys = (f"{prefix}epoch", f"{prefix}a:{account_id}", f"{prefix}h:{hold_id}", f"{prefix}k:")
            with contextlib.suppress(StoreUnavailable):
                self._of[bucket].tell("shrink", keys, (self._epochs.tokens[bucket], amount))

    def detach(self, hold_id: str, account_id: str) -> None:
        """See Balances."""
        self.checkpoint(Checkpoint(hold_id, account_id, Millicredits(0), b""), at_once=True)
        self.forget(hold_id)

    def forget(self, hold_id: str) -> None:
        """See Balances."""
        self._own.live.pop(hold_id, None)

    async def credit(self, account_id: str, sequence: int, delta: Millicredits) -> bool:
        """See Balances."""
        bucket = bucket_of(account_id)
        for _ in range(ATTEMPTS):
            token, prefix = await self._epochs.serving(bucket, self._timeout), PREFIXES[bucket]
            keys = (f"{prefix}epoch", f"{prefix}a:{account_id}")
            verdict = (await answer_to(self._of[bucket].run("credit", keys, (token, sequence, delta))))[0]
            if verdict in (b"ok", b"gap"):
                return bool(verdict == b"ok")
            await self._missing.make_up_for(verdict, bucket, account_id)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def read(self, account_id: str) -> Reading:
        """See Balances."""
        bucket = bucket_of(account_id)
        for _ in range(ATTEMPTS):
            await self._epochs.serving(bucket, self._timeout)
            name = f"{PREFIXES[bucket]}a:{account_id}"
            found = await answer_to(self._of[bucket].call("HMGET", name, "balance", "held", "seq"))
            if found is STALE:
                self._epochs.reenter(bucket)
                continue
            if found[0] is not None:
                return Reading(*(int(value) for value in found))
            await self._missing.load_account(bucket, account_id)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    # -- Journal ----------------------------------------------------------------------------------

    async def pending(self, limit: int) -> list[Entry]:
        """See ChargeJournal: at most `limit` from each bucket, none of a bucket that is being rebuilt."""
        return await pending_entries(self.servers, limit)

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """See ChargeJournal."""
        await acknowledge_entries(self.servers, entries)

    async def refused(self, entries: Sequence[Entry]) -> None:
        """Rebuild buckets of which SQL knows another epoch and Redis does not: SQL was exchanged.

        Or these entries wait for ever.
        """
        for bucket, epoch in sorted({(entry.bucket, entry.epoch) for entry in entries}):
            await self._epochs.rebuild_unknown(bucket, epoch)

    async def depth(self) -> tuple[int, int]:
        """See ChargeJournal."""
        depth = await journal_depth(self.servers)
        if self.buckets_away():  # while one is rebuilt, its owners have charges that it does not have yet
            raise StoreUnavailable("redis", "some of its balances are away, or being rebuilt")
        return depth

    async def depth_within_reach(self) -> tuple[int, int]:
        """See Store."""
        return await journal_depth(self.servers, within_reach=True)

    async def outstanding(self) -> Outstanding:
        """Return the sum of the holds of all processes, and of those that died."""
        return await outstanding_holds(self.servers)

    def rebuilt(self) -> int:
        """Return the number of buckets that this process rebuilt since the last time this was asked."""
        return self._rebuilder.take_rebuilt()

    async def all_figures(self, only: Collection[str] | None = None) -> snapshots.Figures:
        """Return figures, the sum of live holds and of unflushed charges, each by account, as Redis has them.

        Of `only` these accounts as one snapshot a bucket; of all no snapshot (billing/accounting/reconcile.py knows how
        to compare it).
        """
        return await (snapshots.everyone(self.servers) if only is None else snapshots.some(self.servers, only))

    # -- Jobs ---------------------------------------------------------------------------------------

    async def reap(self) -> int:
        """Resolve holds whose lease is over, by their checkpoint; return how many."""
        return await self._reaper.reap()

    async def lead(self, name: str, owner: str, lease_ms: int) -> bool:
        """Hold the named lease if it is free or ours already; only its holder runs the jobs."""
        return await take_lead(self.servers, name, owner, lease_ms)

    async def rebuild(self) -> None:
        """Rebuild every bucket from SQL under the fence, whatever state it is in."""
        await asyncio.gather(*(self._epochs.rebuild_and_enter(bucket) for bucket in range(BUCKETS)))

    # -- Resolving ------------------------------------------------------------------------------------

    async def _resolve(self, wanted: Resolution) -> Settled | Gone:
        """Send one settle; on success it is off the queue and kept until flushed."""
        request = wanted.request
        bucket = bucket_of(request.account_id)
        for _ in range(ATTEMPTS):
            token = await self._epochs.serving(bucket, self._timeout)
            try:
                reply = await self._of[bucket].run(*settle_call(PREFIXES[bucket], token, wanted))
            except Elsewhere:
                reply = STALE
            verdict = reply[0]
            if verdict == b"ok":
                self._own.keep(bucket, wanted, reply[5])
                return Settled(int(reply[1]), int(reply[2]), int(reply[3]), int(reply[4]))
            if verdict == b"gone":
                # settled by a try whose reply was lost: kept like any other, in case Redis forgets it
                position = await position_now(self._of[bucket], bucket) if wanted.record else b""
                self._own.keep(bucket, wanted, position)
                return Gone(int(reply[1]), int(reply[2]))
            if verdict == b"reaped":
                return await self._settle_rest(wanted, reply)
            await self._missing.make_up_for(verdict, bucket, request.account_id, request)
        raise StoreUnavailable("redis", "balances keep being rebuilt")

    async def _settle_rest(self, wanted: Resolution, reply: Any) -> Settled | Gone:
        """Charge what the reaper could not know of: we were cut off for longer than our lease, and taken for dead."""
        hold_id, charged = wanted.request.hold_id, int(reply[3])
        rest = self._own.replace_by_rest(wanted, charged, reply[4])
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

    # -- Background loops --------------------------------------------------------------------------

    def _connected(self, connection: RedisConnection) -> None:
        """Enter every bucket of the server just reached."""
        self._epochs.enter_all(self.servers.buckets_of(connection))

    def _moved(self, buckets: list[int]) -> None:
        """Enter buckets that another node of the cluster serves now."""
        self._epochs.enter_all(buckets)

    async def _opened(self, bucket: int) -> None:
        """Tell a bucket what it could not be told before."""
        ours = self._own.live_in(bucket)
        for live in ours:
            if live.checkpoint:
                self.checkpoint(
                    Checkpoint(
                        live.request.hold_id, live.request.account_id, Millicredits(live.checkpoint), live.record
                    )
                )
        await self._renew(bucket, [live.request.hold_id for live in ours])

    async def _renew_loop(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3_000)
            ids: dict[int, list[str]] = {}
            for hold_id, live in self._own.live.items():
                ids.setdefault(bucket_of(live.request.account_id), []).append(hold_id)
            for bucket, wanted in ids.items():
                with contextlib.suppress(StoreUnavailable):
                    await self._renew(bucket, wanted)

    async def _renew(self, bucket: int, ids: Sequence[str]) -> None:
        keys = (f"{PREFIXES[bucket]}epoch", f"{PREFIXES[bucket]}leases")
        for part in chunks(ids, CHUNK):
            await self._of[bucket].run("renew", keys, (self._epochs.tokens[bucket], self._lease_ms, *part))

    async def _deliver_loop(self) -> None:
        while True:
            await asyncio.sleep(DELIVER_SECONDS)
            if self._own.undelivered and self.servers.any_ready:
                await self._deliver()

    async def _deliver(self) -> None:
        """Resolve what could not be resolved when it was decided."""
        for wanted in list(self._own.undelivered.values()):
            if self._epochs.serves(bucket_of(wanted.request.account_id)):
                with contextlib.suppress(StoreUnavailable):
                    await self._resolve(wanted)

    async def _trim_loop(self) -> None:
        """Let go of charges that are known to be in SQL; learn of a new epoch where no request would tell us."""
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            self._own.trim_released()
            live = {bucket_of(one.request.account_id) for one in self._own.live.values()}
            for bucket in range(BUCKETS):
                if self._epochs.open[bucket] and self._own.in_use(bucket, live):
                    with contextlib.suppress(StoreUnavailable):
                        await self._trim_bucket(bucket)

    async def _trim_bucket(self, bucket: int) -> None:
        prefix, token = PREFIXES[bucket], self._epochs.tokens[bucket]
        asked = self._of[bucket].call("GET", f"{prefix}flushed")
        # asked second: while it is ours, so was the mark
        state = await answer_to(self._of[bucket].call("GET", f"{prefix}epoch"))
        mark = await answer_to(asked)
        if state != token.encode() or mark is STALE:
            self._epochs.reenter(bucket)
        elif mark:
            self._own.trim(bucket, mark.decode())
