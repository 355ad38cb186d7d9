"""Price plans on the ops page: /admin/plans, and the plan of an account on its own page."""

from dataclasses import dataclass
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.ops_formatting import as_json
from proxy.admin.ops_frame import back_to, fields_of, page
from proxy.admin.plans.api import PlansApi
from proxy.web.rejections import invalid


@dataclass(frozen=True, slots=True)
class PlanPages:
    """The handlers and what they need."""

    plans: PlansApi

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/admin/plans", "plans.read", self._list),
            AdminRoute("POST", "/admin/plans", "plans.write", self._add),
            AdminRoute("POST", "/admin/accounts/{account_id}/plan", "plans.assign", self._assign),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        rows = [{**row, "prices": as_json(row["prices"])} for row in await self.plans.listing()]
        return page(request, caller, "ops_plans.html", {"rows": rows})

    async def _add(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        prices: dict[str, object] = {"markup": form("markup")} if form("markup") else {}
        try:
            prices |= {"models": msgspec.json.decode(form("models").encode())} if form("models") else {}
        except (msgspec.DecodeError, RecursionError) as error:
            raise invalid(f"The models are no JSON: {error}.", "models") from None
        await self.plans.add(caller, form("plan"), prices, form("reason"), form("starts"), form("ends"))
        return back_to("/admin/plans", "plan")

    async def _assign(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        plan = form("plan") or None
        await self.plans.assign(caller, account_id, plan, form("reason"), form("starts"), form("ends"))
        return back_to(f"/admin/accounts/{quote(account_id)}", "assign")
