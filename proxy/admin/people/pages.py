"""Admins on the ops page: /admin/admins, who may administer; inviting somebody, changing a role, revoking a key."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from billing.ledger.admins import LONGEST_NAME
from billing.storage.database import now_ms
from proxy.admin.actions import AdminActions
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.checked_text import check_reason, check_text, optional_reason
from proxy.admin.ops_formatting import flag_ends
from proxy.admin.ops_frame import HEADERS, back_to, fields_of, message, page
from proxy.admin.roles import MAY, ROLES
from proxy.admin.rows import admin_row
from proxy.web.rejections import invalid

LIFETIMES = (("", "until it is revoked"), ("7d", "a week"), ("30d", "30 days"), ("90d", "90 days"), ("365d", "a year"))


@dataclass(frozen=True, slots=True)
class PeoplePages:
    """The handlers and what they need."""

    actions: AdminActions

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [
            AdminRoute("GET", "/admin/admins", "admins.read", self._list),
            AdminRoute("POST", "/admin/admins/invite", "admins.write", self._invite),
            AdminRoute("GET", "/admin/admins/new", "admins.write", self._new),
            AdminRoute("POST", "/admin/admins/role", "admins.write", self._role),
            AdminRoute("POST", "/admin/admins/revoke", "admins.write", self._revoke),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        rows = [admin_row(row) for row in reversed(await self.actions.admins.everyone())]
        content = {
            "rows": sorted(rows, key=lambda row: row["state"] != "active"),
            "roles": ROLES,
            "lifetimes": LIFETIMES,
            "rights": {role: sorted(action for action, roles in MAY.items() if role in roles) for role in ROLES},
            "own": caller.admin.key_id,
            "sso": bool(self.actions.services.settings.admin.oidc_issuer),
        }
        return page(request, caller, "ops_admins.html", content)

    async def _invite(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        name, ends = check_text(form("name"), "name", LONGEST_NAME), flag_ends(form("expires"), now_ms())
        reason = optional_reason(form("reason"))
        _, secret = await self.actions.admins.create(name, _known_role(form("role")), caller.who, ends, reason)
        token = await self.actions.customers.keys.shown.put(caller.admin.actor, secret)
        return RedirectResponse(f"/admin/admins/new?shown={token}", 303, HEADERS)

    async def _new(self, request: Request, caller: Caller) -> Response:
        secret = await self.actions.customers.keys.shown.take(caller.admin.actor, request.query_params.get("shown", ""))
        if secret is None:
            return message("Not shown again", "A new admin key is shown once, and this one was.", 404)
        return page(request, caller, "ops_new_admin.html", {"secret": secret})

    async def _role(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        role, reason = _known_role(form("role")), check_reason(form("reason"))
        _refuse_own(caller, form("admin"), "You cannot change your own role: ask another owner.")
        await self.actions.admins.change_role(form("admin"), role, caller.who, reason)
        return back_to("/admin/admins", "role")

    async def _revoke(self, request: Request, caller: Caller) -> Response:
        form = await fields_of(request)
        reason = check_reason(form("reason"))
        _refuse_own(caller, form("admin"), "This is the key that you are signed in with: ask another owner.")
        await self.actions.admins.revoke(form("admin"), caller.who, reason)
        return back_to("/admin/admins", "revoke-admin")


def _known_role(role: str) -> str:
    if role not in ROLES:
        raise invalid(f"A role is one of {', '.join(ROLES)}.", "role")
    return role


def _refuse_own(caller: Caller, key_id: str, words: str) -> None:
    """Raise Rejection for the key that the caller is signed in with: nobody locks themselves out by a click."""
    if key_id == caller.admin.key_id:
        raise invalid(words, "admin")
