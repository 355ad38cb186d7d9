"""The composition root: builds everything once, routes /v1 to exchanges and the rest to Starlette."""

import asyncio
import contextlib
import logging
import os
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import certifi
import httpx
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.balances.embedded import EmbeddedBalances
from billing.balances.redis.store import RedisBalances
from billing.ledger.accounts import Accounts, ApiKey
from billing.ledger.admins import Admins
from billing.ledger.flag_overrides import Overrides
from billing.ledger.flush import Jobs, Step, Store, repeat
from billing.ledger.ledger import Ledger, Noted
from billing.ledger.rate_cards import RateCards
from billing.ledger.upstream_objects import Objects
from billing.money.errors import StoreUnavailable
from billing.money.holds import Entry
from billing.money.usage_record import decode_record
from billing.storage.database import Database
from billing.storage.migrate import current_revision, newest_revision
from config.secrets import Secret, notices_secret, openai_admin_key, service_key, stripe_keys
from config.settings import Log, Settings
from config.watch import Edits
from proxy.admin.oidc import TokenChecker
from proxy.customer_api.money_in import MoneyIn, money_in
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.background import BackgroundResponses, follow_background
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.endpoints import MODEL_PREFIX, MODELS_PATH
from proxy.gateway.exchange import Exchange
from proxy.gateway.price_book import Rates
from proxy.gateway.services import Services
from proxy.gateway.sockets.charge import Begin
from proxy.gateway.sockets.realtime import RealtimeSession
from proxy.gateway.sockets.relay import REALTIME_PATH, Session, Socket
from proxy.gateway.sockets.responses import ResponsesSession
from proxy.gateway.unmetered.models import answer_models
from proxy.gateway.unmetered.stored_objects import answer_object, is_object_path
from proxy.gateway.upstream.pool import UpstreamPool
from proxy.gateway.upstream.tenants import Tenants
from proxy.observability.log import RequestLog
from proxy.observability.metrics import Metrics
from proxy.observability.tracing import PassOn, Tracing
from proxy.server.edge import Edge, not_on_this_port, refuse_socket
from proxy.server.gauges import Publisher
from proxy.server.http_protocol import UvicornClient
from proxy.server.jobs import JobBook, store_reader
from proxy.server.live_settings import RATES, Apply, LiveSettings
from proxy.server.side_routes import SideParts, side_routes
from proxy.web.auth_failures import Failures
from proxy.web.http import json_response, rejected
from proxy.web.origin import Group, group_of
from proxy.web.rejections import Rejection, not_found

log = logging.getLogger("tollkeeper.app")

Ports = Mapping[int, frozenset[Group]]
NO_PORTS: Ports = {}
EVERY_ADDRESS = ("0.0.0.0", "::")
WATCH_SECONDS = 0.25
CONTROL_SECONDS = 20.0
PROBE_SECONDS = 0.7
DEPTH_EVERY = 4
ORPHANED = b'"outcome":"orphaned"'


@dataclass(slots=True)
class Health:
    """What /readyz says: store name → problem ("" = fine). Kept up to date in the background."""

    problems: dict[str, str]
    checked_at: float = 0.0


