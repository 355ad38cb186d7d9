"""The part of the admin API about events.

Who may do what: proxy/admin/roles.py; shapes: openapi.json.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.events.endpoints import BadEndpoint, EndpointNotFound, EventEndpoints
from billing.ledger.notices import NoticeFilters, NoticeNotFound, NoticeQueue, NoticeRow
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason, check_text
from proxy.admin.events.listing import endpoint_row, notice_row
from proxy.admin.events.registration import check_url
from proxy.admin.request_bodies import RequestBody
from proxy.gateway.services import Services
from proxy.web.http import json_body, json_response
from proxy.web.query import page_limit, read_cursor, write_cursor
from proxy.web.rejections import Rejection, invalid, not_found

STATES = ("pending", "sent", "dead")
LONGEST_DESCRIPTION = 200
EDITABLE = ("url", "kinds", "description", "disabled")
DAY_SECONDS, MONTH_SECONDS = 86_400, 2_592_000


class EndpointRequest(RequestBody, frozen=True):
    """An endpoint to be."""

    url: str
    kinds: tuple[str, ...] = ("*",)
    description: str = ""


class EndpointPatch(RequestBody, frozen=True):
    """Changes of an endpoint; what is not named stays."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    kinds: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET
    reason: str = ""


class RotateSecretRequest(RequestBody, frozen=True):
    """Another secret for an endpoint; the one until now signs as well for so many seconds."""

    grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=MONTH_SECONDS)] = DAY_SECONDS
    reason: str = ""


class WhyRequest(RequestBody, frozen=True):
    """A reason, if there is one."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class EventsApi:
    """The handlers and what they need."""

    services: Services
    endpoints: EventEndpoints
    notices: NoticeQueue

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        events, one = "/api/admin/events", "/api/admin/events/endpoints/{endpoint_id}"
        return [
            AdminRoute("GET", events, "events.read", self._log),
            AdminRoute("POST", f"{events}/{{notice_id}}/replay", "events.write", self._replay),
            AdminRoute("GET", f"{events}/endpoints", "events.read", self._endpoints),
            AdminRoute("POST", f"{events}/endpoints", "events.write", self._add),
            AdminRoute("PATCH", one, "events.write", self._change),
            AdminRoute("POST", f"{one}/rotate", "events.write", self._rotate),
            AdminRoute("POST", f"{one}/remove", "events.write", self._remove),
        ]

    # -- what API and page do -----------------------------------------------------------------------

    async def add(self, caller: Caller, url: str, kinds: tuple[str, ...], description: str) -> dict[str, Any]:
        """Register an endpoint; its secret is shown this once. Raises Rejection."""
        try:
            row, secret = await self.endpoints.add(
                await check_url(url, private=self._private), kinds, _description(description), caller.who
            )
        except BadEndpoint as error:
            raise invalid(f"Not registered: {error}.", error.field) from None
        return {**endpoint_row(row), "secret": secret}

    async def change(self, caller: Caller, endpoint_id: str, changes: dict[str, Any], reason: str) -> dict[str, Any]:
        """Change an endpoint. Raises Rejection."""
        try:
            if "url" in changes:
                await check_url(changes["url"], private=self._private)
            if "description" in changes:
                changes["description"] = _description(changes["description"])
            why = check_reason(reason) if reason else ""
            return endpoint_row(await self.endpoints.change(endpoint_id, changes, caller.who, why))
        except BadEndpoint as error:
            raise invalid(f"Not changed: {error}.", error.field) from None
        except EndpointNotFound as error:
            raise no_endpoint(error) from None

    async def rotate(self, caller: Caller, endpoint_id: str, grace_seconds: int, reason: str) -> str:
        """Give an endpoint another secret, and return it. Raises Rejection."""
        try:
            why = check_reason(reason) if reason else ""
            return await self.endpoints.rotate(endpoint_id, grace_seconds * 1_000, caller.who, why)
        except EndpointNotFound as error:
            raise no_endpoint(error) from None

    async def remove(self, caller: Caller, endpoint_id: str, reason: str) -> None:
        """Send an endpoint nothing more. Raises Rejection."""
        try:
            await self.endpoints.remove(endpoint_id, caller.who, check_reason(reason) if reason else "")
        except EndpointNotFound as error:
            raise no_endpoint(error) from None

    async def replay(self, caller: Caller, notice_id: str, reason: str) -> None:
        """Send a notice again. Raises Rejection."""
        try:
            await self.notices.revive(notice_id, caller.who, check_reason(reason) if reason else "")
        except NoticeNotFound as error:
            raise not_found(f"Not sent: {error}.", "notice_not_found") from None

    @property
    def _private(self) -> bool:
        return self.services.settings.notices.private_endpoints

    # -- handlers -----------------------------------------------------------------------------------

    async def _log(self, request: Request, caller: Caller) -> Response:
        del caller
        limit = page_limit(request)
        before = read_cursor(request.query_params.get("cursor"))
        rows = await self.notices.found(notice_filters(request), limit + 1, before)
        following = cursor_of(rows[limit - 1]) if len(rows) > limit else None
        return json_response({"data": [notice_row(row) for row in rows[:limit]], "nextCursor": following})

    async def _replay(self, request: Request, caller: Caller) -> Response:
        asked, notice_id = await json_body(request, WhyRequest), request.path_params["notice_id"]
        await self.replay(caller, notice_id, asked.reason)
        return json_response({"noticeId": notice_id, "state": "pending"})

    async def _endpoints(self, request: Request, caller: Caller) -> Response:
        del request, caller
        return json_response({"data": [endpoint_row(row) for row in await self.endpoints.everyone()]})

    async def _add(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, EndpointRequest)
        return json_response(await self.add(caller, asked.url, asked.kinds, asked.description), 201)

    async def _change(self, request: Request, caller: Caller) -> Response:
        asked = await json_body(request, EndpointPatch)
        changes = {name: value for name in EDITABLE if (value := getattr(asked, name)) is not msgspec.UNSET}
        return json_response(await self.change(caller, request.path_params["endpoint_id"], changes, asked.reason))

    async def _rotate(self, request: Request, caller: Caller) -> Response:
        asked, endpoint_id = await json_body(request, RotateSecretRequest), request.path_params["endpoint_id"]
        secret = await self.rotate(caller, endpoint_id, asked.grace_seconds, asked.reason)
        return json_response({"endpointId": endpoint_id, "secret": secret})

    async def _remove(self, request: Request, caller: Caller) -> Response:
        asked, endpoint_id = await json_body(request, WhyRequest), request.path_params["endpoint_id"]
        await self.remove(caller, endpoint_id, asked.reason)
        return json_response({"endpointId": endpoint_id, "removed": True})


def notice_filters(request: Request) -> NoticeFilters:
    """Return the filters of the log, by the query; empty `endpointId`: the configuration's URL. Raises Rejection."""
    asked = request.query_params
    state = asked.get("state")
    if state is not None and state not in STATES:
        raise invalid(f"`state` is one of {', '.join(STATES)}.", "state")
    return NoticeFilters(state, asked.get("endpointId"), asked.get("accountId"), asked.get("kind"))


def cursor_of(row: NoticeRow) -> str:
    """Return the cursor of the page that begins behind this row."""
    return write_cursor(row.created_at, row.id)


def no_endpoint(error: EndpointNotFound) -> Rejection:
    """Return the refusal of an endpoint that there is not."""
    return not_found(f"Not done: {error}.", "endpoint_not_found")


def _description(text: str) -> str:
    return check_text(text, "description", LONGEST_DESCRIPTION) if text else ""
