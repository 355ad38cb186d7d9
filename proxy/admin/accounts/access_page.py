"""The ops page of who uses an account: its end users with their budgets and wallets, and its short-lived tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from billing.ledger.accounts import KeyBudget
from billing.ledger.customers.end_users import EndUserChange
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.accounts.bodies import read_credits
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason
from proxy.admin.ops_frame import fields_of, page
from proxy.admin.rows import end_user_row, end_user_rules_row, token_row

ROWS = 100
PERIODS = ("day", "week", "month")


@dataclass(frozen=True, slots=True)
class AccessPage:
    """The handlers and what they need."""

    customers: Callable[[], AccountActions]

    @property
    def actions(self) -> AccountActions:
        """The parts."""
        return self.customers()

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        access = "/admin/accounts/{account_id}/access"
        return [
            AdminRoute("GET", access, "accounts.read", self._page),
            AdminRoute("POST", f"{access}/rules", "end_users.write", self._rules),
            AdminRoute("POST", f"{access}/end-users", "end_users.write", self._end_user),
            AdminRoute("POST", f"{access}/revoke", "tokens.revoke", self._revoke),
        ]

    async def _page(self, request: Request, caller: Caller) -> Response:
        account_id, desk = request.path_params["account_id"], self.actions.keys
        after = request.query_params.get("after", "")
        account, rules = await self.actions.accounts.get(account_id), await desk.end_users.rules(account_id)
        users = await desk.end_users.listed(account_id, ROWS + 1, after)
        uses = await self.actions.end_users_used(users[:ROWS])
        content = {
            "account": account,
            "rules": end_user_rules_row(account_id, rules),
            "users": [end_user_row(user, used) for user, used in zip(users, uses, strict=False)],
            "users_next": users[ROWS - 1].name if len(users) > ROWS else None,
            "paged": bool(after),
            "tokens": [token_row(row) for row in await desk.tokens.listed(account_id, ROWS)],
            "periods": PERIODS,
        }
        return page(request, caller, "ops_access.html", content)

    async def _rules(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        await self.actions.keys.end_users.set_rules(
            account_id,
            caller.who,
            _budgets(form),
            required=form("required") == "yes",
            reason=check_reason(form("reason")),
        )
        return _back(account_id, "rules")

    async def _end_user(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        wallet = True if form("wallet") == "yes" else None
        change = EndUserChange(_budgets(form), form("blocked") == "yes", wallet)
        await self.actions.keys.end_users.put(
            account_id, form("end_user"), change, caller.who, check_reason(form("reason"))
        )
        return _back(account_id, "end-user")

    async def _revoke(self, request: Request, caller: Caller) -> Response:
        form, account_id = await fields_of(request), request.path_params["account_id"]
        await self.actions.keys.tokens.revoke(form("token"), caller.who, check_reason(form("reason")), account_id)
        return _back(account_id, "revoke-token")


def _budgets(form: Callable[[str], str]) -> tuple[KeyBudget, ...]:
    """Read the one budget that the form has; none where it is empty. Raises Rejection."""
    limit = read_credits(form("limit") or None, "limit")
    return () if limit is None else (KeyBudget(limit, form("period")),)


def _back(account_id: str, done: str) -> Response:
    headers = {"cache-control": "no-store"}
    return RedirectResponse(f"/admin/accounts/{quote(account_id)}/access?done={done}", 303, headers)
