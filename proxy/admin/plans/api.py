"""The part of the admin API about price plans.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import Accounts
from billing.ledger.plans.price_plans import PricePlanNotFound, PricePlans, Validity
from billing.money.catalogue.price_plan import BadPricePlan
from billing.storage.database import now_ms
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason
from proxy.admin.plans.listing import list_plans, plan_of, version_row, warning_of
from proxy.admin.request_bodies import RequestBody
from proxy.customer_api.money_in import offers_of
from proxy.gateway.services import Services
from proxy.web.http import json_body, json_response
from proxy.web.query import parse_end, parse_time
from proxy.web.rejections import invalid, not_found


class PlanRequest(RequestBody, frozen=True):
    """A version of a price plan to be."""

    plan_id: str
    prices: dict[str, Any]
    reason: str
    starts_at: str | None = None
    ends_at: str | None = None


class AssignRequest(RequestBody, frozen=True):
    """A price plan for an account; null: everyone's prices."""

    plan_id: str | None
    starts_at: str | None = None
    ends_at: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PlansApi:
    """The handlers and what they need."""

    services: Services
    plans: PricePlans
    accounts: Accounts

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        account = "/api/admin/accounts/{account_id}/plan"
        return [
            AdminRoute("GET", "/api/admin/plans", "plans.read", self._list),
            AdminRoute("POST", "/api/admin/plans", "plans.write", self._add),
            AdminRoute("GET", account, "plans.read", self._of),
            AdminRoute("POST", account, "plans.assign", self._assign),
        ]

    async def listing(self) -> list[dict[str, Any]]:
        """List every version, newest first."""
        return await list_plans(self.plans, self.services.prices, offers_of(self.services.settings), now_ms())

    async def of(self, account_id: str) -> dict[str, Any]:
        """Say which plan an account has. Raises AccountNotFound."""
        await self.accounts.get(account_id)
        return await plan_of(self.plans, account_id, now_ms())

    async def add(
        self, caller: Caller, plan_id: str, prices: Any, reason: str, starts_at: str | None, ends_at: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Keep another version of a plan; (the version, whether it is new). Raises Rejection."""
        span, reason = _span(starts_at, ends_at), check_reason(reason)
        try:
            row, new = await self.plans.add(plan_id, prices, caller.who.actor[:80], caller.who, span, reason)
        except BadPricePlan as error:
            raise invalid(f"Not kept: {error}.", "prices") from None
        warning = warning_of(row, self.services.prices, offers_of(self.services.settings))
        return version_row(row, warning), new

    async def assign(
        self,
        caller: Caller,
        account_id: str,
        plan_id: str | None,
        reason: str,
        starts_at: str | None,
        ends_at: str | None,
    ) -> dict[str, Any]:
        """Give an account a plan, or everyone's prices. Raises Rejection, AccountNotFound."""
        span, reason = _span(starts_at, ends_at), check_reason(reason) if reason else ""
        try:
            await self.plans.assign(account_id, plan_id, caller.who.actor[:80], caller.who, span, reason)
        except PricePlanNotFound as error:
            raise not_found(f"Not assigned: {error}.", "plan_not_found") from None
        except BadPricePlan as error:
            raise invalid(f"Not assigned: {error}.", "endsAt") from None
        return await self.of(account_id)

    async def _list(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": await self.listing()})

    async def _add(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, PlanRequest)
        made, new = await self.add(caller, asked.plan_id, asked.prices, asked.reason, asked.starts_at, asked.ends_at)
        return json_response(made, 201 if new else 200)

    async def _of(self, request: Request, caller: Caller) -> Response:
        del caller
        return json_response(await self.of(request.path_params["account_id"]))

    async def _assign(self, request: Request, caller: Caller) -> Response:
        asked, account_id = await json_body(request, AssignRequest), request.path_params["account_id"]
        done = await self.assign(caller, account_id, asked.plan_id, asked.reason, asked.starts_at, asked.ends_at)
        return json_response(done)


def _span(starts_at: str | None, ends_at: str | None) -> Validity:
    """Read from when until when something is to apply. Raises Rejection."""
    return Validity(parse_time(starts_at or None, "startsAt"), parse_end(ends_at or None, "endsAt"))
