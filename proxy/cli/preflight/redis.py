"""Preflight's checks of Redis: version, durability, epochs. Reads only."""

import time
from typing import Any

from sqlalchemy import select

from billing.balances.redis.rebuild import prefix_of
from billing.money.buckets import BUCKETS
from billing.storage.tables.core import buckets
from proxy.cli.preflight.site import Check, Offset, Site, error_text

OLDEST_REDIS = (6, 2)


async def redis_checks(site: Site) -> list[Check]:
    """Check that Redis keeps what it is told, and serves under the epochs that SQL knows."""
    conf = site.settings.redis
    if not conf.url:
        return [Check("redis", "store", "PASS", "not used: the embedded store, one process")]
    from redis.asyncio import Redis
    from redis.exceptions import RedisError, ResponseError

    client = Redis.from_url(
        conf.url, socket_timeout=conf.timeout_seconds * 4, socket_connect_timeout=conf.timeout_seconds * 4
    )
    try:
        info: dict[str, Any] = await client.info("server")
        sent = time.time()
        seconds, micros = await client.time()
        site.clocks.append(Offset("Redis", seconds + micros / 1e6 - (sent + time.time()) / 2))
        checks = [_redis_version(str(info["redis_version"]))]
        try:
            found: dict[Any, Any] = {}
            for name in ("maxmemory-policy", "appendonly", "appendfsync"):  # one name each: Redis 6
                found.update(await client.config_get(name))
            checks += _redis_settings(found, require_aof=conf.require_aof)
        except ResponseError:
            fix = "look there for `maxmemory-policy noeviction`, `appendonly yes`, `appendfsync always`"
            checks.append(Check("redis", "settings", "WARN", "CONFIG is forbidden here, as managed services do", fix))
        tokens: Any = await client.mget([f"{prefix_of(bucket)}epoch" for bucket in range(BUCKETS)])
    except (RedisError, OSError) as error:
        return [Check("redis", "reachable", "FAIL", error_text(error), "start Redis, and check redis.url")]
    finally:
        await client.aclose()
    return [*checks, await _epoch_check(site, str(info["run_id"]), tokens)] if site.migrated else checks


def _redis_version(version: str) -> Check:
    old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS
    fix = f"use Redis {'.'.join(map(str, OLDEST_REDIS))} or newer" if old else ""
    return Check("redis", "version", "FAIL" if old else "PASS", version, fix)


def _redis_settings(found: dict[str, Any], *, require_aof: bool) -> list[Check]:
    policy, aof, fsync = found.get("maxmemory-policy"), found.get("appendonly"), found.get("appendfsync")
    keeps, whole = policy == "noeviction", aof == "yes"
    checks = [
        Check(
            "redis",
            "maxmemory-policy",
            "PASS" if keeps else "FAIL",
            str(policy),
            ""
            if keeps
            else "`CONFIG SET maxmemory-policy noeviction`, and in redis.conf: else Redis throws balances away",
        ),
        Check(
            "redis",
            "appendonly",
            "PASS" if whole else "FAIL" if require_aof else "WARN",
            str(aof),
            "" if whole else "set `appendonly yes`: without it a restart of Redis forgets holds and unflushed charges",
        ),
    ]
    state = {"always": "PASS", "everysec": "WARN"}.get(str(fsync), "FAIL")
    fix = "" if state == "PASS" else "set `appendfsync always`: then nothing is lost, whatever dies together"
    checks.append(
        Check(
            "redis",
            "appendfsync",
            "PASS" if state == "PASS" else "WARN" if state == "WARN" else "FAIL",
            str(fsync),
            fix,
        )
    )
    return checks


async def _epoch_check(site: Site, run_id: str, tokens: list[bytes | None]) -> Check:
    """Compare each bucket's epoch in Redis, under its present run, with the one that SQL knows.

    A bucket nobody opened yet is in neither.
    """
    async with site.database.read() as connection:
        known = {row[0]: row[1] for row in await connection.execute(select(buckets.c.bucket, buckets.c.epoch))}
    behind = [
        bucket
        for bucket, token in enumerate(tokens)
        if (token.decode() if token else None) != (f"{run_id}:{known[bucket]}" if bucket in known else None)
    ]
    if not behind:
        return Check(
            "redis", "epoch", "PASS", f"{len(known)} of {BUCKETS} buckets are open, under the epoch that SQL knows"
        )
    fix = "running servers rebuild it within seconds; if this stays, `tollkeeper rebuild`"
    return Check("redis", "epoch", "FAIL", f"{len(behind)} buckets are not under the epoch that SQL knows", fix)
