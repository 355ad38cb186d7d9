"""The admin API: /api/admin, JSON, an admin key or a token as bearer.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

import hashlib
import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from billing.accounting.usage_summary import GROUPS
from billing.ledger.admins import LONGEST_NAME, SERVICE
from billing.ledger.rate_cards import RateCardError
from billing.money.errors import AccountClosed, AccountNotFound, ExternalIdTaken, InvalidDetails, KeyNotFound, NotClosed
from billing.money.postings import GrantTerms
from billing.payments.stripe.inbox import EventNotFound
from billing.storage.database import now_ms
from proxy.admin.accounts.api import AccountsApi, account_refusal
from proxy.admin.actions import AdminActions, account_missing
from proxy.admin.auth import AdminAuth, AdminRoute, Caller, Handler
from proxy.admin.checked_text import check_reason, check_text
from proxy.admin.events.api import EventsApi
from proxy.admin.plans.api import PlansApi
from proxy.admin.promos.api import PromoCodesApi
from proxy.admin.request_bodies import (
    ActivationRequest,
    AdminKeyRequest,
    CreditsRequest,
    FlagRequest,
    ReasonRequest,
    RefundRequest,
    RoleRequest,
)
from proxy.admin.roles import ROLES
from proxy.admin.rows import admin_row, audit_row
from proxy.customer_api.statement_csv import journal_csv
from proxy.customer_api.usage import usage_csv, usage_summary
from proxy.web.http import json_body, json_handler, json_response
from proxy.web.paths import APP_ONLY
from proxy.web.query import page_limit, parse_end, parse_time, whole_number
from proxy.web.rejections import forbidden, invalid, not_found

NOT_FOR_PEOPLE = "On this port only your app's own key is taken (role service). People use listen.admin_port."
MONTH = re.compile(r"(2[0-9]{3})-(0[1-9]|1[0-2])")
STATES = ("pending", "parked", "done", "ignored")
MOST_REFERENCE = 80
"""Longest reference of a booking; a longer Idempotency-Key is known by its hash."""


@dataclass(frozen=True, slots=True)
class AdminApi:
    """The handlers and what they need."""

    actions: AdminActions
    auth: AdminAuth
    accounts: AccountsApi
    plans: PlansApi
    events: EventsApi
    promos: PromoCodesApi

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        base, account = "/api/admin", "/api/admin/accounts/{account_id}"
        return [
            AdminRoute("GET", f"{base}/whoami", "whoami", self._whoami),
            *self.accounts.table(),
            *self.plans.table(),
            *self.events.table(),
            *self.promos.table(),
            AdminRoute("POST", f"{account}/grant", "money.grant", self._grant),
            AdminRoute("POST", f"{account}/adjust", "money.adjust", self._adjust),
            AdminRoute("GET", f"{base}/flags", "flags.read", self._flags),
            AdminRoute("PUT", f"{base}/flags/{{flag}}", "flags.write", self._set_flag),
            AdminRoute("POST", f"{base}/flags/{{flag}}/clear", "flags.write", self._clear_flag),
            AdminRoute("GET", f"{base}/rates", "rates.read", self._rates),
            AdminRoute("POST", f"{base}/rates/activate", "rates.write", self._activate),
            AdminRoute("GET", f"{base}/upstreams", "overview.read", self._upstreams),
            AdminRoute("POST", f"{base}/upstreams/{{name}}/drain", "upstreams.drain", self._drain),
            AdminRoute("POST", f"{base}/upstreams/{{name}}/undrain", "upstreams.drain", self._undrain),
            AdminRoute("GET", f"{base}/usage/summary", "usage.read", self._usage_summary),
            AdminRoute("GET", f"{base}/usage/export", "usage.read", self._usage_export),
            AdminRoute("GET", f"{base}/overview", "overview.read", self._overview),
            AdminRoute("GET", f"{base}/reconciliation", "reconciliation.read", self._reconciliation),
            AdminRoute("GET", f"{base}/jobs", "reconciliation.read", self._jobs),
            AdminRoute("POST", f"{base}/jobs/{{job}}/run", "jobs.run", self._run_job),
            AdminRoute("GET", f"{base}/webhooks", "webhooks.read", self._webhooks),
            AdminRoute("POST", f"{base}/webhooks/{{event_id}}/replay", "webhooks.replay", self._replay),
            AdminRoute("POST", f"{base}/webhooks/{{event_id}}/ignore", "webhooks.replay", self._ignore),
            AdminRoute("GET", f"{base}/purchases/review", "purchases.decide", self._review),
            AdminRoute("POST", f"{base}/purchases/{{purchase_id}}/accept", "purchases.decide", self._accept),
            AdminRoute("POST", f"{base}/purchases/{{purchase_id}}/dismiss", "purchases.decide", self._dismiss),
            AdminRoute("POST", f"{base}/purchases/{{purchase_id}}/refund", "purchases.refund", self._refund),
            AdminRoute("GET", f"{base}/books/journal", "books.export", self._journal),
            AdminRoute("GET", f"{base}/audit", "audit.read", self._audit),
            AdminRoute("GET", f"{base}/audit/export", "audit.read", self._audit_export),
            AdminRoute("GET", f"{base}/admins", "admins.read", self._admins),
            AdminRoute("POST", f"{base}/admins", "admins.write", self._create_admin),
            AdminRoute("POST", f"{base}/admins/{{admin_key_id}}/role", "admins.write", self._change_role),
            AdminRoute("POST", f"{base}/admins/{{admin_key_id}}/revoke", "admins.write", self._revoke_admin),
        ]

    def routes(self) -> list[Route]:
        """Routes to mount: each path once, with a handler that picks the method's route."""
        paths: dict[str, dict[str, AdminRoute]] = {}
        for row in self.table():
            paths.setdefault(row.path, {})[row.method] = row
        return [Route(path, json_handler(self._guarded(rows)), methods=list(rows)) for path, rows in paths.items()]

    def _guarded(self, rows: dict[str, AdminRoute]) -> Any:
        async def handle(request: Request) -> Response:
            row = rows["GET" if request.method == "HEAD" else request.method]
            caller = await self.auth.bearer(request)
            if request.scope.get(APP_ONLY) and caller.admin.role != SERVICE:
                raise forbidden(NOT_FOR_PEOPLE, "role_not_allowed")
            caller.require(row.action)
            return await _call(row.handler, request, caller)

        return handle

    async def _whoami(self, request: Request, caller: Caller) -> Response:
        del request
        return json_response({"actor": caller.admin.actor, "role": caller.admin.role})

    # -- money -------------------------------------------------------------------------------------------

    async def _grant(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, CreditsRequest)
        done = await self.actions.move(
            caller,
            _account_id(request),
            asked.credits,
            asked.reason,
            _reference(request, asked.reference),
            GrantTerms(parse_end(asked.expires_at, "expiresAt"), asked.show_reason),
            adjust=False,
        )
        return json_response(done)

    async def _adjust(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, CreditsRequest)
        terms = GrantTerms(parse_end(asked.expires_at, "expiresAt"), asked.show_reason)
        reference = _reference(request, asked.reference)
        done = await self.actions.move(
            caller, _account_id(request), asked.credits, asked.reason, reference, terms, adjust=True
        )
        return json_response(done)

    # -- switches and prices ----------------------------------------------------------------------

    async def _flags(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": await self.actions.flags()})

    async def _set_flag(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, FlagRequest)
        ends = parse_end(asked.expires_at, "expiresAt")
        return json_response(
            await self.actions.set_flag(caller, request.path_params["flag"], asked.value, asked.reason, ends)
        )

    async def _clear_flag(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.clear_flag(caller, request.path_params["flag"], asked.reason))

    async def _rates(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response(await self.actions.rate_cards())

    async def _activate(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ActivationRequest)
        start = parse_time(asked.effective_at, "effectiveAt")
        reason = check_reason(asked.reason)
        await self.actions.rates.activate(
            asked.rate_card_id, now_ms() if start is None else start, caller.who.actor[:80], caller.who, reason
        )
        return json_response(await self.actions.rate_cards())

    async def _upstreams(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": await self.actions.upstreams()})

    async def _drain(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.drain(caller, request.path_params["name"], asked.reason))

    async def _undrain(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.undrain(caller, request.path_params["name"], asked.reason))

    # -- what is going on -------------------------------------------------------------------------

    async def _usage_summary(self, request: Request, caller: Caller) -> Response:
        del caller
        actions, account_id = self.actions, request.query_params.get("accountId")
        found = await usage_summary(request, actions.services, actions.summaries, account_id, groups=GROUPS, costs=True)
        return json_response(found)

    async def _usage_export(self, request: Request, caller: Caller) -> Response:
        del caller
        return usage_csv(request, self.actions.summaries, request.query_params.get("accountId"), named=True)

    async def _overview(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response(await self.actions.overview())

    async def _reconciliation(self, request: Request, caller: Caller) -> Response:
        del caller
        return json_response(await self.actions.reconciliation(page_limit(request)))

    async def _jobs(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": await self.actions.job_list()})

    async def _run_job(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.run_job(caller, request.path_params["job"], asked.reason), 202)

    async def _webhooks(self, request: Request, caller: Caller) -> Response:
        del caller
        state = request.query_params.get("state")
        if state is not None and state not in STATES:
            raise invalid(f"`state` is one of {', '.join(STATES)}.", "state")
        return json_response(await self.actions.webhooks(state, page_limit(request)))

    async def _replay(self, request: Request, caller: Caller) -> Response:
        reason = await _reason_if_any(request)
        return json_response(await self.actions.replay(caller, request.path_params["event_id"], reason))

    async def _ignore(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.ignore(caller, request.path_params["event_id"], asked.reason))

    async def _review(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": await self.actions.in_review()})

    async def _accept(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.accept(caller, request.path_params["purchase_id"], asked.reason))

    async def _dismiss(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, ReasonRequest)
        return json_response(await self.actions.dismiss(caller, request.path_params["purchase_id"], asked.reason))

    async def _refund(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, RefundRequest)
        purchase_id = request.path_params["purchase_id"].replace("\0", "")
        reference = _reference(request, asked.reference)
        return json_response(await self.actions.refund(caller, purchase_id, asked.usd, asked.reason, reference))

    async def _audit(self, request: Request, caller: Caller) -> Response:
        del caller
        cursor, limit = request.query_params.get("cursor"), page_limit(request)
        before = None if cursor is None else whole_number(cursor, "cursor")
        rows = await self.actions.audit.newest(limit + 1, request.query_params.get("subject"), before)
        following = str(rows[limit - 1].id) if len(rows) > limit else None
        return json_response({"data": [audit_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _audit_export(self, request: Request, caller: Caller) -> Response:
        """Every row as JSON lines, as `tollkeeper audit export` writes them.

        Read while it is sent, so of any length.
        """
        del request, caller
        lines = (msgspec.json.encode(row._asdict()) + b"\n" async for row in self.actions.audit.rows())
        headers = {"content-disposition": 'attachment; filename="audit.jsonl"', "cache-control": "no-store"}
        return StreamingResponse(lines, 200, headers, "application/jsonl")

    async def _journal(self, request: Request, caller: Caller) -> Response:
        """Write a month's journal as CSV, as `tollkeeper books journal` does; the present month where none is named."""
        del caller
        month = request.query_params.get("month", f"{datetime.now(UTC):%Y-%m}")
        first, last = _days_of(month)
        table = journal_csv(await self.actions.journal(first, last))
        headers = {"content-disposition": f'attachment; filename="journal-{month}.csv"', "cache-control": "no-store"}
        return Response(table.encode(), 200, headers, "text/csv; charset=utf-8")

    async def _admins(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": [admin_row(row) for row in await self.actions.admins.everyone()]})

    async def _create_admin(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, AdminKeyRequest)
        if asked.role not in ROLES:
            raise invalid(f"`role` is one of {', '.join(ROLES)}.", "role")
        name, ends = check_text(asked.name, "name", LONGEST_NAME), parse_end(asked.expires_at, "expiresAt")
        reason = check_reason(asked.reason) if asked.reason else ""
        key_id, secret = await self.actions.admins.create(name, asked.role, caller.who, ends, reason)
        return json_response({"adminKeyId": key_id, "name": name, "role": asked.role, "adminKey": secret}, 201)

    async def _change_role(self, request: Request, caller: Caller) -> Response:
        asked, key_id = await json_body(request, RoleRequest), request.path_params["admin_key_id"]
        if asked.role not in ROLES:
            raise invalid(f"`role` is one of {', '.join(ROLES)}.", "role")
        await self.actions.admins.change_role(key_id, asked.role, caller.who, check_reason(asked.reason))
        return json_response({"adminKeyId": key_id, "role": asked.role})

    async def _revoke_admin(self, request: Request, caller: Caller) -> Response:
        key_id = request.path_params["admin_key_id"]
        await self.actions.admins.revoke(key_id, caller.who, await _reason_if_any(request))
        return json_response({"adminKeyId": key_id, "revoked": True})


async def _call(handler: Handler, request: Request, caller: Caller) -> Response:
    """Call a handler; what billing cannot find or do becomes a refusal."""
    try:
        return await handler(request, caller)
    except AccountNotFound:
        raise account_missing() from None
    except (AccountClosed, NotClosed, ExternalIdTaken, InvalidDetails) as error:
        raise account_refusal(error) from None
    except KeyNotFound:
        raise not_found("There is no such key, or it is revoked already.", "key_not_found") from None
    except EventNotFound as error:
        raise not_found(str(error), "event_not_found") from None
    except RateCardError as error:
        raise not_found(str(error), "rate_card_not_found") from None


async def _reason_if_any(request: Request) -> str:
    """Read the reason in the body, where there is a body. Raises Rejection."""
    return check_reason((await json_body(request, ReasonRequest)).reason) if await request.body() else ""


def _reference(request: Request, given: str) -> str:
    """Return the caller's name for a movement of money: of the body, or of the header that clients repeat a call with.

    "" without either. Raises Rejection when they differ.
    """
    key = request.headers.get("idempotency-key", "").strip()
    if given and key and given != key:
        raise invalid("`reference` and the header Idempotency-Key name two different things: send one.", "reference")
    if len(key) > MOST_REFERENCE:
        key = "key_" + hashlib.sha256(key.encode()).hexdigest()
    return given or key


def _account_id(request: Request) -> str:
    found: str = request.path_params["account_id"]
    return found


def _days_of(month: str) -> tuple[date, date]:
    """First and last day of a month. Raises Rejection."""
    found = MONTH.fullmatch(month)
    if found is None:
        raise invalid("`month` is a month such as 2026-11.", "month")
    year, number = int(found[1]), int(found[2])
    return date(year, number, 1), date(year, number, monthrange(year, number)[1])
