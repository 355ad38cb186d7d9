"""The part of the admin API about accounts: /api/admin/accounts.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.customers.search import AccountFilters
from billing.ledger.records.account_details import FIELDS, AccountDetails
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import AccountClosed, ExternalIdTaken, InvalidDetails, NotClosed
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.accounts.bodies import AccountPatch, AccountRequest, BlockRequest, CloseRequest, WelcomeRequest
from proxy.admin.accounts.end_users_api import EndUsersApi
from proxy.admin.accounts.keys_api import KeysApi
from proxy.admin.accounts.tokens_api import TokensApi
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.request_bodies import ReasonRequest
from proxy.admin.rows import account_row, staff_usage_row
from proxy.customer_api.rows import staff_ledger_row
from proxy.web.http import json_body, json_response
from proxy.web.query import page_limit, read_cursor, whole_number, write_cursor
from proxy.web.rejections import Rejection, invalid
from proxy.web.times import iso_time

STATUSES = ("active", "blocked", "closed")


@dataclass(frozen=True, slots=True)
class AccountsApi:
    """The handlers and what they need."""

    actions: AccountActions

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        base, account = "/api/admin", "/api/admin/accounts/{account_id}"
        return [
            AdminRoute("GET", f"{base}/accounts", "accounts.read", self._search),
            AdminRoute("POST", f"{base}/accounts", "accounts.create", self._create),
            AdminRoute("GET", account, "accounts.read", self._account),
            AdminRoute("PATCH", account, "accounts.update", self._update),
            AdminRoute("GET", f"{account}/ledger", "usage.read", self._ledger),
            AdminRoute("GET", f"{account}/usage", "usage.read", self._usage),
            AdminRoute("POST", f"{account}/welcome", "money.welcome", self._welcome),
            AdminRoute("POST", f"{account}/block", "accounts.block", self._block),
            AdminRoute("POST", f"{account}/close", "accounts.close", self._close),
            AdminRoute("POST", f"{account}/erase", "accounts.erase", self._erase),
            *KeysApi(self.actions).table(),
            *EndUsersApi(self.actions).table(),
            *TokensApi(self.actions).table(),
        ]

    async def _search(self, request: Request, caller: Caller) -> Response:
        del caller
        limit = page_limit(request)
        rows = await self.actions.search(account_filters(request), limit + 1)
        following = write_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [account_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _create(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, AccountRequest)
        details = AccountDetails(asked.name, asked.external_id, asked.email, asked.metadata)
        made = await self.actions.create(caller, details, key=asked.key)
        return json_response(made, 201 if made["created"] else 200)

    async def _account(self, request: Request, caller: Caller) -> Response:
        del caller
        return json_response(await self.actions.account(_account_id(request)))

    async def _update(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, AccountPatch)
        changes = {name: value for name in FIELDS if (value := getattr(asked, name)) is not msgspec.UNSET}
        return json_response(await self.actions.update(caller, _account_id(request), changes, asked.reason))

    async def _ledger(self, request: Request, caller: Caller) -> Response:
        del caller
        account_id, limit = await self._existing_account(request), page_limit(request)
        cursor = request.query_params.get("cursor")
        before = None if cursor is None else whole_number(cursor, "cursor")
        rows = await self.actions.ledger.transfers_of(account_id, limit + 1, before)
        following = str(rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [staff_ledger_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _usage(self, request: Request, caller: Caller) -> Response:
        del caller
        account_id, limit = await self._existing_account(request), page_limit(request)
        as_of = self.actions.services.shown_until
        rows = await self.actions.ledger.usage_of(
            account_id, limit + 1, UsageFilters(before=read_cursor(request.query_params.get("cursor")))
        )
        following = write_cursor(rows[limit - 1].created_at, rows[limit - 1].charge_id) if len(rows) > limit else None
        shown = [staff_usage_row(row) for row in rows[:limit]]
        return json_response({"data": shown, "nextCursor": following, "asOf": iso_time(as_of) if as_of else None})

    async def _welcome(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, WelcomeRequest)
        return json_response(await self.actions.welcome(caller, _account_id(request), asked.credits))

    async def _block(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, BlockRequest)
        return json_response(
            await self.actions.block(caller, _account_id(request), asked.reason, blocked=asked.blocked)
        )

    async def _close(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, CloseRequest)
        done = await self.actions.close(
            caller,
            _account_id(request),
            asked.reason,
            refund=asked.remainder == "refund",
            forget=asked.forget_stored,
        )
        return json_response(done)

    async def _erase(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.erase(caller, _account_id(request), asked.reason))

    async def _existing_account(self, request: Request) -> str:
        """Id of the path's account. Raises AccountNotFound."""
        account_id = _account_id(request)
        await self.actions.accounts.get(account_id)
        return account_id


def account_refusal(error: AccountClosed | NotClosed | ExternalIdTaken | InvalidDetails) -> Rejection:
    """Return the refusal of a change that an account does not take."""
    match error:
        case InvalidDetails():
            return invalid(f"`{error.field}` must {error.rule}.", error.field)
        case ExternalIdTaken():
            return Rejection(409, "external_id_taken", f"Not changed: {error}.", param="externalId")
        case NotClosed():
            return Rejection(409, "account_not_closed", f"Nothing was erased: {error}.")
        case AccountClosed():
            return Rejection(409, "account_closed", f"Not done: {error}.")


def account_filters(request: Request) -> AccountFilters:
    """Return the filters of a listing, by the query. Raises Rejection."""
    asked = request.query_params
    status, pairs = asked.get("status"), [text.partition(":") for text in asked.getlist("metadata")]
    if status is not None and status not in STATUSES:
        raise invalid(f"`status` is one of {', '.join(STATUSES)}.", "status")
    if not all(key and colon for key, colon, _ in pairs):
        raise invalid("`metadata` is a key and its value, with a colon between: plan:pro.", "metadata")
    return AccountFilters(
        words=asked.get("query", "").strip(),
        external_id=asked.get("externalId"),
        email=asked.get("email"),
        status=status,
        metadata=tuple((key, value) for key, _, value in pairs),
        before=read_cursor(asked.get("cursor")),
    )


def _account_id(request: Request) -> str:
    found: str = request.path_params["account_id"]
    return found
