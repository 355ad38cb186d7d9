"""The part of the admin API about API keys: /api/admin/keys, and those of an account.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import KeyDetails, KeyRules
from billing.money.spend_periods import PERIODS
from proxy.admin.accounts.actions import AccountActions
from proxy.admin.accounts.bodies import KeyPatch, KeyRequest, RotateRequest, read_budgets, read_credits
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason, optional_reason
from proxy.admin.request_bodies import ReasonRequest
from proxy.web.http import json_body, json_response
from proxy.web.query import parse_end
from proxy.web.rejections import invalid

PLAIN = ("name", "models", "requests_per_minute", "tokens_per_minute", "concurrency")
"""Fields of a change that are rules or details as they stand."""


@dataclass(frozen=True, slots=True)
class KeysApi:
    """The handlers and what they need."""

    actions: AccountActions

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        keys, key = "/api/admin/accounts/{account_id}/keys", "/api/admin/keys/{key_id}"
        return [
            AdminRoute("GET", keys, "accounts.read", self._list),
            AdminRoute("POST", keys, "keys.create", self._create),
            AdminRoute("GET", key, "accounts.read", self._read),
            AdminRoute("PATCH", key, "keys.update", self._change),
            AdminRoute("POST", f"{key}/rotate", "keys.update", self._rotate),
            AdminRoute("POST", f"{key}/revoke", "keys.revoke", self._revoke),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        del caller
        return json_response({"data": await self.actions.keys_of(request.path_params["account_id"])})

    async def _create(self, request: Request, caller: Caller) -> Response:
        asked, account_id = await json_body(request, KeyRequest), request.path_params["account_id"]
        details = KeyDetails(asked.name, asked.tags, asked.reference)
        made = await self.actions.keys.changes.create(account_id, _rules(asked), details, caller.who)
        shown = {
            "accountId": account_id,
            "keyId": made.key_id,
            "apiKey": made.secret,
            "created": made.secret is not None,
        }
        return json_response(shown, 201 if made.secret is not None else 200)

    async def _read(self, request: Request, caller: Caller) -> Response:
        del caller
        return json_response(await self.actions.key(request.path_params["key_id"]))

    async def _change(self, request: Request, caller: Caller) -> Response:
        asked, key_id = await json_body(request, KeyPatch), request.path_params["key_id"]
        reason = optional_reason(asked.reason)
        await self.actions.keys.changes.change(key_id, _changes(asked), caller.who, reason)
        return json_response(await self.actions.key(key_id))

    async def _rotate(self, request: Request, caller: Caller) -> Response:
        asked, key_id = await json_body(request, RotateRequest), request.path_params["key_id"]
        reason = optional_reason(asked.reason)
        secret = await self.actions.keys.changes.rotate(key_id, asked.grace_seconds * 1_000, caller.who, reason)
        return json_response({**await self.actions.key(key_id), "apiKey": secret})

    async def _revoke(self, request: Request, caller: Caller) -> Response:
        asked, key_id = await json_body(request, ReasonRequest), request.path_params["key_id"]
        await self.actions.accounts.revoke_key(key_id, caller.who, check_reason(asked.reason))
        return json_response({"keyId": key_id, "revoked": True})


def _rules(asked: KeyRequest) -> KeyRules:
    """Return the rules as the body states them. Raises Rejection."""
    limit = read_credits(asked.spend_limit_credits, "spendLimitCredits")
    _check_period(asked.spend_period, "spendPeriod")
    return KeyRules(
        models=asked.models,
        spend_limit=limit,
        spend_period=asked.spend_period if limit is not None else None,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_minute=asked.tokens_per_minute,
        concurrency=asked.concurrency,
        expires_at=parse_end(asked.expires_at, "expiresAt"),
        budgets=read_budgets(asked.budgets),
        member=asked.role == "member",
    )


def _changes(asked: KeyPatch) -> dict[str, Any]:
    """Return what the body changes. Raises Rejection."""
    found = {name: value for name in PLAIN if (value := getattr(asked, name)) is not msgspec.UNSET}
    if asked.role is not msgspec.UNSET:
        found["member"] = asked.role == "member"
    if asked.tags is not msgspec.UNSET:
        found["tags"] = asked.tags or ()
    if asked.budgets is not msgspec.UNSET:
        found["budgets"] = read_budgets(asked.budgets or ())
    if asked.spend_limit_credits is not msgspec.UNSET:
        found["spend_limit"] = read_credits(asked.spend_limit_credits, "spendLimitCredits")
    if asked.spend_period is not msgspec.UNSET:
        _check_period(asked.spend_period, "spendPeriod")
        found["spend_period"] = asked.spend_period
    if asked.expires_at is not msgspec.UNSET:
        found["expires_at"] = parse_end(asked.expires_at, "expiresAt")
    return found


def _check_period(period: str, field: str) -> None:
    if period not in PERIODS:
        raise invalid(f"`{field}` is one of {', '.join(PERIODS)}.", field)
