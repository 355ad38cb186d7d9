"""Promo codes on the ops page: /admin/promos."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.ops_frame import back_to, fields_of, page
from proxy.admin.promos.api import PromoCodesApi
from proxy.admin.promos.listing import promo_terms
from proxy.web.query import parse_end, parse_time, whole_number


@dataclass(frozen=True, slots=True)
class PromoPages:
    """The handlers and what they need."""

    api: PromoCodesApi

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/admin/promos", "promos.read", self._list),
            AdminRoute("POST", "/admin/promos", "promos.write", self._add),
            AdminRoute("POST", "/admin/promos/end", "promos.write", self._end),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        return page(request, caller, "ops_promos.html", {"rows": await self.api.listing()})

    async def _add(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        uses, days = (whole_number(form(name), name) if form(name) else None for name in ("uses", "days"))
        starts, ends = parse_time(form("starts") or None, "starts"), parse_end(form("ends") or None, "ends")
        terms = promo_terms(form("credits"), uses, starts, ends, days)
        await self.api.add(caller, form("code"), terms, form("reason"))
        return back_to("/admin/promos", "promo")

    async def _end(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.api.end(caller, form("code"), form("reason"))
        return back_to("/admin/promos", "promo-end")