class Application:
    """The ASGI application of one worker."""

    def __init__(
        self,
        settings: Settings,
        upstream_key: Secret,
        *,
        with_jobs: bool,
        edits: Edits | None = None,
        ports: Ports = NO_PORTS,
    ) -> None:
        """`with_jobs`: this process also flushes, relays and reaps (the embedded store's only process).

        `edits`: of the file, to follow; `ports`: what each listener serves, empty when there is one.
        """
        self._settings, self._key, self._with_jobs, self._edits = settings, upstream_key, with_jobs, edits
        self._ports = ports
        self._stack = contextlib.AsyncExitStack()
        self._services: Services | None = None
        self._side: Edge | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Dispatch one connection event."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        services, side = self._services, self._side
        if services is None or side is None:
            return
        served = not self._ports or group_of(scope["path"]) in self._ports.get(scope["server"][1], ())
        if scope["type"] == "websocket":
            await (
                Socket(services, scope, receive, send).run(_open_session) if served else refuse_socket(receive, send)
            )
            return
        if not served:
            await not_on_this_port(send)
            return
        path: bytes = scope["raw_path"]
        if path == b"/v1" or path.startswith(b"/v1/"):
            await self._exchange(services, scope, receive)
        else:
            await side(scope, receive, send)

    def interrupt_all(self) -> None:
        """End every live exchange: what it has relayed is settled."""
        if self._services is not None:
            for exchange in list(self._services.live):
                exchange.interruption.fire("shutdown")

    def _origin(self) -> str:
        """How browsers on this machine reach us."""
        listen = self._settings.listen
        return (
            f"http://{'127.0.0.1' if listen.host in EVERY_ADDRESS else listen.host}:{listen.side_port or listen.port}"
        )

    async def _exchange(self, services: Services, scope: Any, receive: Any) -> None:
        protocol = scope["extensions"]["tollkeeper"]
        client = UvicornClient(receive, protocol)
        path, method = scope["raw_path"], scope["method"]
        exchange = Exchange(services, client, method, path, scope["headers"], scope["query_string"], scope["client"])
        client.interruption = exchange.interruption
        if method == "GET" and (path == MODELS_PATH or path.startswith(MODEL_PREFIX)):
            await answer_models(exchange)
            return
        protocol.on_disconnect = exchange.client_left
        try:
            await (answer_object(exchange) if is_object_path(path, method) else exchange.run())
        except Exception:
            # the edge: a fault of ours becomes a 500 in OpenAI's shape (or a broken connection), never a wrong answer
            log.exception("request %s failed", exchange.request_id)
            await exchange.fail()
        finally:
            if protocol.on_disconnect == exchange.client_left:  # the connection may carry the next exchange already
                protocol.on_disconnect = None

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self._start()
        except BaseException as error:
            log.error("cannot start: %s", error)
            await self._stack.aclose()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        settings, enter = self._settings, self._stack.enter_async_context
        database = Database(settings.database.url, settings.database.pool_size, settings.database.timeout_seconds)
        self._stack.push_async_callback(database.close)
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        ledger, accounts, cards = Ledger(database, noted_by(metrics)), Accounts(database), RateCards(database)
        store = await enter(opened_store(settings, ledger))
        rates = Rates(cards, settings.billing)
        prices = await rates.current()
        upstream = UpstreamPool(settings.upstream, self._key, f"tollkeeper/{version('tollkeeper')}")
        self._stack.push_async_callback(upstream.close)
        request_log = RequestLog(access=settings.log.access)
        self._stack.callback(request_log.flush)
        tracing = _tracing(settings.log)
        self._stack.callback(tracing.close)
        admins = Admins(database)
        failures = Failures(
            settings.listen.max_failures_per_minute, settings.listen.trusted_proxies, metrics.failed_too_often
        )
        authenticator = Authenticator(accounts, settings.journal.max_lag_seconds, admins, failures)
        services = self._services = Services(
            settings,
            prices,
            store,
            authenticator,
            Tokenizer(),
            Tenants(Objects(database), self._key),
            upstream,
            self._key,
            metrics,
            request_log,
            tracing,
            origin="" if settings.listen.host in EVERY_ADDRESS else self._origin(),
        )
        money = money_in(settings, database, metrics)
        self._stack.push_async_callback(money.close)
        live = LiveSettings(settings, self._edits, Overrides(database), metrics, swap_in_worker(services, money, rates))
        await live.begin()
        await enter(background(live.follow()))
        book = JobBook(
            settings, store_reader(settings, store if isinstance(store, RedisBalances) else None), money, metrics
        )
        self._stack.push_async_callback(book.close)
        if self._with_jobs:
            jobs = jobs_of(settings, store, ledger, [*money.steps(), *book.schedule.steps()])
            jobs.start()
            self._stack.push_async_callback(jobs.stop)
            await enter(background(Publisher(settings, database, store, book, metrics, time.time()).follow()))
        health = Health({"sql": "not checked yet", "balances": "not checked yet"})
        look = _look_at(services, database, store, health)
        await look()  # so that nobody is told that nothing was checked yet
        watching = repeat(look, WATCH_SECONDS, "watching the stores", partial(health.problems.__setitem__, "watch"))
        await enter(background(watching))
        await enter(background(rates.follow(services, partial(live.note, RATES))))
        control = await enter(control_client(settings, self._key))
        await enter(
            background(
                follow_background(BackgroundResponses(services, ledger, cards, control), leader_of(store, "background"))
            )
        )
        tokens = TokenChecker(settings.admin, await enter(httpx.AsyncClient())) if settings.admin.oidc_issuer else None
        side = Starlette(
            routes=[
                Route("/healthz", _healthz),
                Route("/readyz", _readyz_with(health, live)),
                Route("/metrics", _metrics_with(registry, metrics)),
                *side_routes(
                    SideParts(
                        services,
                        database,
                        ledger,
                        accounts,
                        admins,
                        money,
                        live,
                        tokens,
                        self._origin(),
                        book.schedule,
                        failures,
                    )
                ),
            ],
            exception_handlers={404: _no_such_page, 405: _wrong_method, 500: _failed},
        )
        side.router.redirect_slashes = False  # a redirect would be built from the client's own Host header

        self._side = Edge(side, lambda: services.settings, _side_answers(services, money), request_log)


