"""The composition root of one worker: builds everything once, in the order in which it depends on each other."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import httpx
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from billing.balances.redis.store import RedisBalances
from billing.jobs.expiry import Expiry
from billing.ledger.accounts import Accounts
from billing.ledger.admins import Admins
from billing.ledger.customers.access_tokens import AccessTokens
from billing.ledger.customers.end_users import EndUsers
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.flush import relay_once, repeat, while_leading
from billing.ledger.ledger import Ledger
from billing.ledger.objects.realtime_calls import RealtimeCalls
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.ledger.plans.price_plans import PricePlans
from billing.ledger.rate_cards import RateCards
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database
from billing.storage.installation import tenant_secret
from billing.storage.replica import LOOK_SECONDS as REPLICA_SECONDS
from billing.storage.replica import Replica
from config.app import read_logo
from config.secrets import Secret, upstream_keys
from config.settings import Log, Settings
from config.watch import Edits
from proxy.admin.identity.oidc import TokenChecker
from proxy.customer_api.money_in import MoneyIn, money_in, notice_queue
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.background.expiry import ObjectExpiry, follow_expiry
from proxy.gateway.background.open_work import follow_open
from proxy.gateway.background.poller import BackgroundResponses
from proxy.gateway.background.terms import Catalogues
from proxy.gateway.batches.poller import BatchPoller
from proxy.gateway.callers.end_users import EndUserTable
from proxy.gateway.callers.origins import TokenOrigins
from proxy.gateway.calls.voice_calls import SWEEP_SECONDS, TEND_SECONDS, VoiceCalls
from proxy.gateway.counting.counter_client import CounterClient
from proxy.gateway.counting.tokenizer import Tokenizer
from proxy.gateway.price_book import Rates
from proxy.gateway.services import Services
from proxy.gateway.upstream.tenants import Tenants, former_secret
from proxy.gateway.upstream.upstreams import LOOK_SECONDS, Upstreams
from proxy.gateway.vector_stores.daily_charge import StorageCharge, follow_storage
from proxy.gateway.vector_stores.removal import StorageRemoval, follow_removal
from proxy.observability.log import RequestLog
from proxy.observability.metrics import Metrics
from proxy.observability.tracing import PassOn, Tracing
from proxy.server.edge import Edge
from proxy.server.gauges import ENDS_SECONDS, Publisher, publish_ends
from proxy.server.health import WATCH_SECONDS, Health, StoreWatch, health_routes, look_at_replica
from proxy.server.jobs import JobBook, store_reader
from proxy.server.live_settings import RATES, Apply, LiveSettings
from proxy.server.side_routes import SideParts, side_routes
from proxy.server.stores import BalanceStore, Booking, booking, jobs_of, leader_of, opened_store
from proxy.web.auth_failures import AuthFailures
from proxy.web.http import rejection_response
from proxy.web.rejections import Rejection, not_found

EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


STRAY_SECONDS = 5.0
"""Between looks for holds that outlived their requests."""


class Wired(NamedTuple):
    """Parts that the application dispatches to: services and calls for /v1, the side application for the rest."""

    services: Services
    side: Edge
    calls: VoiceCalls


class _Books(NamedTuple):
    """The stores in SQL, and the prices made of them."""

    database: Database
    replica: Replica | None
    ledger: Ledger
    accounts: Accounts
    admins: Admins
    catalogues: Catalogues
    rates: Rates
    booked: Booking


class Wiring:
    """Builds the parts of one worker; what must be closed goes on `stack`, in order."""

    def __init__(
        self,
        settings: Settings,
        keys: Mapping[str, Secret],
        edits: Edits | None,
        counter: bytes | None,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        """`keys`: the upstreams', by name; `edits`: of the file, to follow; `counter`: address of who counts."""
        self._settings, self._keys, self._edits, self._stack = settings, keys, edits, stack
        self._counter = counter
        self._metrics = Metrics(CollectorRegistry())

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
        expiry = Expiry(books.database, books.ledger, store, money.notices)
        reader = store_reader(settings, store if isinstance(store, RedisBalances) else None)
        jobs = JobBook(settings, reader, money, metrics, expiry)
        stack.push_async_callback(jobs.close)
        if with_jobs:
            await self._start_jobs(books, store, money, jobs)
        health = await self._watch(services, books.database, store)
        await self._beside(books.rates.follow(services, partial(live.report, RATES)))
        await self._poll_background(services, books, store, money)
        side = await self._side(services, books, money, live, jobs, failures, health)
        edge = Edge(
            side,
            lambda: services.settings,
            _side_answers(services, money),
            services.log,
            services.token_origins.sharing,
        )
        return Wired(services, edge, await self._calls(services, books, store))

    def _open_books(self) -> _Books:
        settings = self._settings
        database = Database(settings.database.url, settings.database.pool_size, settings.database.timeout_seconds)
        self._stack.push_async_callback(database.close)
        replica = self._open_replica(database)
        catalogues = Catalogues(RateCards(database), PricePlans(database))
        booked = booking(database, notice_queue(settings, database), self._metrics, replica)
        return _Books(
            database,
            replica,
            booked.ledger,
            Accounts(database),
            Admins(database),
            catalogues,
            Rates(*catalogues, settings),
            booked,
        )

    def _open_replica(self, primary: Database) -> Replica | None:
        conf = self._settings.database
        if not conf.replica_url:
            return None
        replica = Replica(primary, conf.replica_url, conf.pool_size, conf.timeout_seconds)
        self._stack.push_async_callback(replica.close)
        return replica

    async def _services(self, books: _Books, store: BalanceStore, failures: AuthFailures) -> Services:
        """Build what every request shares."""
        settings, stack = self._settings, self._stack
        prices = await books.rates.current()
        upstreams = Upstreams(settings, self._keys, f"tollkeeper/{version('tollkeeper')}")
        stack.push_async_callback(upstreams.close)
        await self._beside(repeat(upstreams.look, LOOK_SECONDS, "looking after upstreams"))
        key = upstreams.default.key
        former = former_secret(key) if key else None
        request_log = RequestLog(access=settings.log.access)
        stack.callback(request_log.flush)
        tracing = _tracing(settings.log)
        stack.callback(tracing.close)
        stale = settings.journal.max_lag_seconds
        end_users, tokens = EndUserTable(EndUsers(books.database), stale), AccessTokens(books.database)
        services = Services(
            settings,
            prices,
            store,
            Authenticator(books.accounts, stale, books.admins, failures, end_users, tokens),
            end_users,
            TokenOrigins(tokens),
            self._tokenizer(),
            Tenants(UpstreamObjects(books.database), await tenant_secret(books.database, former)),
            upstreams,
            self._metrics,
            request_log,
            tracing,
            origin="" if settings.listen.host in EVERY_ADDRESS else self._origin(),
            price_plans=await books.catalogues.plans.all(),
            replica=books.replica,
        )
        stack.callback(services.bodies.close)
        return services

    def _tokenizer(self) -> Tokenizer:
        """Count in the counting process, where there is one."""
        if self._counter is None:
            return Tokenizer()
        client = CounterClient(self._counter)
        self._stack.callback(client.close)
        return Tokenizer(client)

    async def _start_jobs(self, books: _Books, store: BalanceStore, money: MoneyIn, book: JobBook) -> None:
        settings = self._settings
        jobs = jobs_of(settings, store, books.booked, [*money.steps(), *book.schedule.steps()])
        with contextlib.suppress(StoreUnavailable):
            while await relay_once(store, books.ledger):
                """What moved before this process came is in the balances before anybody is served."""
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
        if services.replica is not None:
            services.metrics.stores.show_replica(services.replica)
            look = partial(look_at_replica, services, services.replica)
            await self._beside(repeat(look, REPLICA_SECONDS, "watching the replica"))
        await self._beside(repeat(services.settle_stray_holds, STRAY_SECONDS, "watching holds"))
        await self._beside(repeat(partial(publish_ends, services), ENDS_SECONDS, "publishing ends of models"))
        return health

    async def _poll_background(self, services: Services, books: _Books, store: BalanceStore, money: MoneyIn) -> None:
        poller = BackgroundResponses(services, books.ledger, books.catalogues)
        await self._beside(follow_open(poller, leader_of(store, "background")))
        batches = BatchPoller(services, books.ledger, books.catalogues)
        await self._beside(follow_open(batches, leader_of(store, "batches")))
        await self._beside(follow_expiry(ObjectExpiry(services), leader_of(store, "expiry")))
        storage = StorageCharge(services, store, money.notices)
        await self._beside(follow_storage(storage, leader_of(store, "storage")))
        removal = StorageRemoval(services, money.notices)
        await self._beside(follow_removal(removal, leader_of(store, "removal")))

    async def _calls(self, services: Services, books: _Books, store: BalanceStore) -> VoiceCalls:
        """Look after calls; whoever leads hangs up those that nobody meters. They end before everything else does."""
        calls = VoiceCalls(services, RealtimeCalls(books.database))
        sweep = while_leading(leader_of(store, "calls"), calls.sweep)
        await self._beside(repeat(sweep, SWEEP_SECONDS, "calls without a meter"))
        await self._beside(repeat(calls.tend, TEND_SECONDS, "leases of calls"))
        self._stack.push_async_callback(calls.close)
        return calls

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
            routes=[*health_routes(health, live, self._metrics), *side_routes(parts)],
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
        keys = upstream_keys(settings)
        await asyncio.to_thread(read_logo, settings.app)
        await rates.prepare(settings)
        async with rates.swapping:
            books = await rates.under(settings)
            services.upstreams.change(settings, keys)
            services.put_in_force(settings, books)
            money.settings = settings

    return apply


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
