"""Everything that is served beside /v1, put together: the customers' API and pages, and those of admins."""

import asyncio
from dataclasses import dataclass
from datetime import date

from starlette.routing import Route

from billing.accounting.daily_finance import Finance
from billing.accounting.journal import Books, JournalLine
from billing.accounting.statements import Statements
from billing.accounting.upstream_spend import UpstreamSpend
from billing.accounting.usage_summary import UsageSummaries
from billing.jobs.runs import Runs
from billing.jobs.schedule import Scheduler
from billing.ledger.accounts import Accounts
from billing.ledger.admins import Admins
from billing.ledger.audit_log import AuditLog
from billing.ledger.customers.desk import key_desk
from billing.ledger.customers.search import AccountSearch
from billing.ledger.customers.shown import ShownOnce
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.ledger import Ledger
from billing.ledger.plans.price_plans import PricePlans
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.rate_cards import RateCards
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database, Readable
from billing.storage.replica import Replica
from config.secrets import oidc_client_secret, service_key
from config.settings import DatabaseSettings
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.accounts.api import AccountsApi
from proxy.admin.actions import AdminActions, Journal
from proxy.admin.api import AdminApi
from proxy.admin.auth import AdminAuth
from proxy.admin.events.api import EventsApi
from proxy.admin.events.pages import EventPages
from proxy.admin.identity.oidc import TokenChecker
from proxy.admin.ops_page import OpsPage
from proxy.admin.plans.api import PlansApi
from proxy.admin.promos.api import PromoCodesApi
from proxy.admin.promos.pages import PromoPages
from proxy.admin.sign_in.code_flow import CodeFlow
from proxy.admin.sign_in.pages import SignInPages
from proxy.credits_page.page import CreditsPage
from proxy.customer_api.account import AccountApi
from proxy.customer_api.checkout import CheckoutApi
from proxy.customer_api.credits.promos_api import PromosApi
from proxy.customer_api.description import description_routes
from proxy.customer_api.embed.routes import embed_routes
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.settings import SettingsApi
from proxy.customer_api.stripe_webhook import StripeWebhook
from proxy.gateway.services import Services
from proxy.server.jobs import STATEMENT_SECONDS
from proxy.server.live_settings import LiveSettings
from proxy.web.auth_failures import AuthFailures


def journal_apart(conf: DatabaseSettings, replica: Replica | None) -> Journal:
    """Journal, read in a thread of its own over its own connection: it goes through every transfer there is.

    It is of one snapshot: what the replica fails at is read anew, all of it, from the primary.
    """

    async def read(url: str, first: date, last: date) -> list[JournalLine]:
        database = Database(url, 1, conf.timeout_seconds, STATEMENT_SECONDS)
        try:
            return await Books(database).journal(first, last)
        finally:
            await database.close()

    async def journal(first: date, last: date) -> list[JournalLine]:
        if replica is not None and replica.used:
            try:
                return await asyncio.to_thread(lambda: asyncio.run(read(conf.replica_url, first, last)))
            except StoreUnavailable:
                replica.count_failure()
        return await asyncio.to_thread(lambda: asyncio.run(read(conf.url, first, last)))

    return journal


@dataclass(frozen=True, slots=True)
class SideParts:
    """Parts that the handlers need.

    `origin`: the address by which browsers reach us; `tokens` None: no identity provider is configured.
    """

    services: Services
    database: Database
    ledger: Ledger
    accounts: Accounts
    admins: Admins
    money: MoneyIn
    live: LiveSettings
    tokens: TokenChecker | None
    origin: str
    jobs: Scheduler
    failures: AuthFailures

    @property
    def shown(self) -> Readable:
        """Source of what only shows and reports: the replica, where there is one."""
        return self.services.replica or self.database


def side_routes(parts: SideParts) -> list[Route]:
    """Routes to mount."""
    database, services, money, shown = parts.database, parts.services, parts.money, parts.shown
    api, statements = AccountApi(services, parts.ledger, UsageSummaries(shown), money), Statements(shown)
    auth, actions = AdminAuth(parts.admins, parts.tokens, parts.failures), admin_actions(parts)
    events = EventsApi(services, money.endpoints, money.notices)
    plans = PlansApi(services, PricePlans(database), parts.accounts)
    promos = PromoCodesApi(money.promos.promos)
    settings = services.settings
    portal = CreditsPage(
        money,
        PortalTokens(database),
        parts.accounts,
        key_desk(database, shown),
        api,
        statements,
        service_key(settings),
        settings.portal.public_url or parts.origin,
        auth.find_portal_staff,
    )
    return [
        *description_routes(),
        *embed_routes(),
        *api.routes(),
        *CheckoutApi(money, services.authenticator, parts.accounts).routes(),
        *PromosApi(money.promos, services.authenticator).routes(),
        *StripeWebhook(money, parts.failures).routes(),
        *SettingsApi(money, services.authenticator, statements).routes(),
        *portal.routes(),
        *AdminApi(actions, auth, AccountsApi(actions.customers), plans, events, promos).routes(),
        *OpsPage(
            actions,
            _sign_in_pages(parts, auth),
            plans,
            EventPages(events, ShownOnce(database)),
            PromoPages(promos),
            PortalTokens(database),
            settings.portal.public_url or parts.origin,
        ).routes(),
    ]


def _sign_in_pages(parts: SideParts, auth: AdminAuth) -> SignInPages:
    settings, tokens = parts.services.settings, parts.tokens
    flow = None
    if tokens is not None and settings.admin.oidc_client_id:
        flow = CodeFlow(tokens.provider, tokens, oidc_client_secret(settings))
    listen = settings.listen
    own_port = f"http://{listen.admin_host}:{listen.admin_port}" if listen.admin_port else ""
    admin_url = settings.admin.public_url or own_port or settings.portal.public_url or parts.origin
    public_url = settings.admin.public_url or settings.portal.public_url
    return SignInPages(auth, flow, settings.admin, admin_url, public_url)


def admin_actions(parts: SideParts) -> AdminActions:
    """Parts that admins work with."""
    database, shown = parts.database, parts.shown
    customers = AccountActions(
        parts.services,
        parts.accounts,
        key_desk(database, shown),
        AccountSearch(database, shown),
        parts.ledger,
        parts.money,
        AuditLog(database),
    )
    return AdminActions(
        parts.services,
        customers,
        parts.ledger,
        UsageSummaries(shown),
        parts.admins,
        FlagOverrides(database),
        RateCards(database),
        Finance(shown),
        Runs(database),
        parts.jobs,
        parts.money,
        parts.money.inbox,
        AuditLog(database),
        journal_apart(parts.services.settings.database, parts.services.replica),
        UpstreamSpend(shown),
        lambda: parts.live.file,
    )
