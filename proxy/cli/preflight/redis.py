"""Preflight's checks of Redis: version, durability, epochs of each server; who takes over from it. Reads only."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import select

from billing.balances.redis.rebuild import prefix_of
from billing.balances.redis.servers.address import CommandRefused, NodeAddress, ask_once
from billing.balances.redis.servers.sentinel import Sentinels
from billing.balances.redis.servers.survey import DataServer, find_data_servers
from billing.money.buckets import BUCKETS
from billing.money.errors import StoreUnavailable
from billing.storage.tables.core import buckets
from config.store_urls import RedisPlace, redis_place
from proxy.cli.preflight.site import Check, Offset, Site, State

OLDEST_REDIS = (6, 2)
SETTINGS = ("maxmemory-policy", "appendonly", "appendfsync")
ENOUGH_SENTINELS = 3


class Known(NamedTuple):
    """A server with balances, as it describes itself."""

    address: NodeAddress
    info: dict[str, str]
    clock: Offset
    settings: dict[str, str] | None
    """None: CONFIG is forbidden."""
    tokens: dict[int, str]
    """Of its buckets; those that were never used have none."""


class Rule(NamedTuple):
    """A setting of Redis: the values that are good, or good enough, and what to do about others."""

    name: str
    states: dict[str, State]
    otherwise: State
    fix: str

    def judge(self, server: Known) -> tuple[State, str, str]:
        """Return (state, value, fix) of a server's setting."""
        value = (server.settings or {}).get(self.name, "")
        state = self.states.get(value, self.otherwise)
        return state, value, "" if state == "PASS" else self.fix


async def redis_checks(site: Site) -> list[Check]:
    """Check that Redis keeps what it is told, and serves under the epochs that SQL knows."""
    conf = site.settings.redis
    if not conf.url:
        return [Check("redis", "store", "PASS", "not used: the embedded store, one process")]
    place, timeout = redis_place(conf.url), conf.timeout_seconds * 4
    try:
        servers = [await _describe(server, timeout) for server in await find_data_servers(conf.url, timeout)]
        checks = [Check("redis", "version", *_worst(servers, _version_of))]
        if place.kind == "sentinel":
            checks.append(await _sentinels_check(place, servers[0], timeout))
    except StoreUnavailable as error:
        why = str(error).removeprefix("redis: ")[:300]
        return [Check("redis", "reachable", "FAIL", why, "start Redis, and check redis.url")]
    site.clocks += [
        one.clock._replace(clock=f"Redis {one.address}" if len(servers) > 1 else "Redis") for one in servers
    ]
    if place.kind == "cluster":
        checks.append(_cluster_check(servers))
    if any(one.settings is None for one in servers):
        fix = "look there for `maxmemory-policy noeviction`, `appendonly yes`, `appendfsync always`"
        checks.append(Check("redis", "settings", "WARN", "CONFIG is forbidden here, as managed services do", fix))
    else:
        checks += _redis_settings(servers, require_aof=conf.require_aof)
    return [*checks, await _epoch_check(site, servers)] if site.migrated else checks


async def _describe(server: DataServer, timeout_seconds: int | float) -> Known:
    """Ask a server for all that is checked. Raises StoreUnavailable."""
    keys = [f"{prefix_of(bucket)}epoch" for bucket in server.buckets]
    asked = [("GET", key) for key in keys]  # one by one: keys of several slots are no single command's
    sent = time.time()
    (seconds, micros), info, replication, *tokens = await ask_once(
        server.address, timeout_seconds, ("TIME",), ("INFO", "server"), ("INFO", "replication"), *asked
    )
    offset = int(seconds) + int(micros) / 1e6 - (sent + time.time()) / 2
    lines = (info + replication).decode().splitlines()
    settings: dict[str, str] | None
    try:
        answers = await ask_once(server.address, timeout_seconds, *(("CONFIG", "GET", name) for name in SETTINGS))
        settings = {name.decode(): value.decode() for name, value in answers}
    except CommandRefused:
        settings = None
    known = {bucket: token.decode() for bucket, token in zip(server.buckets, tokens, strict=True) if token}
    pairs = (line.partition(":") for line in lines)
    return Known(server.address, {name: value for name, _, value in pairs}, Offset("Redis", offset), settings, known)


