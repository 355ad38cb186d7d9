"""The journal of the Redis store: settled charges in each bucket's stream, on their way to the ledger."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from billing.balances.redis.rebuild import entry_of, prefix_of
from billing.balances.redis.servers.connection import Elsewhere, RedisConnection
from billing.balances.redis.servers.serving import Servers
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry, Outstanding

Command = tuple[bytes | str | int, ...]

EVERY = range(BUCKETS)
PREFIXES = tuple(prefix_of(bucket) for bucket in EVERY)


async def everywhere(servers: Servers, command: Callable[[str], Command], buckets: Sequence[int] = EVERY) -> list[Any]:
    """Return each bucket's answer to a command, made from its prefix. Raises StoreUnavailable."""
    return await asyncio.gather(*(servers.of[bucket].call(*command(PREFIXES[bucket])) for bucket in buckets))


async def wherever(servers: Servers, command: Callable[[str], Command], buckets: Sequence[int] = EVERY) -> list[Any]:
    """Return the same; None of a bucket whose node of a cluster is away. Raises StoreUnavailable where all are."""
    if not servers.divided:
        return await everywhere(servers, command, buckets)
    if not servers.any_ready:
        raise StoreUnavailable("redis", "is not reachable")
    return await asyncio.gather(*(_unless_away(servers.of[bucket], command(PREFIXES[bucket])) for bucket in buckets))


async def _unless_away(server: RedisConnection, command: Command) -> Any:
    try:
        return await server.call(*command)
    except StoreUnavailable:
        return None


async def pending_entries(servers: Servers, limit: int, buckets: Sequence[int] = EVERY) -> list[Entry]:
    """Return the oldest unflushed charges of these buckets, at most `limit` from each.

    None of a bucket that is being rebuilt.
    """
    # asked first, so never newer than what follows
    states = await wherever(servers, lambda prefix: ("GET", f"{prefix}epoch"), buckets)
    replies = await wherever(servers, lambda prefix: ("XRANGE", f"{prefix}log", "-", "+", "COUNT", limit), buckets)
    return [
        entry_of(bucket, item, state.decode().partition(":")[2])
        for bucket, state, reply in zip(buckets, states, replies, strict=True)
        if state and reply and not state.startswith((b"F:", b"R:"))
        for item in reply
    ]


async def acknowledge_entries(servers: Servers, entries: Sequence[Entry]) -> None:
    """Forget charges that SQL has committed, and tell every process up to where (I4: never before the commit).

    What cannot be forgotten now is flushed again, and SQL knows it.
    """
    by_bucket: dict[tuple[int, str], list[str]] = {}
    for entry in entries:
        number, position = entry.position.split(":")
        by_bucket.setdefault((int(number), entry.epoch), []).append(position)
    calls = []
    for (bucket, epoch), positions in by_bucket.items():
        prefix = PREFIXES[bucket]
        keys = (f"{prefix}epoch", f"{prefix}log", f"{prefix}flushed")
        calls.append(servers.of[bucket].run("acknowledge", keys, (epoch, *positions)))
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, Elsewhere):
            raise answer


async def journal_depth(servers: Servers, *, within_reach: bool = False) -> tuple[int, int]:
    """Return (unflushed charges, age of the oldest in milliseconds); `within_reach`: of the buckets that answer.

    A position is a time of the clock of its server, which says how old it is: by a machine's own clock, one that is an
    hour ahead would take a charge of this moment for one that waits for an hour, and stop admitting.
    """
    ask = wherever if within_reach else everywhere
    lengths = await ask(servers, lambda prefix: ("XLEN", f"{prefix}log"))
    if not any(lengths):
        return 0, 0
    heads = await ask(servers, lambda prefix: ("XRANGE", f"{prefix}log", "-", "+", "COUNT", 1))
    clocks = await ask(servers, lambda _: ("TIME",))
    ages = [
        _unix_ms(clock) - int(head[0][0].split(b"-")[0])
        for head, clock in zip(heads, clocks, strict=True)
        if head and clock
    ]
    if not ages:
        return 0, 0  # flushed between the two looks
    return sum(filter(None, lengths)), max(0, *ages)


async def outstanding_holds(servers: Servers) -> Outstanding:
    """Return the sum of the holds of all processes, and of those that died."""
    parts = await asyncio.gather(
        *(
            server.run("holds", (f"{prefix}leases", prefix), ())
            for server, prefix in zip(servers.of, PREFIXES, strict=True)
        )
    )
    oldest = min((int(part[2]) for part in parts if int(part[2])), default=0)
    age = max(0, time.time_ns() // 1_000_000 - oldest) if oldest else 0
    return Outstanding(sum(int(part[0]) for part in parts), sum(int(part[1]) for part in parts), age)


async def position_now(server: RedisConnection, bucket: int) -> bytes:
    """Return a position of a bucket's journal that nothing written until now lies beyond.

    A promoted replica's clock may be behind the one by which its last entries were numbered.
    """
    time_asked = server.call("TIME")
    last = await server.call("XREVRANGE", f"{PREFIXES[bucket]}log", "+", "-", "COUNT", 1)
    now = _unix_ms(await time_asked)
    return b"%d-0" % (max(now, int(last[0][0].split(b"-")[0]) if last else 0) + 1)


def _unix_ms(time_answer: Sequence[bytes]) -> int:
    """Unix milliseconds of a server's answer to TIME."""
    seconds, microseconds = time_answer
    return int(seconds) * 1_000 + int(microseconds) // 1_000
