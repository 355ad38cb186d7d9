"""The page of one account: /admin/accounts/ID, and its forms, which change the account, its credits and its keys."""

import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from billing.ledger.accounts import KeyDetails, KeyRules
from billing.ledger.records.account_details import AccountDetails
from billing.ledger.summaries.usage_days import DAY_MS
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import KeyNotFound
from billing.money.postings import GrantTerms
from billing.storage.database import now_ms
from proxy.admin.account_pages.purchase_pages import purchase_views
from proxy.admin.accounts.bodies import read_credits
from proxy.admin.actions import AdminActions
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason
from proxy.admin.ops_formatting import flag_ends
from proxy.admin.ops_frame import HEADERS, ROWS, back_to, fields_of, headers_to, message, page
from proxy.admin.plans.api import PlansApi
from proxy.customer_api.rows import staff_ledger_row, usage_row
from proxy.customer_api.usage import USUAL_DAYS, sums_row
from proxy.web.query import read_cursor, write_cursor

MOST_PURCHASES = 20
"""Purchases on an account's own page; older ones are found by their ids."""


@dataclass(frozen=True, slots=True)
class AccountPage:
    """The handlers and what they need. `public_url`: where a form leads on to the customer's page."""

    actions: AdminActions
    plans: PlansApi
    public_url: str

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        account = "/admin/accounts/{account_id}"
        return [
            AdminRoute("POST", "/admin/accounts", "accounts.create", self._create),
            AdminRoute("GET", account, "usage.read", self._account),
            AdminRoute("POST", f"{account}/details", "accounts.update", self._update),
            AdminRoute("POST", f"{account}/grant", "money.grant", self._grant),
            AdminRoute("POST", f"{account}/adjust", "money.adjust", self._adjust),
            AdminRoute("POST", f"{account}/block", "accounts.block", self._block),
            AdminRoute("POST", f"{account}/close", "accounts.close", self._close),
            AdminRoute("POST", f"{account}/erase", "accounts.erase", self._erase),
            AdminRoute("POST", f"{account}/keys", "keys.create", self._create_key),
            AdminRoute("GET", f"{account}/keys/new", "keys.create", self._new_key),
            AdminRoute("POST", f"{account}/keys/rotate", "keys.update", self._rotate_key),
            AdminRoute("POST", f"{account}/keys/revoke", "keys.revoke", self._revoke_key),
        ]

    async def _account(self, request: Request, caller: Caller) -> Response:
        account_id, asked = request.path_params["account_id"], request.query_params
        after = asked.get("ledger", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None
        ledger = await self.actions.ledger.transfers_of(account_id, ROWS + 1, before)
        usage = await self.actions.ledger.usage_of(
            account_id, ROWS + 1, UsageFilters(before=read_cursor(asked.get("usage")))
        )
        bought = await self.actions.money.purchases.of_account(account_id, MOST_PURCHASES + 1)
        purchases = await purchase_views(self.actions, bought)
        content = {
            "account": await self.actions.customers.account(account_id),
            "ledger": [staff_ledger_row(row) for row in ledger[:ROWS]],
            "ledger_next": ledger[ROWS - 1].id if len(ledger) > ROWS else None,
            "usage": [usage_row(row) for row in usage[:ROWS]],
            "usage_next": write_cursor(usage[ROWS - 1].created_at, usage[ROWS - 1].charge_id)
            if len(usage) > ROWS
            else None,
            "purchases": purchases[:MOST_PURCHASES],
            "more_purchases": len(purchases) > MOST_PURCHASES,
            "refund_reference": "refund_" + secrets.token_hex(12),
            "plan": await self.plans.of(account_id),
            "plans": await self._plan_names(),
            "sums": await self._usage_sums(account_id),
            "paged": "ledger" in asked or "usage" in asked,
            "cap": None
            if caller.may("money.grant_any")
            else self.actions.services.settings.admin.support_grant_credits,
            "reference": "grant_" + secrets.token_hex(12),
            "key_reference": "page_" + secrets.token_hex(12),
        }
        answer = page(request, caller, "ops_account.html", content)
        answer.headers.update(headers_to(self.public_url))
        return answer

    async def _plan_names(self) -> list[str]:
        """Names of the price plans that there are."""
        return sorted({row.plan_id for row in await self.plans.plans.versions()})

    async def _usage_sums(self, account_id: str) -> list[dict[str, Any]]:
        """Sum an account's last 30 days by model."""
        now, by = now_ms(), ("model",)
        filters = UsageFilters(since_ms=now - USUAL_DAYS * DAY_MS, until_ms=now)
        rows = await self.actions.summaries.sums(filters, by, account_id)
        return [sums_row(by, row, costs=True) for row in sorted(rows, key=lambda row: -row.charged)[:ROWS]]

    async def _grant(self, request: Request, caller: Caller) -> Response:
        return await self._move(request, caller, adjust=False)

    async def _adjust(self, request: Request, caller: Caller) -> Response:
        return await self._move(request, caller, adjust=True)

    async def _move(self, request: Request, caller: Caller, *, adjust: bool) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        terms = GrantTerms(flag_ends(form("expires"), now_ms()), form("show") == "yes")
        what = (form("credits"), form("reason"), form("reference"))
        await self.actions.move(caller, account_id, *what, terms, adjust=adjust)
        return back_to(f"/admin/accounts/{quote(account_id)}", "adjust" if adjust else "grant")

    async def _block(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        blocked = form("blocked") == "yes"
        await self.actions.customers.block(caller, account_id, form("reason"), blocked=blocked)
        return back_to(f"/admin/accounts/{quote(account_id)}", "block" if blocked else "unblock")

    async def _create(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        details = AccountDetails(form("name"), form("external_id") or None, form("email") or None)
        made = await self.actions.customers.create(caller, details, key=False)
        return back_to(f"/admin/accounts/{made['accountId']}", "create" if made["created"] else "there")

    async def _update(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        changes = {"name": form("name"), "external_id": form("external_id") or None, "email": form("email") or None}
        await self.actions.customers.update(caller, account_id, changes, form("reason"))
        return back_to(f"/admin/accounts/{quote(account_id)}", "update")

    async def _close(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        refund = form("remainder") == "refund"
        done = await self.actions.customers.close(caller, account_id, form("reason"), refund=refund, forget=True)
        failed = any(part["problem"] for part in done["refunds"])
        return back_to(f"/admin/accounts/{quote(account_id)}", "close-in-part" if failed else "close")

    async def _erase(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        await self.actions.customers.erase(caller, account_id, form("reason"))
        return back_to(f"/admin/accounts/{quote(account_id)}", "erase")

    async def _create_key(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        changes = self.actions.customers.keys.changes
        limit, details = form("limit"), KeyDetails(form("name") or None, (), form("reference") or None)
        rules = KeyRules(member=form("role") == "member")
        if limit:
            rules = rules._replace(spend_limit=read_credits(limit, "limit"), spend_period="month")
        made = await changes.create(account_id, rules, details, caller.who)
        if made.secret is None:
            return back_to(f"/admin/accounts/{quote(account_id)}", "key-there")
        return await self._show_once(account_id, caller, made.secret)

    async def _rotate_key(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        await self._own_key(account_id, form("key"))
        secret = await self.actions.customers.keys.changes.rotate(
            form("key"), DAY_MS, caller.who, check_reason(form("reason"))
        )
        return await self._show_once(account_id, caller, secret)

    async def _revoke_key(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        await self._own_key(account_id, form("key"))
        await self.actions.customers.accounts.revoke_key(form("key"), caller.who, check_reason(form("reason")))
        return back_to(f"/admin/accounts/{quote(account_id)}", "revoke")

    async def _own_key(self, account_id: str, key_id: str) -> None:
        """Raise KeyNotFound unless the account of this page has that key."""
        if key_id not in {row.id for row in await self.actions.customers.accounts.keys_of(account_id)}:
            raise KeyNotFound(key_id)

    async def _show_once(self, account_id: str, caller: Caller, secret: str) -> Response:
        token = await self.actions.customers.keys.shown.put(caller.admin.actor, secret)
        return RedirectResponse(f"/admin/accounts/{quote(account_id)}/keys/new?shown={token}", 303, HEADERS)

    async def _new_key(self, request: Request, caller: Caller) -> Response:
        token, back = request.query_params.get("shown", ""), f"/admin/accounts/{request.path_params['account_id']}"
        secret = await self.actions.customers.keys.shown.take(caller.admin.actor, token)
        if secret is None:
            return message("Not shown again", "A new key is shown once, and this one was.", 404)
        return page(request, caller, "ops_new_key.html", {"secret": secret, "back": back})
