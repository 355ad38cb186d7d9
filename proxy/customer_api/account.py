"""The customer's side API: balance, ledger, usage, one request's record. Bearer key, JSON; see openapi.json.

Amounts are strings of millicredits; credits and USD are numbers for display. Times are ISO 8601 in UTC.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.ledger.accounts import ApiKey
from billing.ledger.ledger import Ledger
from billing.ledger.usage_rows import UsageFilters
from billing.money.amounts import display_credits, display_usd, package_credits
from proxy.customer_api.callers import authenticate
from proxy.customer_api.rows import ledger_row, usage_details, usage_row
from proxy.gateway.admission import banners
from proxy.gateway.endpoints import METERED, REALTIME
from proxy.gateway.plan import may_use_model
from proxy.gateway.services import Services
from proxy.web.http import json_handler, json_response
from proxy.web.query import page_limit, parse_time, read_cursor, whole_number, write_cursor
from proxy.web.rejections import not_found

RECENT = 10
SERVED = frozenset([*(path.decode() for _, path in METERED), REALTIME.name])


@dataclass(frozen=True, slots=True)
class AccountApi:
    """The handlers and what they need."""

    services: Services
    ledger: Ledger

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [
            Route("/api/billing/me", json_handler(self._me)),
            Route("/api/billing/ledger", json_handler(self._ledger)),
            Route("/api/billing/usage", json_handler(self._usage)),
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
                "packages": [
                    self._package(package.code, package.usd, package.bonus_percent)
                    for package in self.services.settings.packages
                ],
                "banner": " ".join(banners(self.services.settings, key.account_id)) or None,
                "purchasesEnabled": self.services.settings.billing.purchase_enabled,
                "activeRates": self._rates(key),
                "recentLedger": [ledger_row(row) for row in await self.ledger.transfers_of(key.account_id, RECENT)],
                "recentUsage": [usage_row(row) for row in await self.ledger.usage_of(key.account_id, RECENT)],
            }
        )

    async def _ledger(self, request: Request) -> Response:
        key = await self._key(request)
        limit = page_limit(request)
        cursor = request.query_params.get("cursor")
        before = None if cursor is None else whole_number(cursor, "cursor")
        rows = await self.ledger.transfers_of(key.account_id, limit + 1, before)
        following = str(rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [ledger_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _usage(self, request: Request) -> Response:
        key = await self._key(request)
        limit, query = page_limit(request), request.query_params
        filters = UsageFilters(
            model=query.get("model"),
            key_id=query.get("keyId"),
            endpoint=query.get("endpoint"),
            since_ms=parse_time(query.get("since"), "since"),
            until_ms=parse_time(query.get("until"), "until"),
            before=read_cursor(query.get("cursor")),
        )
        rows = await self.ledger.usage_of(key.account_id, limit + 1, filters)
        following = write_cursor(rows[limit - 1].created_at, rows[limit - 1].charge_id) if len(rows) > limit else None
        return json_response({"data": [usage_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _generation(self, request: Request) -> Response:
        key = await self._key(request)
        request_id = request.path_params["request_id"]
        rows = await self.ledger.usage_of(key.account_id, 1, UsageFilters(request_id=request_id))
        if not rows:
            raise not_found(
                "There is no such request of yours, or it was not charged and so has no record.", "request_not_found"
            )
        return json_response({**usage_row(rows[0]), **usage_details(rows[0])})

    async def _key(self, request: Request) -> ApiKey:
        return await authenticate(self.services.authenticator, request)

    def _rates(self, key: ApiKey) -> list[dict[str, Any]]:
        found, prices = [], self.services.prices
        for name in prices.names():
            model = prices.find(name)
            if model is None or not may_use_model(
                name, self.services.settings.billing.model_allowlist, key.rules.models
            ):
                continue
            if "default" in model.tiers and not SERVED.isdisjoint(model.endpoints):
                found.append({"model": name, **msgspec.json.decode(model.tiers["default"].short.snapshot)})
        return found

    @staticmethod
    def _package(code: str, usd: str, bonus_percent: str) -> dict[str, Any]:
        paid, bonus = package_credits(usd, bonus_percent)
        return {
            "code": code,
            "usd": usd,
            "bonusPercent": bonus_percent,
            "millicredits": str(paid + bonus),
            "credits": display_credits(paid + bonus),
        }
