"""Events on the ops page: /admin/events, who listens and what they were told."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from billing.ledger.customers.shown import ShownOnce
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.events.api import DAY_SECONDS, STATES, EventsApi, cursor_of, notice_filters
from proxy.admin.events.listing import endpoint_row, notice_row
from proxy.admin.ops_frame import HEADERS, ROWS, back_to, fields_of, message, page
from proxy.web.query import read_cursor


@dataclass(frozen=True, slots=True)
class EventPages:
    """The handlers and what they need."""

    events: EventsApi
    shown: ShownOnce

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/admin/events", "events.read", self._list),
            AdminRoute("POST", "/admin/events/endpoints", "events.write", self._add),
            AdminRoute("GET", "/admin/events/secret", "events.write", self._secret),
            AdminRoute("POST", "/admin/events/endpoints/change", "events.write", self._change),
            AdminRoute("POST", "/admin/events/endpoints/rotate", "events.write", self._rotate),
            AdminRoute("POST", "/admin/events/endpoints/remove", "events.write", self._remove),
            AdminRoute("POST", "/admin/events/replay", "events.write", self._replay),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        filters, before = notice_filters(request), read_cursor(request.query_params.get("cursor"))
        rows = await self.events.notices.found(filters, ROWS + 1, before)
        content = {
            "endpoints": [endpoint_row(row) for row in await self.events.endpoints.everyone()],
            "rows": [notice_row(row) for row in rows[:ROWS]],
            "older": cursor_of(rows[ROWS - 1]) if len(rows) > ROWS else None,
            "states": STATES,
            "state": filters.state,
        }
        return page(request, caller, "ops_events.html", content)

    async def _add(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        kinds = tuple(form("kinds").replace(",", " ").split()) or ("*",)
        made = await self.events.add(caller, form("url"), kinds, form("description"))
        return await self._show_once(caller, made["secret"])

    async def _change(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        changes = {"disabled": form("disabled") == "yes"}
        await self.events.change(caller, form("endpoint"), changes, form("reason"))
        return back_to("/admin/events", "endpoint")

    async def _rotate(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        return await self._show_once(
            caller, await self.events.rotate(caller, form("endpoint"), DAY_SECONDS, form("reason"))
        )

    async def _remove(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.events.remove(caller, form("endpoint"), form("reason"))
        return back_to("/admin/events", "endpoint")

    async def _replay(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        await self.events.replay(caller, form("notice"), "")
        return back_to("/admin/events", "resend")

    async def _show_once(self, caller: Caller, secret: str) -> Response:
        token = await self.shown.put(caller.admin.actor, secret)
        return RedirectResponse(f"/admin/events/secret?shown={token}", 303, HEADERS)

    async def _secret(self, request: Request, caller: Caller) -> Response:
        secret = await self.shown.take(caller.admin.actor, request.query_params.get("shown", ""))
        if secret is None:
            return message("Not shown again", "A secret is shown once, and this one was.", 404)
        return page(request, caller, "ops_event_secret.html", {"secret": secret})
