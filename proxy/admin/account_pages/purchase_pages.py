"""Purchases on the ops page: /admin/purchases with the queue of payments in review, and refunds where one is shown."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from billing.payments.claim_store import ClaimTotals
from billing.payments.purchase import STATES
from billing.payments.purchase_store import Purchase
from proxy.admin.actions import AdminActions
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.ops_frame import ROWS, back_to, fields_of, page
from proxy.admin.rows import review_row
from proxy.web.query import read_cursor, write_cursor
from proxy.web.rejections import invalid, not_found
from proxy.web.times import iso_time

LOOKS = {
    "credited": "good",
    "processing": "warn",
    "review": "bad",
    "failed": "bad",
    "disputed": "bad",
    "partly refunded": "warn",
}
"""State in words → how it looks; every other one is nothing to look at."""


@dataclass(frozen=True, slots=True)
class PurchasePages:
    """The handlers and what they need."""

    actions: AdminActions

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/admin/purchases", "usage.read", self._list),
            AdminRoute("POST", "/admin/purchases/accept", "purchases.decide", self._accept),
            AdminRoute("POST", "/admin/purchases/dismiss", "purchases.decide", self._dismiss),
            AdminRoute("POST", "/admin/purchases/refund", "purchases.refund", self._refund),
            AdminRoute("POST", "/admin/accounts/{account_id}/refund", "purchases.refund", self._refund_here),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        asked = request.query_params
        state, before = asked.get("state") or None, read_cursor(asked.get("older"))
        if state is not None and state not in STATES:
            raise invalid("There is no such state.", "state")
        rows = await self.actions.money.purchases.newest(ROWS + 1, state, before)
        content = {
            "review": [review_row(row) for row in await self.actions.money.purchases.in_review()],
            "rows": await purchase_views(self.actions, rows[:ROWS]),
            "older": write_cursor(rows[ROWS - 1].created_at, rows[ROWS - 1].id) if len(rows) > ROWS else None,
            "paged": before is not None,
            "states": STATES,
            "state": state,
            "refund_reference": "refund_" + secrets.token_hex(12),
        }
        return page(request, caller, "ops_purchases.html", content)

    async def _accept(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.actions.accept(caller, form("purchase"), form("reason"))
        return back_to("/admin/purchases", "accept")

    async def _dismiss(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.actions.dismiss(caller, form("purchase"), form("reason"))
        return back_to("/admin/purchases", "dismiss")

    async def _refund(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self._give_back(request, caller, form("purchase"))
        return back_to("/admin/purchases", "refund")

    async def _refund_here(self, request: Request, caller: Caller) -> Response:
        """Refund from the page of the account, of whom the purchase must be."""
        form, account_id = await fields_of(request), request.path_params["account_id"]
        purchase = await self.actions.money.purchases.get(form("purchase"))
        if purchase is None or purchase.account_id != account_id:
            raise not_found("This account has no such purchase.", "purchase_not_found")
        await self._give_back(request, caller, purchase.id)
        return back_to(f"/admin/accounts/{quote(account_id)}", "refund")

    async def _give_back(self, request: Request, caller: Caller, purchase_id: str) -> None:
        form = await fields_of(request)
        usd = form("usd").removeprefix("$") or None
        await self.actions.refund(caller, purchase_id, usd, form("reason"), form("reference"))


async def purchase_views(actions: AdminActions, rows: Sequence[Purchase]) -> list[dict[str, Any]]:
    """Return purchases as the pages show them, with what refunds and disputes took back."""
    totals = await actions.money.claims.totals([row.id for row in rows])
    return [_view(row, totals.get(row.id)) for row in rows]


def _view(row: Purchase, totals: ClaimTotals | None) -> dict[str, Any]:
    state = totals.word if totals is not None and row.state == "credited" else row.state
    cents = row.total_cents or row.price_cents
    back = totals.refunded_cents if totals is not None else 0
    return {
        "id": row.id,
        "accountId": row.account_id,
        "createdAt": iso_time(row.created_at),
        "origin": row.origin,
        "package": row.package_code,
        "state": state,
        "look": LOOKS.get(state, "off"),
        "problem": row.problem,
        "cents": cents,
        "refundedCents": back,
        "millicredits": row.paid_millicredits + row.bonus_millicredits,
        "refundable": row.state in ("credited", "review") and back < cents,
    }
