"""Health: the stores probed in the background, the gauges that follow, and what /healthz, /readyz and /metrics say."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.ledger.flush import Store
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database, now_ms
from billing.storage.migrate import current_revision, newest_revision
from billing.storage.replica import Replica
from proxy.gateway.services import Services
from proxy.observability.metrics import Metrics
from proxy.server.live_settings import LiveSettings
from proxy.server.stores import publish_store
from proxy.web.http import json_response

log = logging.getLogger("tollkeeper.replica")

WATCH_SECONDS = 0.25
PROBE_SECONDS = 0.7
DEPTH_EVERY = 4
TOO_FULL = "Too many charges wait for the ledger database, so no request is served until they are written."


@dataclass(slots=True)
class Health:
    """State for /readyz: store name → problem ("" = fine), and remarks. Kept up to date in the background."""

    problems: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)
    checked_at: float = 0.0


def health_routes(health: Health, live: LiveSettings, metrics: Metrics) -> list[Route]:
    """Routes of the probes and of Prometheus."""
    return [
        Route("/healthz", _healthz),
        Route("/readyz", _readyz_with(health, live)),
        Route("/metrics", _metrics_with(metrics)),
    ]


async def look_at_replica(services: Services, replica: Replica) -> int:
    """Look whether pages may be read from it; show that, and log when it changes. Returns 0, as a step of `repeat`."""
    before = replica.problem
    await replica.look(services.booked_until)
    if replica.used and before:
        log.warning("the replica is read from: it is %.1f s behind the primary", replica.lag_seconds)
    elif replica.problem != before:
        more = f" ({replica.details})" if replica.details else ""
        log.warning("the replica is not read from, pages read the primary: it %s%s", replica.problem, more)
    services.metrics.stores.show_replica(replica)
    return 0


class StoreWatch:
    """Probes the stores, publishes gauges, and stops admitting when the journal is over its bounds."""

    def __init__(self, services: Services, database: Database, store: Store, health: Health) -> None:
        """`health` is kept up to date."""
        self._services, self._database, self._store, self._health = services, database, store, health
        self._turn = 0

    async def probe_stores(self) -> int:
        """One look at everything. Returns 0, as a step of `repeat`."""
        services, problems = self._services, self._health.problems
        problems["balances"] = await _probe(self._store.ping())
        problems["sql"] = await _probe(_check_schema(self._database))
        away = self._store.away()
        self._health.notes = {"balances": away} if away else {}
        if services.replica is not None and services.replica.problem:
            self._health.notes["replica"] = f"pages read the primary: it {services.replica.problem}"
        services.metrics.stores.buckets_away.set(self._store.buckets_away())
        self._health.checked_at = time.monotonic()
        for name in ("balances", "sql"):
            services.metrics.stores.store_up.labels(name).set(0 if problems[name] else 1)
        if self._turn % DEPTH_EVERY == 0 and not problems["balances"]:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    self._admit_by(*await self._depth())
        services.metrics.publish()
        publish_store(services.metrics, self._store)
        for state, number in zip(("open", "idle"), services.upstreams.connections, strict=True):
            services.metrics.stores.upstream_connections.labels(state).set(number)
        services.metrics.upstreams.show(services.upstreams.states())
        self._turn += 1
        return 0

    async def _depth(self) -> tuple[int, int]:
        """Return how much waits for the ledger; where a part of the balances is away, of the rest."""
        looked = now_ms()
        try:
            entries, lag_ms = await self._store.depth()
        except StoreUnavailable:
            return await self._store.depth_within_reach()
        self._services.booked_until = max(self._services.booked_until, looked - lag_ms)
        return entries, lag_ms

    def _admit_by(self, entries: int, lag_ms: int) -> None:
        """Admit while no more charges wait than the journal may hold, and none for longer than it may."""
        services, journal = self._services, self._services.settings.journal
        full = entries > journal.max_pending or lag_ms > journal.max_lag_seconds * 1_000
        services.overloaded = self._health.problems["journal"] = TOO_FULL if full else ""
        services.metrics.stores.journal_entries.set(entries)
        services.metrics.stores.journal_lag.set(lag_ms / 1_000)


async def _probe(check: Any) -> str:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await check
    except TimeoutError:
        return "does not answer in time"
    except StoreUnavailable as error:
        return str(error)
    return ""


async def _check_schema(database: Database) -> None:
    found, wanted = await current_revision(database), newest_revision()
    if found != wanted:
        raise StoreUnavailable(
            "sql", f"the schema is at {found}, this version needs {wanted}: run `tollkeeper migrate`"
        )


async def _healthz(_request: Request) -> Response:
    return json_response({"status": "alive"})


def _readyz_with(health: Health, live: LiveSettings) -> Any:
    async def readyz(_request: Request) -> Response:
        problems = {name: problem for name, problem in health.problems.items() if problem}
        if time.monotonic() - health.checked_at > WATCH_SECONDS + 2 * PROBE_SECONDS:
            problems["watch"] = "the stores were not checked in time"
        state = "ready" if not problems else "not ready"
        return json_response(
            {"status": state, "problems": problems, "notes": health.notes | live.notes()}, 503 if problems else 200
        )

    return readyz


def _metrics_with(own: Metrics) -> Any:
    async def metrics(_request: Request) -> Response:
        return Response(own.exposition(), media_type=CONTENT_TYPE_LATEST)

    return metrics
