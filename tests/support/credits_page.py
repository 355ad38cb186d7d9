"""The Credits page of one account, visited in the test's own process."""

import contextlib
import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
from starlette.applications import Starlette

from billing.accounting.statements import Statements
from billing.accounting.usage_summary import UsageSummaries
from billing.ledger.customers.desk import key_desk
from billing.ledger.notices import NoticeQueue
from billing.ledger.portal_tokens import PortalTokens
from billing.money.pricing import PriceBook
from config.secrets import Secret
from config.settings import Settings
from proxy.admin.auth import AdminAuth
from proxy.credits_page.page import CreditsPage
from proxy.customer_api.account import AccountApi
from proxy.customer_api.money_in import MoneyIn
from proxy.gateway.services import Services
from tests.support.money_api import open_api, settings
from tests.support.plans import PRICES, TODAY
from tests.support.shop import Shop

KEY = "service-" + "k" * 32
HOST = "http://meter.test"


class Visit:
    """A browser without scripts, and what stands behind it."""

    def __init__(self, client: httpx.AsyncClient, shop: Shop, money: MoneyIn) -> None:
        self.client, self.shop, self.money = client, shop, money

    async def link(self, account: str, key: str = KEY) -> httpx.Response:
        return await self.client.post(
            "/api/portal/sessions", json={"accountId": account}, headers={"authorization": f"Bearer {key}"}
        )

    async def sign_in(self, account: str) -> httpx.Response:
        url = (await self.link(account)).json()["url"]
        return await self.enter(await self.client.get(url), follow_redirects=True)

    async def enter(self, asking: httpx.Response, *, origin: str | None = HOST, **options: Any) -> httpx.Response:
        """Press the button of the page that a link opens."""
        token = re.search(r'name="token" value="([^"]+)"', asking.text)
        assert token is not None, asking.text
        headers = {"origin": origin} if origin is not None else {}
        return await self.client.post("/credits/enter", data={"token": token[1]}, headers=headers, **options)

    async def page(self, query: str = "") -> str:
        answer = await self.client.get(f"/credits{query}")
        assert answer.status_code == 200, answer.text
        return answer.text

    async def send(self, path: str, **fields: str) -> httpx.Response:
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', await self.page())
        assert token is not None
        return await self.client.post(f"/credits/{path}", data={"csrf": token[1], **fields})


@contextlib.asynccontextmanager
async def visiting(
    shop: Shop,
    conf: Settings | None = None,
    admins: AdminAuth | None = None,
    prices: PriceBook | None = None,
    *,
    heard: bool = False,
) -> AsyncIterator[Visit]:
    """`heard`: somebody listens to events."""
    conf = conf or settings(billing={"auto_recharge": True})
    async with open_api(shop, conf) as api:
        if heard:
            api.money.notices = NoticeQueue(shop.books.database, wanted=True, kinds=("*",))
        services = cast(
            "Services",
            SimpleNamespace(
                settings=conf,
                balances=shop.books.store,
                authenticator=None,
                prices_of=lambda _: prices or PRICES,
                today=lambda: TODAY,
            ),
        )
        page = CreditsPage(
            api.money,
            PortalTokens(shop.books.database),
            shop.books.accounts,
            key_desk(shop.books.database),
            AccountApi(services, shop.books.ledger, UsageSummaries(shop.books.database), api.money),
            Statements(shop.books.database),
            Secret(KEY),
            HOST,
            admins.find_portal_staff if admins is not None else None,
        )
        transport = httpx.ASGITransport(Starlette(routes=page.routes()))
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            yield Visit(client, shop, api.money)