def _worst(servers: Sequence[Known], judge: Callable[[Known], tuple[State, str, str]]) -> tuple[State, str, str]:
    """Return (state, found, fix) of the servers together: `judge(server)` returns those of one."""
    judged = [judge(one) for one in servers]
    worst = max(judged, key=lambda one: ("PASS", "WARN", "FAIL").index(one[0]))
    values = {found for _, found, _ in judged}
    found = (
        worst[1] if len(values) == 1 else ", ".join(f"{s.address} {j[1]}" for s, j in zip(servers, judged, strict=True))
    )
    return worst[0], found, worst[2]


def _version_of(server: Known) -> tuple[State, str, str]:
    check = _redis_version(server.info["redis_version"])
    return check.state, check.found, check.fix


def _redis_version(version: str) -> Check:
    old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS
    fix = f"use Redis {'.'.join(map(str, OLDEST_REDIS))} or newer" if old else ""
    return Check("redis", "version", "FAIL" if old else "PASS", version, fix)


def _redis_settings(servers: Sequence[Known], *, require_aof: bool) -> list[Check]:
    lost: State = "FAIL" if require_aof else "WARN"
    policy = "`CONFIG SET maxmemory-policy noeviction`, and in redis.conf: else Redis throws balances away"
    aof = "set `appendonly yes`: without it a restart of Redis forgets holds and unflushed charges"
    fsync = "set `appendfsync always`: then nothing is lost, whatever dies together"
    rules = (
        Rule("maxmemory-policy", {"noeviction": "PASS"}, "FAIL", policy),
        Rule("appendonly", {"yes": "PASS"}, lost, aof),
        Rule("appendfsync", {"always": "PASS", "everysec": "WARN"}, "FAIL", fsync),
    )
    return [Check("redis", rule.name, *_worst(servers, rule.judge)) for rule in rules]


def _cluster_check(servers: Sequence[Known]) -> Check:
    """Check that every node that serves balances has a replica to take over."""
    alone = [str(one.address) for one in servers if int(one.info.get("connected_slaves", "0")) == 0]
    found = f"{len(servers)} nodes serve the {BUCKETS} buckets"
    if not alone:
        return Check("redis", "cluster", "PASS", f"{found}, each with a replica")
    fix = "add a replica to each: until such a node is back, the balances on it are not served"
    return Check("redis", "cluster", "WARN", f"{found}, without a replica: {', '.join(alone)}", fix)


async def _sentinels_check(place: RedisPlace, primary: Known, timeout_seconds: int | float) -> Check:
    """Check that enough Sentinels answer, and that there is a replica to promote."""
    answering = await Sentinels(place, timeout_seconds).answering()
    replicas = int(primary.info.get("connected_slaves", "0"))
    found = f"{answering} of {len(place.hosts)} Sentinels name {primary.address}; it has {replicas} replicas"
    if answering < len(place.hosts):
        return Check("redis", "sentinel", "WARN", found, "start the others, or name those that there are in redis.url")
    if answering < ENOUGH_SENTINELS:
        return Check(
            "redis", "sentinel", "WARN", found, "name three or more in redis.url: one may be lost with its machine"
        )
    fix = "" if replicas else "add a replica: nobody can take over from the primary"
    return Check("redis", "sentinel", "PASS" if replicas else "WARN", found, fix)


async def _epoch_check(site: Site, servers: Sequence[Known]) -> Check:
    """Compare each bucket's epoch in Redis, under its server's present run, with the one that SQL knows.

    A bucket nobody opened yet is in neither.
    """
    async with site.database.read() as connection:
        known = {row[0]: row[1] for row in await connection.execute(select(buckets.c.bucket, buckets.c.epoch))}
    tokens = {bucket: token for one in servers for bucket, token in one.tokens.items()}
    runs = {
        bucket: token.partition(":")[0] == one.info["run_id"] for one in servers for bucket, token in one.tokens.items()
    }
    behind = [
        bucket
        for bucket in range(BUCKETS)
        if (bucket in tokens) != (bucket in known)
        or (bucket in tokens and not (runs[bucket] and tokens[bucket].partition(":")[2] == known[bucket]))
    ]
    if not behind:
        return Check(
            "redis", "epoch", "PASS", f"{len(known)} of {BUCKETS} buckets are open, under the epoch that SQL knows"
        )
    fix = "running servers rebuild it within seconds; if this stays, `tollkeeper rebuild`"
    return Check("redis", "epoch", "FAIL", f"{len(behind)} buckets are not under the epoch that SQL knows", fix)
