"""The state of every bucket as this process sees it: entering it, rebuilding it, putting back what is ours.

The theory of epochs is at the head of rebuild.py. A bucket is `open` here while its token is the one that we know; a
script that answers {'epoch'} closes it (I9: nothing is admitted on a token that does not fit) until it is entered anew.
So does a node of a cluster that serves the bucket no longer.

A token that fits its server is believed only while SQL knows its epoch: of two servers that take each other's place
one may come back with what it had, and still be the process that it was (`verify`).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from billing.balances.redis.journal import PREFIXES, position_now
from billing.balances.redis.own_holds import OwnHolds
from billing.balances.redis.rebuild import Rebuilder, nonce_of, state_of
from billing.balances.redis.script_calls import rehold_call, resettle_call
from billing.balances.redis.servers.connection import Elsewhere
from billing.balances.redis.servers.serving import Servers
from billing.ledger.flush import raise_if_cancelled
from billing.ledger.ledger import Ledger
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable

log = logging.getLogger("tollkeeper.redis")

GRACE_SECONDS = 0.4
VERIFY_SECONDS = 1.0
POLL_SECONDS = 0.03
RETRY_SECONDS = 0.2
ANOTHER_EPOCH = (
    "the database knows another epoch (was it restored from a backup, or this server out of the way?); rebuilding"
)


class Epochs:
    """Tokens of one process, and the tasks that find them."""

    def __init__(
        self,
        servers: Servers,
        rebuilder: Rebuilder,
        own: OwnHolds,
        ledger: Ledger,
        on_open: Callable[[int], Awaitable[None]],
    ) -> None:
        """Nothing is open before a server is reached; `on_open` is awaited for each bucket that has opened."""
        self._servers, self._rebuilder, self._own, self._ledger = servers, rebuilder, own, ledger
        self._on_open = on_open
        self._of = servers.of
        self.tokens: list[str] = [""] * BUCKETS
        self.open: list[bool] = [False] * BUCKETS
        self.opened_at = [0.0] * BUCKETS
        """When each was opened last (monotonic seconds)."""
        self.failure: StoreUnavailable | None = None
        """What kept a bucket from being rebuilt last."""
        self._doubted: set[int] = set()
        """Buckets under a token of ours that SQL did not know."""
        self._entering: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def serving(self, bucket: int, timeout_seconds: int | float) -> str:
        """Return the bucket's token once it is open. Raises StoreUnavailable, at the bound (I9) or without a server."""
        if self.open[bucket] and self._of[bucket].ready:
            return self.tokens[bucket]
        if not self._of[bucket].ready:
            raise StoreUnavailable("redis", "is not reachable")
        deadline = time.monotonic() + timeout_seconds
        while not self.open[bucket]:
            if time.monotonic() > deadline or not self._of[bucket].ready:
                raise StoreUnavailable("redis", "balances are being rebuilt")
            await asyncio.sleep(POLL_SECONDS)
        return self.tokens[bucket]

    def serves(self, bucket: int) -> bool:
        """Return whether the bucket serves now."""
        return self.open[bucket] and self._of[bucket].ready

    def enter_all(self, buckets: Iterable[int]) -> None:
        """Enter buckets of a server just reached, or of which another server is reached now."""
        for bucket in buckets:
            self.open[bucket] = False
            self.end(filter(None, (self._entering.pop(bucket, None),)))  # it must not go on over the next connection
            if self._of[bucket].ready:
                self._entering[bucket] = asyncio.create_task(self._enter_quietly(bucket))

    def reenter(self, bucket: int) -> None:
        """Close a bucket whose token a script called stale, until we know the new one."""
        self.open[bucket] = False
        task = self._entering.get(bucket)
        if task is None or task.done():
            self._entering[bucket] = asyncio.create_task(self._enter_quietly(bucket))

    async def enter(self, bucket: int) -> None:
        """Return once the bucket is open to us. Raises StoreUnavailable when the connection is lost."""
        while True:
            connection = self._of[bucket]
            state = await state_of(connection, bucket)
            token = state.removeprefix("R:")
            if not token.startswith(f"{connection.run_id}:"):
                await self._try_rebuild(bucket)
                continue
            if token != self.tokens[bucket] or bucket in self._doubted:
                if not await self._is_known(bucket, token):
                    if await state_of(connection, bucket) == state:  # else it was fenced between the two looks
                        log.error("bucket %d of %s: %s", bucket, connection.address, ANOTHER_EPOCH)
                        await self._try_rebuild(bucket, state)
                    continue
                if token != self.tokens[bucket]:
                    if self.tokens[bucket]:
                        await self._restore(bucket, token)
                    self.tokens[bucket] = token
                self._doubted.discard(bucket)
            if state == token:
                self.open[bucket], self.opened_at[bucket] = True, time.monotonic()
                return
            await self._try_rebuild(bucket)  # waits, unless the one that was at it has died

    async def verify_loop(self) -> None:
        """Verify for ever."""
        failing = False
        while True:
            await asyncio.sleep(VERIFY_SECONDS)
            try:
                await self.verify()
                failing = False
            except StoreUnavailable:
                continue
            except Exception:
                raise_if_cancelled()
                # SQL that is being restored refuses where it is not away, and is what is looked for here
                if not failing:
                    log.exception("epochs cannot be compared with SQL's; it is tried again")
                failing = True

    async def verify(self) -> None:
        """Leave a server under whose tokens we serve while SQL knows others: somebody has rebuilt elsewhere.

        Asked second, the server has a fence by then if it is the one that is rebuilt. Raises StoreUnavailable.
        """
        ours, doubted = list(self.tokens), list[int]()
        known = await self._ledger.epochs()
        for bucket, token in enumerate(ours):
            if not self.serves(bucket) or known.get(bucket) == nonce_of(token):
                continue
            try:
                state = await state_of(self._of[bucket], bucket)
            except StoreUnavailable as error:  # on its way to another node, or just lost: the others are looked at
                self.failure = error
                continue
            if token != self.tokens[bucket]:
                continue  # it was rebuilt while SQL and its server were asked
            if state != token:
                self.reenter(bucket)
            else:
                doubted.append(bucket)
        self._doubted.update(doubted)
        for connection in {self._of[bucket] for bucket in doubted}:
            connection.drop("SQL knows other epochs than it serves under; another may be the primary now")

    async def _is_known(self, bucket: int, token: str) -> bool:
        return (await self._ledger.epochs()).get(bucket) == nonce_of(token)

    async def rebuild(self, bucket: int, *, force: bool = False, instead_of: str = "") -> bool:
        """Rebuild a bucket from SQL, one that fits its server only by `force` or if its state is still `instead_of`;
        False when another process is at it.
        """
        recover = partial(self._recover_ours, bucket)
        return await self._rebuilder.rebuild(bucket, recover, force=force, instead_of=instead_of)

    async def rebuild_unknown(self, bucket: int, epoch: str) -> None:
        """Rebuild a bucket that is open under an epoch whose charges SQL has refused."""
        server = self._of[bucket]
        state = await state_of(server, bucket)
        if state == f"{server.run_id}:{epoch}":
            log.error("bucket %d of %s: %s", bucket, server.address, ANOTHER_EPOCH)
            await self.rebuild(bucket, instead_of=state)

    async def rebuild_and_enter(self, bucket: int) -> None:
        """Rebuild a bucket whatever state it is in, and return once it is open to us."""
        while not await self.rebuild(bucket, force=True):  # noqa: ASYNC110 - another process may end the wait
            await asyncio.sleep(POLL_SECONDS)
        await self.enter(bucket)

    def end(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Cancel each once, and wait for them at `ended()`: aiosqlite never ends a close that is cancelled twice."""
        for task in tasks:
            if task.done():
                continue
            if not task.cancelling():
                task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def end_entering(self) -> None:
        """Cancel whatever enters a bucket."""
        self.end(self._entering.values())

    async def ended(self) -> None:
        """Wait for what was cancelled."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _enter_quietly(self, bucket: int) -> None:
        # SQL may be away while Redis is not; when the connection comes back, every bucket is entered anew
        while self._of[bucket].ready:
            try:
                await self.enter(bucket)
                await self._on_open(bucket)
                if self.open[bucket]:  # else its token went stale meanwhile, and whoever saw that left it to us
                    return
            except Elsewhere as error:  # on its way to another node, or there already
                self.failure = error
                await asyncio.sleep(POLL_SECONDS)
            except StoreUnavailable as error:
                log.warning("bucket %d cannot be entered now: %s", bucket, error)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                raise_if_cancelled()
                # SQL that is being restored refuses where it is not away: the bucket must not stay closed for it
                log.exception("bucket %d cannot be entered now", bucket)
                await asyncio.sleep(RETRY_SECONDS)

    async def _try_rebuild(self, bucket: int, instead_of: str = "") -> None:
        try:
            if not await self.rebuild(bucket, instead_of=instead_of):
                await asyncio.sleep(POLL_SECONDS)
        except StoreUnavailable as error:
            self.failure = error
            if error.store == "redis":
                raise
            log.warning("bucket %d cannot be rebuilt now: %s", bucket, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _recover_ours(self, bucket: int, token: str) -> None:
        """Put back what is ours while the others do the same, then give them the rest of the grace time."""
        started = time.monotonic()
        if self.tokens[bucket]:
            await self._restore(bucket, token)
        self.tokens[bucket] = token
        await asyncio.sleep(max(0.0, GRACE_SECONDS - (time.monotonic() - started)))

    async def _restore(self, bucket: int, token: str) -> None:
        """Put back live holds, and settle again the charges that SQL does not have: data may be lost.

        Survivors were flushed before the bucket began to recover, so SQL knows exactly what survived. May fail half-way
        and be run again: what is done is off the list, or known by its tombstone.
        """
        own, prefix, connection = self._own, PREFIXES[bucket], self._of[bucket]
        lost = own.lose(bucket)
        for hold_id in await self._ledger.charged_ids(lost):
            lost.pop(hold_id, None)
            own.drop(hold_id)
        for hold_id, wanted in list(lost.items()):
            reply = await connection.run(*resettle_call(prefix, token, wanted))
            if reply[0] not in (b"ok", b"gone", b"reaped"):
                raise StoreUnavailable("redis", "was rebuilt again meanwhile")
            if reply[0] == b"reaped":
                own.replace_by_rest(wanted, int(reply[3]), reply[4])
                lost.pop(hold_id, None)
                continue
            position = reply[5] if reply[0] == b"ok" else await position_now(connection, bucket)
            own.keep(bucket, wanted, position)
            lost.pop(hold_id, None)
        # also those whose charge was decided meanwhile: it can only be delivered to a hold that is there
        for live in own.live_in(bucket):
            await connection.run(*rehold_call(prefix, token, live))


def cannot_open(reached: bool, failure: StoreUnavailable | None, unreached: str) -> StoreUnavailable:
    """Return the error that names the store that kept us from opening: SQL, where that failed."""
    if not reached:
        why = unreached.removeprefix("redis: ")
        return StoreUnavailable("redis", f"cannot be reached: {why}" if why else "cannot be reached")
    if isinstance(failure, Elsewhere):
        return StoreUnavailable("redis", f"{str(failure).removeprefix('redis: ')} (a cluster needs redis+cluster://)")
    return failure or StoreUnavailable("redis", "its balances cannot be rebuilt from SQL")
