"""The part of the admin API about promo codes.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.credits.promos import BadPromo, PromoNotFound, Promos, PromoTaken, PromoTerms
from billing.storage.database import now_ms
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason
from proxy.admin.promos.listing import promo_row, promo_terms
from proxy.admin.request_bodies import ReasonRequest, RequestBody
from proxy.web.http import json_body, json_response
from proxy.web.query import parse_end, parse_time
from proxy.web.rejections import Rejection, forbidden, invalid, not_found

MOST_CREDITS = 1_000_000_000


class PromoCodeRequest(RequestBody, frozen=True):
    """A code to be; without `code` one is made up. `uses`: in all (None: any number); each account has it once."""

    credits: str
    reason: str
    code: str = ""
    uses: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None
    starts_at: str | None = None
    ends_at: str | None = None
    credit_days: Annotated[int, msgspec.Meta(ge=1, le=3_650)] | None = None


@dataclass(frozen=True, slots=True)
class PromoCodesApi:
    """The handlers and what they need."""

    promos: Promos

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        base = "/api/admin/promos"
        return [
            AdminRoute("GET", base, "promos.read", self._list),
            AdminRoute("POST", base, "promos.write", self._add),
            AdminRoute("POST", f"{base}/{{code}}/end", "promos.write", self._end),
        ]

    async def listing(self) -> list[dict[str, Any]]:
        """List every code, newest first."""
        return [promo_row(row, now_ms()) for row in await self.promos.listed()]

    async def add(self, caller: Caller, code: str, terms: PromoTerms, reason: str) -> tuple[dict[str, Any], bool]:
        """Make a code; (it, whether it is new). Raises Rejection."""
        if terms.amount * (terms.most_uses or 1) > MOST_CREDITS * 1_000:
            raise forbidden(f"A code may give at most {MOST_CREDITS} credits in all.", "grant_over_cap", "credits")
        try:
            row, new = await self.promos.add(code, terms, caller.who, check_reason(reason))
        except BadPromo as error:
            raise invalid(f"Not made: {error}.", error.field) from None
        except PromoTaken as error:
            raise Rejection(409, "promo_taken", f"Not made: {error}.", param="code") from None
        return promo_row(row, now_ms()), new

    async def end(self, caller: Caller, code: str, reason: str) -> dict[str, Any]:
        """Let nobody redeem a code any more. Raises Rejection."""
        try:
            return promo_row(await self.promos.end(code, caller.who, check_reason(reason)), now_ms())
        except PromoNotFound as error:
            raise not_found(f"Not ended: {error}.", "promo_not_found") from None

    async def _list(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": await self.listing()})

    async def _add(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, PromoCodeRequest)
        starts, ends = parse_time(asked.starts_at, "startsAt"), parse_end(asked.ends_at, "endsAt")
        terms = promo_terms(asked.credits, asked.uses, starts, ends, asked.credit_days)
        made, new = await self.add(caller, asked.code, terms, asked.reason)
        return json_response(made, 201 if new else 200)

    async def _end(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.end(caller, request.path_params["code"], asked.reason))
