"""The journal of the Redis store: settled charges in each bucket's stream, on their way to the ledger."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from billing.balances.redis.connection import RedisConnection
from billing.balances.redis.rebuild import entry_of, prefix_of
from billing.money.buckets import BUCKETS
from billing.money.holds import Entry, Outstanding

Command = tuple[bytes | str | int, ...]

PREFIXES = tuple(prefix_of(bucket) for bucket in range(BUCKETS))


async def everywhere(connection: RedisConnection, command: Callable[[str], Command]) -> list[Any]:
    """Return each bucket's answer to a command, made from its prefix."""
    return await asyncio.gather(*(connection.call(*command(prefix)) for prefix in PREFIXES))


async def pending_entries(connection: RedisConnection, limit: int) -> list[Entry]:
    """Return the oldest unflushed charges of every bucket, at most `limit` from each.

    None of a bucket that is being rebuilt.
    """
    # asked first, so never newer than what follows
    states = await everywhere(connection, lambda prefix: ("GET", f"{prefix}epoch"))
    replies = await everywhere(connection, lambda prefix: ("XRANGE", f"{prefix}log", "-", "+", "COUNT", limit))
    return [
        entry_of(bucket, item, state.decode().partition(":")[2])
        for bucket, (state, reply) in enumerate(zip(states, replies, strict=True))
        if state and not state.startswith((b"F:", b"R:"))
        for item in reply
    ]


async def acknowledge_entries(connection: RedisConnection, entries: Sequence[Entry]) -> None:
    """Forget charges that SQL has committed, and tell every process up to where (I4: never before the commit)."""
    by_bucket: dict[int, list[str]] = {}
    for entry in entries:
        number, position = entry.position.split(":")
        by_bucket.setdefault(int(number), []).append(position)
    calls = []
    for bucket, positions in by_bucket.items():
        calls.append(connection.call("XDEL", f"{PREFIXES[bucket]}log", *positions))
        calls.append(connection.call("SET", f"{PREFIXES[bucket]}flushed", positions[-1]))
    await asyncio.gather(*calls)


async def journal_depth(connection: RedisConnection) -> tuple[int, int]:
    """Return (unflushed charges, age of the oldest in milliseconds)."""
    lengths = await everywhere(connection, lambda prefix: ("XLEN", f"{prefix}log"))
    if not sum(lengths):
        return 0, 0
    heads = await everywhere(connection, lambda prefix: ("XRANGE", f"{prefix}log", "-", "+", "COUNT", 1))
    oldest = min((int(head[0][0].split(b"-")[0]) for head in heads if head), default=0)
    if not oldest:
        return 0, 0  # flushed between the two looks
    return sum(lengths), max(0, time.time_ns() // 1_000_000 - oldest)


async def outstanding_holds(connection: RedisConnection) -> Outstanding:
    """Return the sum of the holds of all processes, and of those that died."""
    parts = await asyncio.gather(*(connection.run("holds", (f"{prefix}leases", prefix), ()) for prefix in PREFIXES))
    oldest = min((int(part[2]) for part in parts if int(part[2])), default=0)
    age = max(0, time.time_ns() // 1_000_000 - oldest) if oldest else 0
    return Outstanding(sum(int(part[0]) for part in parts), sum(int(part[1]) for part in parts), age)


async def position_now(connection: RedisConnection) -> bytes:
    """Return a journal position that nothing written until now lies beyond."""
    seconds, microseconds = await connection.call("TIME")
    return b"%d-0" % (int(seconds) * 1_000 + int(microseconds) // 1_000 + 1)
