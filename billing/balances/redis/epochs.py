"""The state of every bucket as this process sees it: entering it, rebuilding it, putting back what is ours.

The theory of epochs is at the head of rebuild.py. A bucket is `open` here while its token is the one that we know; a
script that answers {'epoch'} closes it (I9: nothing is admitted on a token that does not fit) until it is entered anew.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import partial

from billing.balances.redis.connection import RedisConnection
from billing.balances.redis.journal import PREFIXES, position_now
from billing.balances.redis.own_holds import OwnHolds
from billing.balances.redis.rebuild import Rebuilder
from billing.balances.redis.script_calls import rehold_call, resettle_call
from billing.ledger.ledger import Ledger
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable

log = logging.getLogger("tollkeeper.redis")

GRACE_SECONDS = 0.4
POLL_SECONDS = 0.03
RETRY_SECONDS = 0.2


class Epochs:
    """Tokens of one process, and the tasks that find them."""

    def __init__(self, connection: RedisConnection, rebuilder: Rebuilder, own: OwnHolds, ledger: Ledger) -> None:
        """Nothing is open before `enter_all()`."""
        self._connection, self._rebuilder, self._own, self._ledger = connection, rebuilder, own, ledger
        self.tokens: list[str] = [""] * BUCKETS
        self.open: list[bool] = [False] * BUCKETS
        self.run_id = ""
        self.failure: StoreUnavailable | None = None
        """What kept a bucket from being rebuilt last."""
        self._entering: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def serving(self, bucket: int, timeout_seconds: int | float) -> str:
        """Return the bucket's token once it is open. Raises StoreUnavailable, at the bound (I9) or without a server."""
        if self.open[bucket] and self._connection.ready:
            return self.tokens[bucket]
        if not self._connection.ready:
            raise StoreUnavailable("redis", "is not reachable")
        deadline = time.monotonic() + timeout_seconds
        while not self.open[bucket]:
            if time.monotonic() > deadline or not self._connection.ready:
                raise StoreUnavailable("redis", "balances are being rebuilt")
            await asyncio.sleep(POLL_SECONDS)
        return self.tokens[bucket]

    async def enter_all(self, run_id: str) -> None:
        """Find every bucket's state on a server just reached; rebuild what does not fit this server."""
        self.run_id = run_id
        self.open = [False] * BUCKETS
        self.end(self._entering.values())
        self._entering.clear()
        entering = [asyncio.create_task(self.enter(bucket)) for bucket in range(BUCKETS)]
        try:
            await asyncio.gather(*entering)
        finally:
            # when the connection was lost one has said so, and the others must not go on over the next one
            self.end(entering)

    def reenter(self, bucket: int) -> None:
        """Close a bucket whose token a script called stale, until we know the new one."""
        self.open[bucket] = False
        task = self._entering.get(bucket)
        if task is None or task.done():
            self._entering[bucket] = asyncio.create_task(self._enter_quietly(bucket))

    async def enter(self, bucket: int) -> None:
        """Return once the bucket is open to us. Raises StoreUnavailable when the connection is lost."""
        while True:
            raw = await self._connection.call("GET", f"{PREFIXES[bucket]}epoch")
            state = raw.decode() if raw else ""
            token = state.removeprefix("R:")
            if not token.startswith(f"{self.run_id}:"):
                await self._try_rebuild(bucket)
                continue
            if token != self.tokens[bucket]:
                if self.tokens[bucket]:
                    await self._restore(bucket, token)
                self.tokens[bucket] = token
            if state == token:
                self.open[bucket] = True
                return
            await self._try_rebuild(bucket)  # waits, unless the one that was at it has died

    async def rebuild(self, bucket: int, *, force: bool = False) -> bool:
        """Rebuild a bucket from SQL; False when another process is at it."""
        recover = partial(self._recover_ours, bucket)
        return await self._rebuilder.rebuild(bucket, self.run_id, recover, force=force)

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
        while self._connection.ready:
            try:
                await self.enter(bucket)
            except StoreUnavailable as error:
                log.warning("bucket %d cannot be entered now: %s", bucket, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _try_rebuild(self, bucket: int) -> None:
        try:
            if not await self.rebuild(bucket):
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
        own, prefix = self._own, PREFIXES[bucket]
        lost = own.lose(bucket)
        for hold_id in await self._ledger.charged_ids(lost):
            lost.pop(hold_id, None)
            own.drop(hold_id)
        for hold_id, wanted in list(lost.items()):
            reply = await self._connection.run(*resettle_call(prefix, token, wanted))
            if reply[0] not in (b"ok", b"gone", b"reaped"):
                raise StoreUnavailable("redis", "was rebuilt again meanwhile")
            if reply[0] == b"reaped":
                own.replace_by_rest(wanted, int(reply[3]), reply[4])
                lost.pop(hold_id, None)
                continue
            position = reply[5] if reply[0] == b"ok" else await position_now(self._connection)
            own.keep(bucket, wanted, position)
            lost.pop(hold_id, None)
        # also those whose charge was decided meanwhile: it can only be delivered to a hold that is there
        for live in own.live_in(bucket):
            await self._connection.run(*rehold_call(prefix, token, live))
