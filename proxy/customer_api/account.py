"""The customer's side API: balance, ledger, usage, one request's record. Bearer key, JSON; see openapi.json.

Amounts are strings of millicredits; credits and USD are numbers for display. Times are ISO 8601 in UTC.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.accounting.usage_summary import UsageSummaries
from billing.ledger.accounts import ApiKey
from billing.ledger.ledger import Ledger
from billing.ledger.usage_rows import UsageFilters
from billing.money.amounts import display_credits, display_usd, package_credits
from config.settings import Package
from proxy.customer_api.callers import authenticate
from proxy.customer_api.credits.amounts import amount_bounds
from proxy.customer_api.credits.expiring import expiring_rows
from proxy.customer_api.money_in import MoneyIn
from proxy.customer_api.recharge import recharge_standing
from proxy.customer_api.rows import ledger_row, usage_details, usage_row
from proxy.customer_api.usage import usage_csv, usage_summary
from proxy.gateway.admission import banners, models_on_sale
from proxy.gateway.limits.standing import left_for
from proxy.gateway.services import Services
from proxy.web.http import json_handler, json_response
from proxy.web.query import page_limit, parse_time, read_cursor, whole_number, write_cursor
from proxy.web.rejections import not_found
from proxy.web.times import iso_time

RECENT = 10


@dataclass(frozen=True, slots=True)
class AccountApi:
    """The handlers and what they need."""

    services: Services
    ledger: Ledger
    summaries: UsageSummaries
    money: MoneyIn

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [
            Route("/api/billing/me", json_handler(self._me)),
            Route("/api/billing/balance", json_handler(self._balance)),
            Route("/api/billing/packages", json_handler(self._packages)),
            Route("/api/billing/ledger", json_handler(self._ledger)),
            Route("/api/billing/usage", json_handler(self._usage)),
            Route("/api/billing/usage/summary", json_handler(self._usage_summary)),
            Route("/api/billing/usage/export", json_handler(self._usage_export)),
            Route("/api/billing/generations/{request_id}", json_handler(self._generation)),
        ]

    async def _me(self, request: Request) -> Response:
        key = await self._key(request)
        reading = await self.services.balances.read(key.account_id)
        available = reading.balance - reading.held
        return json_response(
            {
                "accountId": key.account_id,
                "balanceMillicredits": str(reading.balance),
                "balanceCredits": display_credits(reading.balance),
                "balanceUsd": display_usd(reading.balance),
                "heldMillicredits": str(reading.held),
                "availableMillicredits": str(available),
                "availableCredits": display_credits(available),
                "packages": self._offers(),
                "anyAmount": amount_bounds(self.services.settings.purchases),
                "expiringCredits": expiring_rows(await self.ledger.expiring(key.account_id)),
                "banner": " ".join(banners(self.services.settings, key.account_id)) or None,
                "purchasesEnabled": self.services.settings.billing.purchase_enabled,
                "autoRecharge": await recharge_standing(self.money, key.account_id),
                "pricePlan": self.services.prices_of(key.home_id).plan_id or None,
                "activeRates": self._rates(key),
                "recentLedger": [ledger_row(row) for row in await self.ledger.transfers_of(key.account_id, RECENT)],
                "recentUsage": [usage_row(row) for row in await self.ledger.usage_of(key.account_id, RECENT)],
            }
        )

    async def _balance(self, request: Request) -> Response:
        """Answer with what a widget needs, and nothing that must be read from SQL."""
        key = await authenticate(self.services.authenticator, request, members=True, tokens="all")
        balance, held = await left_for(self.services, key)
        return json_response(
            {
                "accountId": key.account_id,
                "balanceMillicredits": str(balance),
                "heldMillicredits": str(held),
                "availableMillicredits": str(balance - held),
                "availableCredits": display_credits(balance - held),
                "availableUsd": display_usd(balance - held),
                "topUpUrl": self.services.absolute(self.services.settings.purchases.top_up_url),
            }
        )

    async def _packages(self, request: Request) -> Response:
        """Answer with what can be bought, also to the tokens that may."""
        await authenticate(self.services.authenticator, request, tokens="buyers")
        enabled = self.services.settings.billing.purchase_enabled
        any_amount = amount_bounds(self.services.settings.purchases)
        return json_response({"packages": self._offers(), "anyAmount": any_amount, "purchasesEnabled": enabled})

    async def _usage_summary(self, request: Request) -> Response:
        key = await self._member(request)
        sums = usage_summary(request, self.services, self.summaries, key.account_id, only_key=_only_own(key))
        return json_response(await sums)

    async def _usage_export(self, request: Request) -> Response:
        key = await self._member(request)
        return usage_csv(request, self.summaries, key.account_id, named=False, only_key=_only_own(key))

    async def _ledger(self, request: Request) -> Response:
        key = await self._key(request)
        limit = page_limit(request)
        cursor = request.query_params.get("cursor")
        before = None if cursor is None else whole_number(cursor, "cursor")
        rows = await self.ledger.transfers_of(key.account_id, limit + 1, before)
        following = str(rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [ledger_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _usage(self, request: Request) -> Response:
        key = await self._member(request)
        limit, query = page_limit(request), request.query_params
        filters = UsageFilters(
            model=query.get("model"),
            key_id=_only_own(key) or query.get("keyId"),
            endpoint=query.get("endpoint"),
            end_user=query.get("endUser"),
            tag=query.get("tag"),
            since_ms=parse_time(query.get("since"), "since"),
            until_ms=parse_time(query.get("until"), "until"),
            before=read_cursor(query.get("cursor")),
        )
        as_of = self.services.shown_until
        rows = await self.ledger.usage_of(key.account_id, limit + 1, filters)
        following = write_cursor(rows[limit - 1].created_at, rows[limit - 1].charge_id) if len(rows) > limit else None
        shown = [usage_row(row) for row in rows[:limit]]
        return json_response({"data": shown, "nextCursor": following, "asOf": iso_time(as_of) if as_of else None})

    async def _generation(self, request: Request) -> Response:
        key = await self._member(request)
        filters = UsageFilters(request_id=request.path_params["request_id"], key_id=_only_own(key))
        rows = await self.ledger.usage_of(key.account_id, 1, filters)
        if not rows:
            raise not_found(
                "There is no such request of yours, or it was not charged and so has no record.", "request_not_found"
            )
        return json_response({**usage_row(rows[0]), **usage_details(rows[0])})

    async def _key(self, request: Request) -> ApiKey:
        return await authenticate(self.services.authenticator, request)

    async def _member(self, request: Request) -> ApiKey:
        """Key of an owner, or of a member of their team."""
        return await authenticate(self.services.authenticator, request, members=True)

    def _rates(self, key: ApiKey) -> list[dict[str, Any]]:
        services = self.services
        prices = services.prices_of(key.home_id)
        sold = models_on_sale(prices, services.settings.billing, services.today(), key.rules.models)
        return [
            {"model": model.name, **msgspec.json.decode(model.tiers["default"].short.snapshot)}
            for model in sold
            if "default" in model.tiers
        ]

    def _offers(self) -> list[dict[str, Any]]:
        return [self._package(package) for package in self.services.settings.packages]

    @staticmethod
    def _package(package: Package) -> dict[str, Any]:
        paid, bonus = package_credits(package.usd, package.bonus_percent)
        return {
            "code": package.code,
            "usd": package.usd,
            "bonusPercent": package.bonus_percent,
            "bonusExpiresDays": package.bonus_expires_days or None,
            "millicredits": str(paid + bonus),
            "credits": display_credits(paid + bonus),
        }


def _only_own(key: ApiKey) -> str | None:
    """Return the key whose usage alone its holder may see; None: the whole account's."""
    return key.key_id if key.rules.member else None