def _side_answers(services: Services, money: MoneyIn) -> Callable[[str, int], None]:
    def count(path: str, status: int) -> None:
        selling = services.settings.billing.purchase_enabled and money.keys is not None
        services.metrics.side_answer(path, status, selling=selling)

    return count


def check_keys(settings: Settings) -> None:
    """What a file alone cannot know: the keys it needs. Raises ConfigError."""
    stripe_keys(settings)
    notices_secret(settings)
    service_key(settings)
    openai_admin_key(settings)


def swap_in_worker(services: Services, money: MoneyIn, rates: Rates) -> Apply:
    """Settings and prices for the requests to come, in one step."""

    async def apply(settings: Settings) -> None:
        async with rates.swapping:
            prices = await rates.under(settings.billing, services)
            services.settings, services.prices, money.settings = settings, prices, settings

    return apply


def _open_session(services: Services, scope: Any, key: ApiKey, begin: Begin) -> Session:
    """The session of a WebSocket. Raises Rejection."""
    if scope["raw_path"] == REALTIME_PATH:
        return RealtimeSession(services, key, scope["query_string"], begin)
    return ResponsesSession(services, key, begin)  # the transport lets no other path through


def make_store(settings: Settings, ledger: Ledger) -> "EmbeddedBalances | RedisBalances":
    """The balance store that the settings name, not yet open."""
    if settings.redis.url:
        return RedisBalances(
            settings.redis.url, ledger, settings.redis.timeout_seconds, settings.advanced.hold_lease_seconds * 1_000
        )
    return EmbeddedBalances(Path(settings.embedded.path), ledger, settings.advanced.embedded_timeout_seconds)


@contextlib.asynccontextmanager
async def opened_store(settings: Settings, ledger: Ledger) -> AsyncIterator["EmbeddedBalances | RedisBalances"]:
    """The balance store, open. Raises StoreUnavailable."""
    store = make_store(settings, ledger)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def jobs_of(
    settings: Settings, store: "EmbeddedBalances | RedisBalances", ledger: Ledger, more: Sequence[Step] = ()
) -> Jobs:
    """The jobs for this store: leased and with a reaper on Redis, alone in the house when embedded."""
    lead = reap = None
    if isinstance(store, RedisBalances):
        lead, reap = leader_of(store, "jobs"), store.reap
    return Jobs(
        store,
        ledger,
        flush_seconds=settings.advanced.journal_flush_interval_ms / 1_000,
        lead=lead,
        reap=reap,
        more=more,
    )


