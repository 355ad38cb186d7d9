"""Accounts as Redis has them, for comparing with SQL (I6): all of them key by key, some as one snapshot a bucket."""

import asyncio
from collections import defaultdict
from collections.abc import Collection

from billing.balances.redis.rebuild import fields_of, prefix_of, scan_keys, surviving_holds
from billing.balances.redis.servers.serving import Servers
from billing.money.buckets import bucket_of
from billing.money.holds import Reading
from billing.money.usage_record import decode_record

Figures = tuple[dict[str, Reading], dict[str, int], dict[str, int]]
KEYS_AT_ONCE = 500
LONGEST_LOG = 20_000
PER_ACCOUNT = 5


async def everyone(servers: Servers) -> Figures:
    """Return (figures, sum of live holds, of unflushed charges) by account. No snapshot. Raises StoreUnavailable."""
    figures: dict[str, Reading] = {}
    held: dict[str, int] = {}
    charged: dict[str, int] = {}
    for server in servers.connections:
        names = await scan_keys(server, "{b*}:a:*")
        for start in range(0, len(names), KEYS_AT_ONCE):
            batch = names[start : start + KEYS_AT_ONCE]
            rows = await asyncio.gather(*(server.call("HMGET", name, "balance", "held", "seq") for name in batch))
            for name, values in zip(batch, rows, strict=True):
                if values[0] is not None:
                    figures[name.partition(":a:")[2]] = Reading(*(int(value) for value in values))
    for bucket, server in enumerate(servers.of):
        prefix = prefix_of(bucket)
        for hold in await surviving_holds(server, prefix):
            held[hold.account_id] = held.get(hold.account_id, 0) + hold.amount
        for item in await server.call("XRANGE", f"{prefix}log", "-", "+"):
            fields = fields_of(item)
            account_id = decode_record(fields[b"r"]).account_id
            charged[account_id] = charged.get(account_id, 0) + int(fields[b"c"])
    return figures, held, charged


async def some(servers: Servers, accounts: Collection[str]) -> Figures:
    """Return the same of some accounts, each bucket as one snapshot.

    A bucket with a long log is left out: reading it would keep Redis busy. Raises StoreUnavailable.
    """
    figures: dict[str, Reading] = {}
    held: dict[str, int] = {}
    charged: dict[str, int] = {}
    by_bucket: defaultdict[int, list[str]] = defaultdict(list)
    for account_id in sorted(accounts):
        by_bucket[bucket_of(account_id)].append(account_id)
    for bucket, ids in by_bucket.items():
        server, prefix = servers.of[bucket], prefix_of(bucket)
        if await server.call("XLEN", f"{prefix}log") > LONGEST_LOG:
            continue
        values = await server.run("figures", (f"{prefix}leases", f"{prefix}log", prefix), ids)
        for number, account_id in enumerate(ids):
            balance, *rest = values[number * PER_ACCOUNT : (number + 1) * PER_ACCOUNT]
            if balance is not None:
                figures[account_id] = Reading(int(balance), int(rest[0]), int(rest[1]))
                held[account_id], charged[account_id] = int(rest[2]), int(rest[3])
    return figures, held, charged
