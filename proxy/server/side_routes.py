"""Everything that is served beside /v1, put together: the customers' API and pages, and those of admins."""

import asyncio
from dataclasses import dataclass
from datetime import date

from starlette.routing import Route

from billing.accounting.daily_finance import Finance
from billing.accounting.journal import Books, JournalLine
from billing.accounting.statements import Statements
from billing.jobs.runs import Runs
from billing.jobs.schedule import Scheduler
from billing.ledger.accounts import Accounts
from billing.ledger.admins import Admins
from billing.ledger.audit_log import AuditLog
from billing.ledger.flag_overrides import FlagOverrides
from billing.ledger.ledger import Ledger
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.rate_cards import RateCards
from billing.storage.database import Database
from config.secrets import service_key
from config.settings import DatabaseSettings
from proxy.admin.actions import AdminActions, Journal
from proxy.admin.api import AdminApi
from proxy.admin.auth import AdminAuth
from proxy.admin.oidc import TokenChecker
from proxy.admin.ops_page import OpsPage
from proxy.credits_page.page import CreditsPage
from proxy.customer_api.account import AccountApi
from proxy.customer_api.checkout import CheckoutApi
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.settings import SettingsApi
from proxy.customer_api.stripe_webhook import StripeWebhook
from proxy.gateway.services import Services
from proxy.server.jobs import STATEMENT_SECONDS
from proxy.server.live_settings import LiveSettings
from proxy.web.auth_failures import AuthFailures


def journal_apart(conf: DatabaseSettings) -> Journal:
    """Journal, read in a thread of its own over its own connection: it goes through every transfer there is."""

    async def read(first: date, last: date) -> list[JournalLine]:
        database = Database(conf.url, 1, conf.timeout_seconds, STATEMENT_SECONDS)
        try:
            return await Books(database).journal(first, last)
        finally:
            await database.close()

    async def journal(first: date, last: date) -> list[JournalLine]:
        return await asyncio.to_thread(lambda: asyncio.run(read(first, last)))

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


def side_routes(parts: SideParts) -> list[Route]:
    """Routes to mount."""
    database, services, money = parts.database, parts.services, parts.money
    api, statements = AccountApi(services, parts.ledger), Statements(database)
    auth, actions = AdminAuth(parts.admins, parts.tokens, parts.failures), admin_actions(parts)
    settings = services.settings
    portal = CreditsPage(
        money,
        PortalTokens(database),
        parts.accounts,
        api,
        statements,
        service_key(settings),
        settings.portal.public_url or parts.origin,
        auth.find_portal_staff,
    )
    return [
        *api.routes(),
        *CheckoutApi(money, services.authenticator, parts.accounts).routes(),
        *StripeWebhook(money, parts.failures).routes(),
        *SettingsApi(money, services.authenticator, statements).routes(),
        *portal.routes(),
        *AdminApi(actions, auth).routes(),
        *OpsPage(actions, auth).routes(),
    ]


def admin_actions(parts: SideParts) -> AdminActions:
    """Parts that admins work with."""
    database = parts.database
    return AdminActions(
        parts.services,
        parts.accounts,
        parts.ledger,
        parts.admins,
        FlagOverrides(database),
        RateCards(database),
        Finance(database),
        Runs(database),
        parts.jobs,
        parts.money,
        parts.money.inbox,
        AuditLog(database),
        journal_apart(parts.services.settings.database),
        lambda: parts.live.file,
    )
