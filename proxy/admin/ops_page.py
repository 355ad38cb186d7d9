"""The ops page: /admin. Server-rendered, no script at all; signs in with an admin key or a token.

The same table of roles as the API decides; what a role may not do is not shown, and refused when it is sent all the
same.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.ledger.customers.search import AccountFilters
from billing.ledger.portal_tokens import PortalTokens
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
from billing.storage.database import now_ms
from proxy.admin.account_pages.account_page import AccountPage
from proxy.admin.account_pages.customer_door import CustomerDoor
from proxy.admin.account_pages.purchase_pages import PurchasePages
from proxy.admin.accounts.access_page import AccessPage
from proxy.admin.accounts.api import account_refusal
from proxy.admin.actions import AdminActions
from proxy.admin.auth import AdminRoute, Caller, caller_of
from proxy.admin.checked_text import check_reason
from proxy.admin.events.pages import EventPages
from proxy.admin.ops_formatting import alarms, as_json, flag_ends, flag_views
from proxy.admin.ops_frame import COOKIE, ROWS, back_to, csrf_of, fields_of, message, page
from proxy.admin.overview.charts import DAYS, FinanceChart, finance_charts
from proxy.admin.people.pages import PeoplePages
from proxy.admin.plans.api import PlansApi
from proxy.admin.plans.pages import PlanPages
from proxy.admin.promos.pages import PromoPages
from proxy.admin.rows import account_row, audit_row
from proxy.admin.sign_in.pages import SignInPages
from proxy.web.forms import refused_form, session_form
from proxy.web.paths import is_under
from proxy.web.query import check_parameters
from proxy.web.rejections import Rejection, invalid, not_found

FIELDS = {
    "externalId": "external_id",
    "spendLimitCredits": "limit",
    "startsAt": "starts",
    "endsAt": "ends",
    "prices": "models",
    "planId": "plan",
    "expiresAt": "expires",
}
"""Names that the API has for fields → those of the forms, where they differ."""
ABOUT = ("purchase", "key", "admin", "flag", "card", "token", "event", "job", "endpoint", "notice")
"""Hidden fields by which forms of one kind on one page are told apart."""
STANDS_ON = {"/admin/jobs/run": "/admin/reconciliation"}
"""Forms whose paths do not begin with that of their page → the page."""
INBOX_STATES = ("pending", "parked", "done", "ignored")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OpsPage:
    """The handlers and what they need."""

    actions: AdminActions
    sign_in: SignInPages
    plans: PlansApi
    events: EventPages
    promos: PromoPages
    portal: PortalTokens
    public_url: str

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/admin", "overview.read", self._home),
            *AccountPage(self.actions, self.plans, self.public_url).table(),
            *AccessPage(lambda: self.actions.customers).table(),
            *PurchasePages(self.actions).table(),
            *CustomerDoor(self.portal, self.public_url).table(),
            *PeoplePages(self.actions).table(),
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
            *self.sign_in.routes(),
            Route("/admin/static/ops.css", _style, methods=["GET"]),
            *(Route(row.path, self._guarded(row), methods=[row.method]) for row in self.table()),
        ]

    def _guarded(self, row: AdminRoute) -> Handler:
        """Wrap a handler for whoever is signed in and may; refusals become pages in plain words."""

        async def wrapped(request: Request) -> Response:
            token = request.cookies.get(COOKIE, "")
            try:
                check_parameters(request)
                admin = await self.sign_in.auth.admins.session(token) if token else None
                if admin is None:
                    return self.sign_in.ask("", 401)
                caller = caller_of(admin, request)
                caller.require(row.action)
                if request.method == "POST":
                    await session_form(request, self.sign_in.public_url, csrf_of(token))
                return await self._answer(row, request, caller)
            except Rejection as rejection:
                return message("That did not work", rejection.message, rejection.status)
            except AccountNotFound:
                return message("Not found", "There is no such account.", 404)
            except StoreUnavailable as away:
                text = f"{'Stripe' if away.store == 'stripe' else 'The database'} does not answer right now."
                return message("Try again shortly", f"{text} Nothing was changed.", 503)

        return wrapped

    async def _answer(self, row: AdminRoute, request: Request, caller: Caller) -> Response:
        """Call a handler. A form that is refused is shown again on its page, with the words and what was typed.

        Raises Rejection where there is no such page, AccountNotFound, StoreUnavailable.
        """
        try:
            return await row.handler(request, caller)
        except (AccountNotFound, StoreUnavailable):
            raise
        except (Rejection, BillingError) as error:
            refusal = in_words(error)
        again = page_of_form(row, self.table()) if request.method == "POST" else None
        if again is None or not caller.may(again.action):
            raise refusal
        request.state.wrong = await refused_form(request, await _form_of(row, again, request), refusal, FIELDS)
        request.state.here = again.path
        answer = await again.handler(request, caller)
        answer.status_code = refusal.status
        return answer

    # -- pages ------------------------------------------------------------------------------------

    async def _home(self, request: Request, caller: Caller) -> Response:
        words = request.query_params.get("query", "").strip()
        found = []
        if caller.may("accounts.read"):
            found = [account_row(row) for row in await self.actions.customers.search(AccountFilters(words), ROWS)]
        content: dict[str, Any] = {"words": words, "accounts": found, "overview": await self.actions.overview()}
        if content["overview"]["days"]:
            content["charts"] = await self._charts()
        if caller.may("flags.read"):
            content["alarms"] = alarms(flag_views(await self.actions.flags()))
        if caller.may("reconciliation.read"):
            content["checked"] = next(iter(await self.actions.runs.latest("reconcile", 1)), None)
        if caller.may("webhooks.read"):
            content["waiting"] = (await self.actions.inbox.depth()).waiting
        return page(request, caller, "ops_home.html", content)

    async def _charts(self) -> list[FinanceChart]:
        today, finance = datetime.now(UTC).date(), self.actions.finance
        paid = await finance.paid(today - timedelta(days=DAYS - 1), today)
        return finance_charts(await finance.days(DAYS), paid, today)

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

    async def _set_flag(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        try:
            value = msgspec.json.decode(form("value").encode())
        except (msgspec.DecodeError, RecursionError):
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


def in_words(error: Rejection | BillingError) -> Rejection:
    """Return what billing refused as a refusal in plain words."""
    match error:
        case Rejection():
            return error
        case AccountClosed() | NotClosed() | ExternalIdTaken() | InvalidDetails():
            return account_refusal(error)
        case KeyNotFound():
            return not_found("There is no such key, or it is revoked already.", "key_not_found")
        case _:
            return not_found(str(error), "not_found")


def page_of_form(form: AdminRoute, table: Sequence[AdminRoute]) -> AdminRoute | None:
    """Return the page that a form stands on: the one whose path the form's begins with, the longest such."""
    wanted = STANDS_ON.get(form.path, form.path)
    pages = [row for row in table if row.method == "GET" and is_under(wanted, (row.path,))]
    return max(pages, key=lambda row: len(row.path), default=None)


async def _form_of(row: AdminRoute, page_row: AdminRoute, request: Request) -> str:
    """Return a form's name on its page: the rest of its path, and what it is about where there are many of them."""
    typed = await request.form()
    about = next((str(typed[name]) for name in ABOUT if name in typed), "")
    name = row.path.removeprefix(page_row.path).strip("/")
    return f"{name}:{about}" if about else name or "new"


async def _style(request: Request) -> Response:
    del request
    body = files("proxy.credits_page").joinpath("templates/credits.css").read_bytes()
    body += files("proxy.admin").joinpath("templates/ops.css").read_bytes()
    return Response(body, 200, {"cache-control": "max-age=3600"}, "text/css; charset=utf-8")
