"""The way from an account's page in /admin to the customer's own page, seen as staff: nothing can be changed there."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from billing.ledger.portal_tokens import PortalTokens
from proxy.admin.auth import AdminRoute, Caller
from proxy.admin.ops_frame import headers_to
from proxy.credits_page.sign_in import link_url, staff_of


@dataclass(frozen=True, slots=True)
class CustomerDoor:
    """The handler and what it needs. `public_url`: the address by which browsers reach the Credits page."""

    portal: PortalTokens
    public_url: str

    def table(self) -> list[AdminRoute]:
        """Every route with the action that a role must be allowed."""
        return [AdminRoute("POST", "/admin/accounts/{account_id}/page", "portal.open", self._open)]

    async def _open(self, request: Request, caller: Caller) -> Response:
        """Make a one-time link in the audit log, and follow it."""
        token, _ = await self.portal.link(request.path_params["account_id"], caller.who, staff_of(caller))
        return RedirectResponse(link_url(self.public_url, token), 303, headers_to(self.public_url))
