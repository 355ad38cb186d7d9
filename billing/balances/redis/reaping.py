"""Redis for the jobs: the lease by which one process of all leads, and resolving the holds of the dead."""

import logging
import time

from billing.balances.redis.epochs import Epochs
from billing.balances.redis.journal import PREFIXES
from billing.balances.redis.script_calls import reap_call
from billing.balances.redis.servers.connection import Elsewhere, RedisConnection, answer_to
from billing.balances.redis.servers.serving import Servers
from billing.money.buckets import BUCKETS

log = logging.getLogger("tollkeeper.redis")

GRACE_SECONDS = 3.0
CHUNK = 500


async def take_lead(servers: Servers, name: str, owner: str, lease_ms: int) -> bool:
    """Hold the named lease if it is free or ours already. Raises StoreUnavailable."""
    server, key = servers.lease_of(name)
    if await server.call("SET", key, owner, "NX", "PX", lease_ms):
        return True
    if await server.call("GET", key) == owner.encode():
        await server.call("PEXPIRE", key, lease_ms)
        return True
    return False


class Reaper:
    """Resolves holds whose lease is over, by their checkpoint."""

    def __init__(self, servers: Servers, epochs: Epochs) -> None:
        """Of one process: `epochs` are its tokens."""
        self._of, self._epochs = servers.of, epochs

    async def reap(self) -> int:
        """Resolve them in every bucket that serves; return how many. Raises StoreUnavailable.

        Not within 3 s of a bucket's opening: after a freeze every lease looks over until its owner has renewed it.
        """
        since = time.monotonic() - GRACE_SECONDS
        buckets = [one for one in range(BUCKETS) if self._epochs.serves(one) and self._epochs.opened_at[one] <= since]
        clocks: dict[RedisConnection, int] = {}
        reaped = 0
        for bucket in buckets:
            server = self._of[bucket]
            if server not in clocks:
                clocks[server] = int((await server.call("TIME"))[0]) * 1_000
            try:
                for hold_id in await self._over(server, bucket, clocks[server]):
                    reaped += await self._resolve(server, bucket, hold_id)
            except Elsewhere:
                self._epochs.reenter(bucket)
        return reaped

    async def _over(self, server: RedisConnection, bucket: int, now_ms: int) -> list[str]:
        ids = await server.call("ZRANGEBYSCORE", f"{PREFIXES[bucket]}leases", "-inf", now_ms, "LIMIT", 0, CHUNK)
        return [raw.decode() for raw in ids]

    async def _resolve(self, server: RedisConnection, bucket: int, hold_id: str) -> int:
        prefix = PREFIXES[bucket]
        account_id = ((await server.call("HGET", f"{prefix}h:{hold_id}", "a")) or b"-").decode()
        reply = await answer_to(server.run(*reap_call(prefix, self._epochs.tokens[bucket], account_id, hold_id)))
        if reply[0] == b"epoch":
            self._epochs.reenter(bucket)
        if reply[0] == b"ok":
            log.warning(
                "orphaned hold %s of %s resolved: %s millicredits charged", hold_id, account_id, reply[1].decode()
            )
        return int(reply[0] == b"ok")
