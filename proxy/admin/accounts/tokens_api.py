"""Short-lived tokens for browsers and devices: /api/tokens.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import TokenTerms
from billing.ledger.customers.access_tokens import TokenRequest
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.accounts.bodies import AccessTokenRequest, read_credits
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason
from proxy.admin.request_bodies import ReasonRequest
from proxy.admin.rows import token_row
from proxy.web.http import json_body, json_response
from proxy.web.query import page_limit, read_cursor, write_cursor
from proxy.web.rejections import invalid


@dataclass(frozen=True, slots=True)
class TokensApi:
    """The handlers and what they need."""

    actions: AccountActions

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/api/tokens", "accounts.read", self._list),
            AdminRoute("POST", "/api/tokens", "tokens.create", self._create),
            AdminRoute("POST", "/api/tokens/{token_id}/revoke", "tokens.revoke", self._revoke),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        del caller
        query, limit = request.query_params, page_limit(request)
        if not (account_id := query.get("accountId", "")):
            raise invalid("Name the account whose tokens these are: `accountId`.", "accountId")
        await self.actions.accounts.get(account_id)
        rows = await self.actions.keys.tokens.listed(account_id, limit + 1, read_cursor(query.get("cursor")))
        following = write_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [token_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _create(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, AccessTokenRequest)
        ceiling = read_credits(asked.ceiling_credits, "ceilingCredits")
        terms = TokenTerms(asked.end_user, asked.origins, asked.buy)
        row, secret = await self.actions.keys.tokens.mint(
            asked.account_id, TokenRequest(asked.minutes, terms, asked.models, ceiling), caller.who
        )
        return json_response({**token_row(row), "token": secret}, 201)

    async def _revoke(self, request: Request, caller: Caller) -> Response:
        asked, token_id = await json_body(request, ReasonRequest), request.path_params["token_id"]
        await self.actions.keys.tokens.revoke(token_id, caller.who, check_reason(asked.reason))
        return json_response({"tokenId": token_id, "revoked": True})
