"""The part of the admin API about the end users of an account: /api/admin/accounts/{account_id}/end-users.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.customers.end_users import EndUserChange
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.accounts.bodies import EndUserPut, EndUserRemoval, EndUserRulesPatch, read_budgets
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import optional_reason
from proxy.admin.rows import end_user_row, end_user_rules_row
from proxy.web.http import json_body, json_response
from proxy.web.query import page_limit
from proxy.web.rejections import not_found


@dataclass(frozen=True, slots=True)
class EndUsersApi:
    """The handlers and what they need."""

    actions: AccountActions

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        account = "/api/admin/accounts/{account_id}"
        users, rules = f"{account}/end-users", f"{account}/end-user-rules"
        return [
            AdminRoute("GET", rules, "accounts.read", self._rules),
            AdminRoute("PATCH", rules, "end_users.write", self._set_rules),
            AdminRoute("GET", users, "accounts.read", self._list),
            AdminRoute("PUT", users, "end_users.write", self._put),
            AdminRoute("POST", f"{users}/remove", "end_users.write", self._remove),
        ]

    async def _rules(self, request: Request, caller: Caller) -> Response:
        del caller
        account_id = request.path_params["account_id"]
        return json_response(end_user_rules_row(account_id, await self.actions.keys.end_users.rules(account_id)))

    async def _set_rules(self, request: Request, caller: Caller) -> Response:
        asked, account_id = await json_body(request, EndUserRulesPatch), request.path_params["account_id"]
        budgets = None if asked.budgets is None else read_budgets(asked.budgets)
        rules = await self.actions.keys.end_users.set_rules(
            account_id, caller.who, budgets, required=asked.required, reason=optional_reason(asked.reason)
        )
        return json_response(end_user_rules_row(account_id, rules))

    async def _list(self, request: Request, caller: Caller) -> Response:
        del caller
        account_id, limit = request.path_params["account_id"], page_limit(request)
        await self.actions.accounts.get(account_id)
        if (named := request.query_params.get("endUser")) is not None:
            return json_response({"data": [await self.actions.end_user(account_id, named)], "nextAfter": None})
        users = await self.actions.keys.end_users.listed(account_id, limit + 1, request.query_params.get("after", ""))
        uses = await self.actions.end_users_used(users[:limit])
        data = [end_user_row(user, used) for user, used in zip(users, uses, strict=False)]
        return json_response({"data": data, "nextAfter": users[limit - 1].name if len(users) > limit else None})

    async def _put(self, request: Request, caller: Caller) -> Response:
        asked, account_id = await json_body(request, EndUserPut), request.path_params["account_id"]
        budgets, reason = None if asked.budgets is None else read_budgets(asked.budgets), optional_reason(asked.reason)
        change = EndUserChange(budgets, asked.blocked, asked.wallet)
        _, new = await self.actions.keys.end_users.put(account_id, asked.end_user, change, caller.who, reason)
        return json_response(await self.actions.end_user(account_id, asked.end_user), 201 if new else 200)

    async def _remove(self, request: Request, caller: Caller) -> Response:
        asked, account_id = await json_body(request, EndUserRemoval), request.path_params["account_id"]
        reason = optional_reason(asked.reason)
        if not await self.actions.keys.end_users.remove(account_id, asked.end_user, caller.who, reason):
            raise not_found("Nothing is said of this end user.", "end_user_not_found")
        return json_response({"accountId": account_id, "endUser": asked.end_user, "removed": True})
