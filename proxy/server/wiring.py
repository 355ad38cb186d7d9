"""The composition root of one worker: builds everything once, in the order in which it depends on each other."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import certifi
import httpx
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from billing.balances.redis.store import RedisBalances
from billing.ledger.accounts import Accounts
from billing.ledger.admins import Admins
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.flush import repeat
from billing.ledger.ledger import Ledger
from billing.ledger.rate_cards import RateCards
from billing.ledger.upstream_objects import UpstreamObjects
from billing.storage.database import Database
from config.secrets import Secret
from config.settings import Log, Settings
from config.watch import Edits
from proxy.admin.oidc import TokenChecker
from proxy.customer_api.money_in import MoneyIn, money_in
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.background.poller import BackgroundResponses, follow_background
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.price_book import Rates
from proxy.gateway.services import Services
from proxy.gateway.upstream.pool import UpstreamPool
from proxy.gateway.upstream.tenants import Tenants
from proxy.observability.log import RequestLog
from proxy.observability.metrics import Metrics
from proxy.observability.tracing import PassOn, Tracing
from proxy.server.edge import Edge
from proxy.server.gauges import Publisher
from proxy.server.health import WATCH_SECONDS, Health, StoreWatch, health_routes
from proxy.server.jobs import JobBook, store_reader
from proxy.server.live_settings import RATES, Apply, LiveSettings
from proxy.server.side_routes import SideParts, side_routes
from proxy.server.stores import BalanceStore, count_booked, jobs_of, leader_of, opened_store
from proxy.web.auth_failures import AuthFailures
from proxy.web.http import rejection_response
from proxy.web.rejections import Rejection, not_found

EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
CONTROL_SECONDS = 20.0


STRAY_SECONDS = 5.0
"""Between looks for holds that outlived their requests."""


class Wired(NamedTuple):
    """The two things that the application dispatches to: the services for /v1, the side application for the rest."""

    services: Services
    side: Edge


class _Books(NamedTuple):
    """The stores in SQL, and the prices made of them."""

    database: Database
    ledger: Ledger
    accounts: Accounts
    admins: Admins
    cards: RateCards
    rates: Rates


class Wiring:
    """Builds the parts of one worker; what must be closed goes on `stack`, in order."""

    def __init__(self, settings: Settings, key: Secret, edits: Edits | None, stack: contextlib.AsyncExitStack) -> None:
        """`key`: the upstream's; `edits`: of the file, to follow."""
        self._settings, self._key, self._edits, self._stack = settings, key, edits, stack
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)

    async def build(self, *, with_jobs: bool) -> Wired:
        """Build and start everything. Raises StoreUnavailable, BillingError, OSError.

        `with_jobs`: this process also flushes, relays and reaps (the embedded store's only process).
        """
        settings, stack, metrics = self._settings, self._stack, self._metrics
        books = self._open_books()
        store = await stack.enter_async_context(opened_store(settings, books.ledger))
        failures = AuthFailures(
            settings.listen.max_failures_per_minute, settings.listen.trusted_proxies, metrics.count_refused_unseen
        )
        services = await self._services(books, store, failures)
        money = money_in(settings, books.database, metrics)
        stack.push_async_callback(money.close)
        apply = swap_in_worker(services, money, books.rates)
        live = LiveSettings(settings, self._edits, FlagOverrides(books.database), metrics, apply)
        await live.begin()
        await self._beside(live.follow())
        jobs = JobBook(
            settings, store_reader(settings, store if isinstance(store, RedisBalances) else None), money, metrics
        )
        stack.push_async_callback(jobs.close)
        if with_jobs:
            await self._start_jobs(books, store, money, jobs)
        health = await self._watch(services, books.database, store)
        await self._beside(books.rates.follow(services, partial(live.report, RATES)))
        await self._poll_background(services, books, store)
        side = await self._side(services, books, money, live, jobs, failures, health)
        edge = Edge(side, lambda: services.settings, _side_answers(services, money), services.log)
        return Wired(services, edge)

    def _open_books(self) -> _Books:
        settings = self._settings
        database = Database(settings.database.url, settings.database.pool_size, settings.database.timeout_seconds)
        self._stack.push_async_callback(database.close)
        cards = RateCards(database)
        return _Books(
            database,
            Ledger(database, count_booked(self._metrics)),
            Accounts(database),
            Admins(database),
            cards,
            Rates(cards, settings.billing),
        )

    async def _services(self, books: _Books, store: BalanceStore, failures: AuthFailures) -> Services:
        """Build what every request shares."""
        settings, key, stack = self._settings, self._key, self._stack
        prices = await books.rates.current()
        upstream = UpstreamPool(settings.upstream, key, f"tollkeeper/{version('tollkeeper')}")
        stack.push_async_callback(upstream.close)
        request_log = RequestLog(access=settings.log.access)
        stack.callback(request_log.flush)
        tracing = _tracing(settings.log)
        stack.callback(tracing.close)
        return Services(
            settings,
            prices,
            store,
            Authenticator(books.accounts, settings.journal.max_lag_seconds, books.admins, failures),
            Tokenizer(),
            Tenants(UpstreamObjects(books.database), key),
            upstream,
            key,
            self._metrics,
            request_log,
            tracing,
            origin="" if settings.listen.host in EVERY_ADDRESS else self._origin(),
        )

    async def _start_jobs(self, books: _Books, store: BalanceStore, money: MoneyIn, book: JobBook) -> None:
        settings = self._settings
        jobs = jobs_of(settings, store, books.ledger, [*money.steps(), *book.schedule.steps()])
        jobs.start()
        self._stack.push_async_callback(jobs.stop)
        publisher = Publisher(settings, books.database, store, book, self._metrics, time.time())
        await self._beside(publisher.follow())

    async def _watch(self, services: Services, database: Database, store: BalanceStore) -> Health:
        """Probe the stores, now and for ever."""
        health = Health({"sql": "not checked yet", "balances": "not checked yet"})
        watch = StoreWatch(services, database, store, health)
        await watch.probe_stores()  # so that nobody is told that nothing was checked yet
        tell = partial(health.problems.__setitem__, "watch")
        await self._beside(repeat(watch.probe_stores, WATCH_SECONDS, "watching the stores", tell))
        await self._beside(repeat(services.settle_stray_holds, STRAY_SECONDS, "watching holds"))
        return health

    async def _poll_background(self, services: Services, books: _Books, store: BalanceStore) -> None:
        client = await self._stack.enter_async_context(control_client(self._settings, self._key))
        poller = BackgroundResponses(services, books.ledger, books.cards, client)
        await self._beside(follow_background(poller, leader_of(store, "background")))

    async def _side(
        self,
        services: Services,
        books: _Books,
        money: MoneyIn,
        live: LiveSettings,
        jobs: JobBook,
        failures: AuthFailures,
        health: Health,
    ) -> Starlette:
        """Build everything that is served beside /v1."""
        tokens = None
        if self._settings.admin.oidc_issuer:
            tokens = TokenChecker(self._settings.admin, await self._stack.enter_async_context(httpx.AsyncClient()))
        parts = SideParts(
            services,
            books.database,
            books.ledger,
            books.accounts,
            books.admins,
            money,
            live,
            tokens,
            self._origin(),
            jobs.schedule,
            failures,
        )
        side = Starlette(
            routes=[*health_routes(health, live, self._registry, self._metrics), *side_routes(parts)],
            exception_handlers={404: _no_such_page, 405: _wrong_method, 500: _failed},
        )
        side.router.redirect_slashes = False  # a redirect would be built from the client's own Host header
        return side

    def _origin(self) -> str:
        """Address by which browsers on this machine reach us."""
        listen = self._settings.listen
        host = "127.0.0.1" if listen.host in EVERY_ADDRESS else listen.host
        return f"http://{host}:{listen.side_port or listen.port}"

    async def _beside(self, work: Any) -> None:
        """Run a coroutine until the worker stops."""
        await self._stack.enter_async_context(background(work))


