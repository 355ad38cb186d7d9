"""The ops page: /admin. Server-rendered, no script at all; signs in with an admin key or a token.

The same table of roles as the API decides; what a role may not do is not shown, and refused when it is sent all the
same.
"""

import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
from jinja2 import Environment, PackageLoader
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from billing.ledger.rate_cards import RateCardError
from billing.ledger.usage_rows import UsageFilters
from billing.money.errors import AccountNotFound, BillingError, StoreUnavailable
from billing.payments.stripe.inbox import EventNotFound
from billing.storage.database import now_ms
from proxy.admin.actions import AdminActions, check_reason
from proxy.admin.auth import AdminAuth, AdminRoute, Caller, caller_of
from proxy.admin.ops_formatting import DONE, FILTERS, alarms, as_json, flag_ends, flag_views
from proxy.admin.rows import audit_row
from proxy.customer_api.rows import ledger_row, usage_row
from proxy.web.forms import own_form, session_form
from proxy.web.query import check_parameters, read_cursor, write_cursor
from proxy.web.rejections import Rejection, invalid

COOKIE = "tk_admin"
ROWS = 50
INBOX_STATES = ("pending", "parked", "done", "ignored")
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
    "cache-control": "no-store",
}
MENU = (
    ("/admin", "Overview", "overview.read"),
    ("/admin/flags", "Flags", "flags.read"),
    ("/admin/rates", "Rate cards", "rates.read"),
    ("/admin/reconciliation", "Reconciliation", "reconciliation.read"),
    ("/admin/webhooks", "Webhooks", "webhooks.read"),
    ("/admin/audit", "Audit log", "audit.read"),
)
TEMPLATES = Environment(
    loader=PackageLoader("proxy.admin", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters.update(FILTERS)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OpsPage:
    """The handlers and what they need."""

    actions: AdminActions
    auth: AdminAuth

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        account = "/admin/accounts/{account_id}"
        return [
            AdminRoute("GET", "/admin", "overview.read", self._home),
            AdminRoute("GET", account, "usage.read", self._account),
            AdminRoute("POST", f"{account}/grant", "money.grant", self._grant),
            AdminRoute("POST", f"{account}/adjust", "money.adjust", self._adjust),
            AdminRoute("POST", f"{account}/block", "accounts.block", self._block),
            AdminRoute("GET", "/admin/flags", "flags.read", self._flags),
            AdminRoute("POST", "/admin/flags/set", "flags.write", self._set_flag),
            AdminRoute("POST", "/admin/flags/clear", "flags.write", self._clear_flag),
            AdminRoute("GET", "/admin/rates", "rates.read", self._rates),
            AdminRoute("POST", "/admin/rates/activate", "rates.write", self._activate),
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
            return self._message("That did not work", rejection.message, rejection.status)
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
        answer = self._render("ops_sign_in.html", {"problem": problem}, status)
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
                return self._message("That did not work", rejection.message, rejection.status)
            except AccountNotFound:
                return self._message("Not found", "There is no such account.", 404)
            except StoreUnavailable:
                return self._message(
                    "Try again shortly", "The database does not answer right now. Nothing was changed.", 503
                )
            except (EventNotFound, RateCardError, BillingError) as error:
                return self._message("That did not work", str(error), 404)

        return wrapped

    # -- pages ------------------------------------------------------------------------------------

    async def _home(self, request: Request, caller: Caller) -> Response:
        words = request.query_params.get("query", "").strip()
        found = await self.actions.search(words, ROWS) if caller.may("accounts.read") else []
        content: dict[str, Any] = {"words": words, "accounts": found, "overview": await self.actions.overview()}
        if caller.may("flags.read"):
            content["alarms"] = alarms(flag_views(await self.actions.flags()))
        if caller.may("reconciliation.read"):
            content["checked"] = next(iter(await self.actions.runs.latest("reconcile", 1)), None)
        if caller.may("webhooks.read"):
            content["waiting"] = (await self.actions.inbox.depth()).waiting
        return self._page(request, caller, "ops_home.html", content)

    async def _account(self, request: Request, caller: Caller) -> Response:
        account_id, asked = request.path_params["account_id"], request.query_params
        after = asked.get("ledger", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None
        ledger = await self.actions.ledger.transfers_of(account_id, ROWS + 1, before)
        usage = await self.actions.ledger.usage_of(
            account_id, ROWS + 1, UsageFilters(before=read_cursor(asked.get("usage")))
        )
        content = {
            "account": await self.actions.account(account_id),
            "ledger": [ledger_row(row) for row in ledger[:ROWS]],
            "ledger_next": ledger[ROWS - 1].id if len(ledger) > ROWS else None,
            "usage": [usage_row(row) for row in usage[:ROWS]],
            "usage_next": write_cursor(usage[ROWS - 1].created_at, usage[ROWS - 1].charge_id)
            if len(usage) > ROWS
            else None,
            "paged": "ledger" in asked or "usage" in asked,
            "cap": None
            if caller.may("money.grant_any")
            else self.actions.services.settings.admin.support_grant_credits,
            "reference": "grant_" + secrets.token_hex(12),
        }
        return self._page(request, caller, "ops_account.html", content)

    async def _flags(self, request: Request, caller: Caller) -> Response:
        return self._page(request, caller, "ops_flags.html", {"flags": flag_views(await self.actions.flags())})

    async def _rates(self, request: Request, caller: Caller) -> Response:
        return self._page(request, caller, "ops_rates.html", await self.actions.rate_cards())

    async def _reconciliation(self, request: Request, caller: Caller) -> Response:
        content = {**await self.actions.reconciliation(ROWS), "jobs": await self.actions.job_list()}
        return self._page(request, caller, "ops_reconciliation.html", content)

    async def _webhooks(self, request: Request, caller: Caller) -> Response:
        state = request.query_params.get("state") or None
        if state not in (None, *INBOX_STATES):
            raise invalid("There is no such state.", "state")
        content = {**await self.actions.webhooks(state, ROWS), "states": INBOX_STATES, "state": state}
        return self._page(request, caller, "ops_webhooks.html", content)

    async def _audit(self, request: Request, caller: Caller) -> Response:
        after = request.query_params.get("before", "")
        before = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None
        rows = [audit_row(row) for row in await self.actions.audit.newest(ROWS + 1, before_id=before)]
        shown = [{**row, "before": as_json(row["before"]), "after": as_json(row["after"])} for row in rows[:ROWS]]
        older = shown[-1]["id"] if len(rows) > ROWS else None
        return self._page(
            request, caller, "ops_audit.html", {"rows": shown, "older": older, "paged": before is not None}
        )

    # -- what the forms do ------------------------------------------------------------------------

    async def _grant(self, request: Request, caller: Caller) -> Response:
        return await self._move(request, caller, adjust=False)

    async def _adjust(self, request: Request, caller: Caller) -> Response:
        return await self._move(request, caller, adjust=True)

    async def _move(self, request: Request, caller: Caller, *, adjust: bool) -> Response:
        form, account_id = await _fields(request), request.path_params["account_id"]
        await self.actions.move(caller, account_id, form("credits"), form("reason"), form("reference"), adjust=adjust)
        return _back(f"/admin/accounts/{quote(account_id)}", "adjust" if adjust else "grant")

    async def _block(self, request: Request, caller: Caller) -> Response:
        form, account_id = await _fields(request), request.path_params["account_id"]
        blocked = form("blocked") == "yes"
        await self.actions.block(caller, account_id, form("reason"), blocked=blocked)
        return _back(f"/admin/accounts/{quote(account_id)}", "block" if blocked else "unblock")

    async def _set_flag(self, request: Request, caller: Caller) -> Response:
        form = await _fields(request)
        try:
            value = msgspec.json.decode(form("value").encode())
        except msgspec.DecodeError:
            value = form("value")
        await self.actions.set_flag(caller, form("flag"), value, form("reason"), flag_ends(form("expires"), now_ms()))
        return _back("/admin/flags", "set")

    async def _clear_flag(self, request: Request, caller: Caller) -> Response:
        form = await _fields(request)
        await self.actions.clear_flag(caller, form("flag"), form("reason"))
        return _back("/admin/flags", "clear")

    async def _activate(self, request: Request, caller: Caller) -> Response:
        form = await _fields(request)
        reason = check_reason(form("reason"))
        await self.actions.rates.activate(form("card"), now_ms(), caller.who.actor[:80], caller.who, reason)
        return _back("/admin/rates", "activate")

    async def _replay(self, request: Request, caller: Caller) -> Response:
        form = await _fields(request)
        await self.actions.replay(caller, form("event"))
        return _back("/admin/webhooks", "replay")

    async def _run_job(self, request: Request, caller: Caller) -> Response:
        form = await _fields(request)
        await self.actions.run_job(caller, form("job"), form("reason"))
        return _back("/admin/reconciliation", "run-job")

    # -- rendering --------------------------------------------------------------------------------

    def _page(self, request: Request, caller: Caller, name: str, content: dict[str, Any]) -> Response:
        frame = {
            "actor": caller.admin.actor,
            "role": caller.admin.role,
            "may": caller.may,
            "menu": [(path, text) for path, text, action in MENU if caller.may(action)],
            "here": request.url.path,
            "done": DONE.get(request.query_params.get("done", "")),
            "token": csrf_of(request.cookies.get(COOKIE, "")),
        }
        return self._render(name, {**content, **frame})

    def _message(self, title: str, text: str, status: int) -> Response:
        return self._render("ops_message.html", {"title": title, "text": text}, status)

    @staticmethod
    def _render(name: str, content: dict[str, Any], status: int = 200) -> Response:
        return Response(TEMPLATES.get_template(name).render(content), status, HEADERS, "text/html; charset=utf-8")


def csrf_of(token: str) -> str:
    """Token that every form of this sign-in carries."""
    return hmac.new(token.encode(), b"ops page forms", hashlib.sha256).hexdigest()


async def _fields(request: Request) -> Callable[[str], str]:
    form = await request.form()
    return lambda name: str(form.get(name, "")).replace("\0", "").strip()


def _back(path: str, done: str) -> Response:
    """Send on to the page that shows what was done; reloading it does not do it again."""
    return RedirectResponse(f"{path}?done={done}", 303, HEADERS)


async def _style(request: Request) -> Response:
    del request
    body = files("proxy.credits_page").joinpath("templates/credits.css").read_bytes()
    body += files("proxy.admin").joinpath("templates/ops.css").read_bytes()
    return Response(body, 200, {"cache-control": "max-age=3600"}, "text/css; charset=utf-8")
