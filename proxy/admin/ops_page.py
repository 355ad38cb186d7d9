"""The ops page: /admin. Server-rendered, no script at all; signs in with an admin key or a token.

The same table of roles as the API decides; what a role may not do is not shown, and refused when it is sent all the
same.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from billing.ledger.accounts import KeyDetails, KeyRules
from billing.ledger.customers.search import AccountFilters
from billing.ledger.ledger import DAY_MS
from billing.ledger.rate_cards import RateCardError
from billing.ledger.records.account_details import AccountDetails
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import (
    AccountClosed,
    AccountNotFound,
    BillingError,
    ExternalIdTaken,
    InvalidDetails,
    KeyNotFound,
    NotClosed,
    StoreUnavailable,
)
from billing.money.postings import GrantTerms
from billing.payments.stripe.inbox import EventNotFound
from billing.storage.database import now_ms
from proxy.admin.accounts.access_page import AccessPage
from proxy.admin.accounts.api import account_refusal
from proxy.admin.accounts.bodies import read_credits
from proxy.admin.actions import AdminActions
from proxy.admin.auth import AdminAuth, AdminRoute, Caller, caller_of
from proxy.admin.checked_text import check_reason
from proxy.admin.events.pages import EventPages
from proxy.admin.ops_formatting import alarms, as_json, flag_ends, flag_views
from proxy.admin.ops_frame import COOKIE, HEADERS, ROWS, back_to, csrf_of, fields_of, message, page, render
from proxy.admin.plans.api import PlansApi
from proxy.admin.plans.pages import PlanPages
from proxy.admin.promos.pages import PromoPages
from proxy.admin.rows import account_row, audit_row
from proxy.customer_api.rows import staff_ledger_row, usage_row
from proxy.customer_api.usage import USUAL_DAYS, sums_row
from proxy.web.forms import own_form, session_form
from proxy.web.query import check_parameters, read_cursor, write_cursor
from proxy.web.rejections import Rejection, invalid

INBOX_STATES = ("pending", "parked", "done", "ignored")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OpsPage:
    """The handlers and what they need."""

    actions: AdminActions
    auth: AdminAuth
    plans: PlansApi
    events: EventPages
    promos: PromoPages

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        account = "/admin/accounts/{account_id}"
        return [
            AdminRoute("GET", "/admin", "overview.read", self._home),
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
            *AccessPage(lambda: self.actions.customers).table(),
            AdminRoute("GET", "/admin/flags", "flags.read", self._flags),
            AdminRoute("POST", "/admin/flags/set", "flags.write", self._set_flag),
            AdminRoute("POST", "/admin/flags/clear", "flags.write", self._clear_flag),
            AdminRoute("GET", "/admin/rates", "rates.read", self._rates),
            AdminRoute("POST", "/admin/rates/activate", "rates.write", self._activate),
            *PlanPages(self.plans).table(),
            *self.events.table(),
            *self.promos.table(),
            AdminRoute("GET", "/admin/upstreams", "overview.read", self._upstreams),
            AdminRoute("GET", "/admin/reconciliation", "reconciliation.read", self._reconciliation),
            AdminRoute("POST", "/admin/jobs/run", "jobs.run", self._run_job),
            AdminRoute("GET", "/admin/webhooks", "webhooks.read", self._webhooks),
            AdminRoute("POST", "/admin/webhooks/replay", "webhooks.replay", self._replay),
            AdminRoute("GET", "/admin/audit", "audit.read", self._audit),
        ]

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [
            Route("/admin/sign-in", self._sign_in, methods=["POST"]),
            Route("/admin/sign-out", self._sign_out, methods=["POST"]),
            Route("/admin/static/ops.css", _style, methods=["GET"]),
            *(Route(row.path, self._guarded(row), methods=[row.method]) for row in self.table()),
        ]

    # -- signing in -------------------------------------------------------------------------------

    async def _sign_in(self, request: Request) -> Response:
        try:
            # with a key of their own, somebody could otherwise have the visitor work as them
            form = await own_form(request, self._public_url, unnamed=False)
            key = str(form.get("key", "")).strip()
            caller = caller_of(await self.auth.admin(key, request), request)
            caller.require("overview.read")
            token = await self.auth.admins.sign_in(
                caller.admin, caller.who, self.actions.services.settings.admin.session_minutes
            )
        except Rejection as rejection:
            return self._ask(rejection.message, rejection.status)
        except StoreUnavailable:
            return self._ask("The database does not answer. Try again shortly.", 503)
        response = RedirectResponse("/admin", 303, HEADERS)
        secure = "https" in (urlsplit(self._public_url).scheme, request.url.scheme)
        response.set_cookie(COOKIE, token, path="/admin", secure=secure, httponly=True, samesite="strict")
        return response

    async def _sign_out(self, request: Request) -> Response:
        token = request.cookies.get(COOKIE, "")
        try:
            await session_form(request, self._public_url, csrf_of(token))
        except Rejection as rejection:  # another site signs nobody out
            return message("That did not work", rejection.message, rejection.status)
        with contextlib.suppress(StoreUnavailable):
            await self.auth.admins.sign_out(token)
        response = RedirectResponse("/admin", 303, HEADERS)
        response.delete_cookie(COOKIE, path="/admin")
        return response

    @property
    def _public_url(self) -> str:
        return self.actions.services.settings.portal.public_url

    def _ask(self, problem: str, status: int) -> Response:
        """Show the page that asks for a key.

        Its form must name our origin, which a browser does only of a page that sends referrers.
        """
        answer = render("ops_sign_in.html", {"problem": problem}, status)
        answer.headers["referrer-policy"] = "same-origin"
        return answer

    def _guarded(self, row: AdminRoute) -> Handler:
        """Wrap a handler for whoever is signed in and may; refusals become pages in plain words."""

        async def wrapped(request: Request) -> Response:
            token = request.cookies.get(COOKIE, "")
            try:
                check_parameters(request)
                admin = await self.auth.admins.session(token) if token else None
                if admin is None:
                    return self._ask("", 401)
                caller = caller_of(admin, request)
                caller.require(row.action)
                if request.method == "POST":
                    await session_form(request, self._public_url, csrf_of(token))
                return await row.handler(request, caller)
            except Rejection as rejection:
                return message("That did not work", rejection.message, rejection.status)
            except AccountNotFound:
                return message("Not found", "There is no such account.", 404)
            except StoreUnavailable:
                return message("Try again shortly", "The database does not answer right now. Nothing was changed.", 503)
            except (AccountClosed, NotClosed, ExternalIdTaken, InvalidDetails) as error:
                refusal = account_refusal(error)
                return message("That did not work", refusal.message, refusal.status)
            except KeyNotFound:
                return message("Not found", "There is no such key, or it is revoked already.", 404)
            except (EventNotFound, RateCardError, BillingError) as error:
                return message("That did not work", str(error), 404)

        return wrapped

    # -- pages ------------------------------------------------------------------------------------

    async def _home(self, request: Request, caller: Caller) -> Response:
        words = request.query_params.get("query", "").strip()
        found = []
        if caller.may("accounts.read"):
            found = [account_row(row) for row in await self.actions.customers.search(AccountFilters(words), ROWS)]
        content: dict[str, Any] = {"words": words, "accounts": found, "overview": await self.actions.overview()}
        if caller.may("flags.read"):
            content["alarms"] = alarms(flag_views(await self.actions.flags()))
        if caller.may("reconciliation.read"):
            content["checked"] = next(iter(await self.actions.runs.latest("reconcile", 1)), None)
        if caller.may("webhooks.read"):
            content["waiting"] = (await self.actions.inbox.depth()).waiting
        return page(request, caller, "ops_home.html", content)

    async def _account(self, request: Request, caller: Caller) -> Response:
        account_id, asked = request.path_params["account_id"], request.query_params
        after = asked.get("ledger", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None
        ledger = await self.actions.ledger.transfers_of(account_id, ROWS + 1, before)
        usage = await self.actions.ledger.usage_of(
            account_id, ROWS + 1, UsageFilters(before=read_cursor(asked.get("usage")))
        )
        content = {
            "account": await self.actions.customers.account(account_id),
            "ledger": [staff_ledger_row(row) for row in ledger[:ROWS]],
            "ledger_next": ledger[ROWS - 1].id if len(ledger) > ROWS else None,
            "usage": [usage_row(row) for row in usage[:ROWS]],
            "usage_next": write_cursor(usage[ROWS - 1].created_at, usage[ROWS - 1].charge_id)
            if len(usage) > ROWS
            else None,
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
        return page(request, caller, "ops_account.html", content)

    async def _plan_names(self) -> list[str]:
        """Names of the price plans that there are."""
        return sorted({row.plan_id for row in await self.plans.plans.versions()})

    async def _usage_sums(self, account_id: str) -> list[dict[str, Any]]:
        """Sum an account's last 30 days by model."""
        now, by = now_ms(), ("model",)
        filters = UsageFilters(since_ms=now - USUAL_DAYS * DAY_MS, until_ms=now)
        rows = await self.actions.summaries.sums(filters, by, account_id)
        return [sums_row(by, row, costs=True) for row in sorted(rows, key=lambda row: -row.charged)[:ROWS]]

    async def _flags(self, request: Request, caller: Caller) -> Response:
        return page(request, caller, "ops_flags.html", {"flags": flag_views(await self.actions.flags())})

    async def _rates(self, request: Request, caller: Caller) -> Response:
        return page(request, caller, "ops_rates.html", await self.actions.rate_cards())

    async def _upstreams(self, request: Request, caller: Caller) -> Response:
        return page(request, caller, "ops_upstreams.html", {"rows": await self.actions.upstreams()})

    async def _reconciliation(self, request: Request, caller: Caller) -> Response:
        content = {**await self.actions.reconciliation(ROWS), "jobs": await self.actions.job_list()}
        return page(request, caller, "ops_reconciliation.html", content)

    async def _webhooks(self, request: Request, caller: Caller) -> Response:
        state = request.query_params.get("state") or None
        if state not in (None, *INBOX_STATES):
            raise invalid("There is no such state.", "state")
        content = {**await self.actions.webhooks(state, ROWS), "states": INBOX_STATES, "state": state}
        return page(request, caller, "ops_webhooks.html", content)

    async def _audit(self, request: Request, caller: Caller) -> Response:
        after = request.query_params.get("before", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None
        rows = [audit_row(row) for row in await self.actions.audit.newest(ROWS + 1, before_id=before)]
        shown = [{**row, "before": as_json(row["before"]), "after": as_json(row["after"])} for row in rows[:ROWS]]
        older = shown[-1]["id"] if len(rows) > ROWS else None
        return page(request, caller, "ops_audit.html", {"rows": shown, "older": older, "paged": before is not None})

    # -- what the forms do ------------------------------------------------------------------------

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
        rules = KeyRules(spend_limit=read_credits(limit, "limit"), spend_period="month") if limit else KeyRules()
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

    async def _set_flag(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        try:
            value = msgspec.json.decode(form("value").encode())
        except msgspec.DecodeError:
            value = form("value")
        await self.actions.set_flag(caller, form("flag"), value, form("reason"), flag_ends(form("expires"), now_ms()))
        return back_to("/admin/flags", "set")

    async def _clear_flag(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.actions.clear_flag(caller, form("flag"), form("reason"))
        return back_to("/admin/flags", "clear")

    async def _activate(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        reason = check_reason(form("reason"))
        await self.actions.rates.activate(form("card"), now_ms(), caller.who.actor[:80], caller.who, reason)
        return back_to("/admin/rates", "activate")

    async def _replay(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.actions.replay(caller, form("event"))
        return back_to("/admin/webhooks", "replay")

    async def _run_job(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.actions.run_job(caller, form("job"), form("reason"))
        return back_to("/admin/reconciliation", "run-job")


async def _style(request: Request) -> Response:
    del request
    body = files("proxy.credits_page").joinpath("templates/credits.css").read_bytes()
    body += files("proxy.admin").joinpath("templates/ops.css").read_bytes()
    return Response(body, 200, {"cache-control": "max-age=3600"}, "text/css; charset=utf-8")