def _side_answers(services: Services, money: MoneyIn) -> Callable[[str, int], None]:
    def count(path: str, status: int) -> None:
        selling = services.settings.billing.purchase_enabled and money.keys is not None
        services.metrics.count_side_answer(path, status, selling=selling)

    return count


def swap_in_worker(services: Services, money: MoneyIn, rates: Rates) -> Apply:
    """Make the step that puts settings and prices in force for the requests to come."""

    async def apply(settings: Settings) -> None:
        async with rates.swapping:
            prices = await rates.under(settings.billing, services)
            services.put_in_force(settings, prices)
            money.settings = settings

    return apply


def control_client(settings: Settings, key: Secret) -> httpx.AsyncClient:
    """Client for our own questions to the upstream, beside the data path."""
    verify = ssl.create_default_context(cafile=settings.upstream.ca_file or certifi.where())
    return httpx.AsyncClient(
        base_url=settings.upstream.base_url,
        headers={"Authorization": f"Bearer {key.reveal()}"},
        verify=verify,
        timeout=CONTROL_SECONDS,
    )


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


async def _no_such_page(_request: Request, _error: Exception) -> Response:
    return rejection_response(
        not_found("There is no such page here. The API is under /v1 and /api/billing.", "not_found")
    )


async def _wrong_method(_request: Request, _error: Exception) -> Response:
    return rejection_response(Rejection(405, "method_not_allowed", "This path does not take that method."))


async def _failed(_request: Request, _error: Exception) -> Response:
    return rejection_response(
        Rejection(500, "internal_error", "Something went wrong on our side. Try again.", kind="server_error")
    )


def _tracing(log: Log) -> Tracing:
    """Make the tracing that the settings ask for."""
    if not log.opentelemetry:
        return PassOn()
    # an extra, which most installations do not have; config/load.py checked that this one does
    from proxy.observability.otel import Spans

    return Spans()
