"""The side API of money in, in this process, over a test's database."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from billing.accounting.statements import Statements
from billing.ledger.accounts import KeyRules
from billing.ledger.admins import Admins
from billing.ledger.audit_log import Who
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.signatures import sign
from config.secrets import Secret, StripeKeys
from config.settings import Package, Settings
from proxy.customer_api.checkout import CheckoutApi
from proxy.customer_api.credits.promos_api import PromosApi
from proxy.customer_api.money_in import MoneyIn, StripeParts
from proxy.customer_api.settings import SettingsApi
from proxy.customer_api.stripe_webhook import StripeWebhook
from proxy.gateway.authenticate import Authenticator
from proxy.observability.metrics import Metrics
from tests.support.shop import Shop

SECRET = "whsec_test"
PACKAGES = (Package(code="starter", usd="9.99"), Package(code="pro", usd="99.99", bonus_percent="10"))


@dataclass
class Api:
    """A client, and what stands behind it."""

    client: httpx.AsyncClient
    money: MoneyIn
    shop: Shop

    async def key(self, account: str) -> dict[str, str]:
        _, secret = await self.shop.books.accounts.create_key(account, KeyRules())
        return {"authorization": f"Bearer {secret}"}

    async def acting(self, account: str) -> dict[str, str]:
        """The operator's own app, acting for an account."""
        _, secret = await Admins(self.shop.books.database).create("the app", "service", Who("test", "owner"))
        return {"authorization": f"Bearer {secret}", "tollkeeper-account": account}

    async def hook(
        self, body: bytes, *, secret: str = SECRET, at: int | None = None, header: str | None = None
    ) -> httpx.Response:
        """One webhook delivery, signed now unless told otherwise."""
        signature = sign(body, secret, int(time.time()) if at is None else at) if header is None else header
        return await self.client.post("/webhooks/stripe", content=body, headers={"stripe-signature": signature})

    async def count(self, name: str, **labels: str) -> int:
        self.money.metrics.publish()
        return int(self.registry.get_sample_value(name, labels) or 0)

    registry: CollectorRegistry = None  # type: ignore[assignment]


def settings(**changes: Any) -> Settings:
    """Settings for the in-process API; `billing`, `stripe` and so on as dicts."""
    sections = {
        "stripe": {
            "success_url": "https://app.test/ok",
            "cancel_url": "https://app.test/credits",
            **changes.pop("stripe", {}),
        }
    }
    return msgspec.structs.replace(msgspec.convert({**sections, **changes}, Settings), packages=PACKAGES)


@contextlib.asynccontextmanager
async def open_api(
    shop: Shop, conf: Settings | None = None, *, secrets: tuple[str, ...] = (SECRET,)
) -> AsyncIterator[Api]:
    conf = conf or settings()
    registry = CollectorRegistry()
    keys = StripeKeys(Secret("sk_test_1"), tuple(Secret(secret) for secret in secrets)) if secrets else None
    money = MoneyIn(conf, shop.books.database, keys, Metrics(registry))
    gateway = cast("StripeGateway", shop.stripe)
    money._parts = StripeParts(
        gateway, shop.sync, shop.worker, shop.checkout, shop.sweeper, shop.recharger, shop.refunds
    )
    authenticator = Authenticator(shop.books.accounts, 60, Admins(shop.books.database))
    routes = CheckoutApi(money, authenticator, shop.books.accounts).routes()
    routes += StripeWebhook(money).routes()
    routes += PromosApi(money.promos, authenticator).routes()
    routes += SettingsApi(money, authenticator, Statements(shop.books.database)).routes()
    transport = httpx.ASGITransport(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as client:
        yield Api(client, money, shop, registry)