def control_client(settings: Settings, key: Secret) -> httpx.AsyncClient:
    """The client for what we ask the upstream ourselves, beside the data path."""
    verify = ssl.create_default_context(cafile=settings.upstream.ca_file or certifi.where())
    return httpx.AsyncClient(
        base_url=settings.upstream.base_url,
        headers={"Authorization": f"Bearer {key.reveal()}"},
        verify=verify,
        timeout=CONTROL_SECONDS,
    )


def leader_of(store: "EmbeddedBalances | RedisBalances", name: str) -> Callable[[], Awaitable[bool]]:
    """Asks whether this process is the one to do `name`: the embedded store's is always."""
    owner = secrets.token_hex(8)

    async def leads() -> bool:
        return await store.lead(name, owner, 3_000) if isinstance(store, RedisBalances) else True

    return leads


@contextlib.asynccontextmanager
async def background(work: Any) -> AsyncIterator[None]:
    """Run a coroutine beside the block, and end it with the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _look_at(services: Services, database: Database, store: Store, health: Health) -> Callable[[], Awaitable[int]]:
    """One look: probe the stores, publish gauges, and stop admitting when the journal is over its bounds."""
    journal, turn = services.settings.journal, 0

    async def look() -> int:
        nonlocal turn
        health.problems["balances"] = await _probe(store.ping())
        health.problems["sql"] = await _probe(_check_schema(database))
        health.checked_at = time.monotonic()
        for name in ("balances", "sql"):
            services.metrics.store_up.labels(name).set(0 if health.problems[name] else 1)
        if turn % DEPTH_EVERY == 0 and not health.problems["balances"]:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    entries, lag_ms = await store.depth()
                services.overloaded = ""
                if entries > journal.max_pending or lag_ms > journal.max_lag_seconds * 1_000:
                    services.overloaded = (
                        "Too many charges wait for the ledger database, so nothing more is served for now."
                    )
                health.problems["journal"] = services.overloaded
                services.metrics.journal_entries.set(entries)
                services.metrics.journal_lag.set(lag_ms / 1_000)
        services.metrics.publish()
        publish_store(services.metrics, store)
        for state, number in zip(("open", "idle"), services.upstream.connections, strict=True):
            services.metrics.upstream_connections.labels(state).set(number)
        turn += 1
        return 0

    return look


def publish_store(metrics: Metrics, store: Store) -> None:
    """What this process had to rebuild."""
    metrics.rebuilds.inc(store.rebuilt())


def noted_by(metrics: Metrics) -> Noted:
    """Counts what only who books it sees: charges of requests whose process died, and whatever nobody could be charged
    for.
    """

    def noted(entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.loss:
                metrics.lost(entry.loss)
            if ORPHANED in entry.record:
                metrics.orphan(decode_record(entry.record), entry.charged)

    return noted


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
        return json_response({"status": state, "problems": problems, "notes": live.notes()}, 503 if problems else 200)

    return readyz


def _metrics_with(registry: CollectorRegistry, own: Metrics) -> Any:
    async def metrics(_request: Request) -> Response:
        own.publish()
        source = registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            source = CollectorRegistry()
            MultiProcessCollector(source)  # type: ignore[no-untyped-call]
        return Response(generate_latest(source), media_type=CONTENT_TYPE_LATEST)

    return metrics


async def _no_such_page(_request: Request, _error: Exception) -> Response:
    return rejected(not_found("There is no such page here. The API is under /v1 and /api/billing.", "not_found"))


async def _wrong_method(_request: Request, _error: Exception) -> Response:
    return rejected(Rejection(405, "method_not_allowed", "This path does not take that method."))


async def _failed(_request: Request, _error: Exception) -> Response:
    return rejected(
        Rejection(500, "internal_error", "Something went wrong on our side. Try again.", kind="server_error")
    )


def _tracing(log: Log) -> Tracing:
    """What the settings ask for."""
    if not log.opentelemetry:
        return PassOn()
    # an extra, which most installations do not have; config/load.py checked that this one does
    from proxy.observability.otel import Spans

    return Spans()
