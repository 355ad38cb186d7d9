"""The way into the Credits page: one-time links, the session that a link opens, and what whoever has it may do.

Links of the operator's app and of the command line are the customer's own. One that a person made, by admin key or
token, opens the page as staff: it shows what the customer sees and changes nothing, since a role that may look at an
account may not act as its owner.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.ledger.admins import SERVICE, Admin
from billing.ledger.audit_log import Who
from billing.ledger.portal_tokens import PortalSession, PortalTokens, Staff
from billing.money.errors import AccountNotFound, NotYet, StoreUnavailable
from billing.storage.database import now_ms
from config.secrets import Secret
from proxy.credits_page.responses import PageResponses
from proxy.web.forms import own_form, session_form
from proxy.web.http import json_body, json_handler, json_response
from proxy.web.origin import origin_of
from proxy.web.query import check_parameters
from proxy.web.rejections import Rejection, forbidden, not_found
from proxy.web.times import iso_time

COOKIE = "tk_session"
SIGN_IN = "This page opens from inside your app: go back there and choose credits. Links work once and for ten minutes."
USED = "This link has been used or is too old"
BLOCKED = "This account is blocked, so its credits cannot be opened. Ask your provider why."
READ_ONLY = "You see this page as staff, so nothing can be changed here. The customer can, from inside their app."
AWAY = "Your credits cannot be read right now."


class StaffCaller(Protocol):
    """An admin, or the operator's app with an admin key, that asks for a customer's link (see proxy/admin/auth.py)."""

    @property
    def admin(self) -> Admin:
        """Admin whose key or token it was."""
        ...

    @property
    def who(self) -> Who:
        """Identity for the audit log."""
        ...


class PortalRequest(msgspec.Struct, rename="camel", frozen=True):
    """Account whose page a link opens."""

    account_id: str


class Visitor(NamedTuple):
    """Viewer of the page. `staff` None: the customer."""

    token: str
    account_id: str
    staff: Staff | None

    @property
    def csrf(self) -> str:
        """Token that every form of this session must carry."""
        return hmac.new(self.token.encode(), b"credits page forms", hashlib.sha256).hexdigest()

    def who(self, request: Request) -> Who:
        """Name the customer for the audit log: staff change nothing."""
        return Who(f"customer:{self.account_id}", "customer", *origin_of(request.scope))


Page = Callable[[Request, Visitor], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class CreditsSignIn:
    """The handlers and what they need.

    `service_key` None: links are only made by the command line, and by staff that `find_staff` recognises.
    """

    portal: PortalTokens
    service_key: Secret | None
    public_url: str
    find_staff: Callable[[Request], Awaitable[StaffCaller | None]] | None
    responses: PageResponses

    def routes(self) -> list[Route]:
        """Routes to mount."""
        return [
            Route("/api/portal/sessions", json_handler(self._make_link), methods=["POST"]),
            Route("/credits/enter", self._ask_to_enter, methods=["GET"]),
            Route("/credits/enter", self._enter, methods=["POST"]),
            Route("/credits/signed-out", self._signed_out, methods=["GET"]),
            Route("/credits/sign-out", self.page(self._sign_out, for_staff=True), methods=["POST"]),
        ]

    def page(self, handler: Page, *, for_staff: bool) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler for whoever is signed in; its refusals become pages in plain words.

        `for_staff`: it changes nothing there.
        """

        async def wrapped(request: Request) -> Response:
            try:
                check_parameters(request)
                session = await self._session(request)
                if session is None:
                    return self.responses.message("Please sign in", SIGN_IN, 401)
                visitor = Visitor(request.cookies[COOKIE], session.account_id, session.staff)
                if visitor.staff is not None and not for_staff:
                    raise forbidden(READ_ONLY, "read_only")
                if request.method == "POST":
                    await session_form(request, self.public_url, visitor.csrf)
                return await handler(request, visitor)
            except Rejection as rejection:
                return self.responses.message("That did not work", rejection.message, rejection.status, back=True)
            except NotYet:
                text = "Your last payment page is still being settled. Try again in a moment."
                return self.responses.message("One moment", text, 503, back=True)
            except (StoreUnavailable, AccountNotFound):
                return self.responses.message("Try again shortly", f"{AWAY} Nothing was changed.", 503, back=True)

        return wrapped

    async def _make_link(self, request: Request) -> Response:
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self.service_key.reveal()}" if self.service_key else ""
        known = bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())
        caller = await self.find_staff(request) if not known and self.find_staff is not None else None
        if not known and caller is None:
            raise Rejection(
                401, "invalid_service_key", "Send the service key as a bearer token.", kind="authentication_error"
            )
        asked = await json_body(request, PortalRequest)
        # people's links have a row and open as staff: the operator's app makes one whenever a customer goes to their
        # page
        person = caller if caller is not None and caller.admin.role != SERVICE else None
        who, staff = (person.who, staff_of(person)) if person is not None else (None, None)
        try:
            token, expires_at = await self.portal.link(asked.account_id, who, staff)
        except AccountNotFound:
            raise not_found("There is no such account.", "account_not_found") from None
        return json_response({"url": link_url(self.public_url, token), "expiresAt": iso_time(expires_at)}, 201)

    async def _ask_to_enter(self, request: Request) -> Response:
        """Show a form that spends the link's token.

        Looking spends nothing: mail scanners and previews follow links too.

        A script sends the form at once, unless it would put another account in the place of the one this browser shows:
        with a link of their own, somebody could have the visitor buy credits for them.
        """
        token = request.query_params.get("token", "")
        try:
            link = await self.portal.opens(token)
            session = await self._session(request)
        except StoreUnavailable:
            return self.responses.message("Try again shortly", AWAY, 503)
        if link is None:
            return self.responses.message(USED, SIGN_IN, 403)
        if link.blocked:
            return self.responses.message("This account is blocked", BLOCKED, 403)
        instead_of = session.account_id if session is not None and session.account_id != link.account_id else ""
        content = {"token": token, "account": link.account_id, "instead_of": instead_of, "staff": link.staff}
        answer = self.responses.page("enter.html", content)
        answer.headers["referrer-policy"] = "same-origin"  # so that the browser says whose form it sends
        return answer

    async def _enter(self, request: Request) -> Response:
        """Make a session of the token, once; it never stands in the address bar of a page that stays."""
        try:
            token = str((await own_form(request, self.public_url, unnamed=False)).get("token", ""))
            opened = await self.portal.open(token)
            link = await self.portal.opens(token) if opened is None else None
        except Rejection as rejection:
            return self.responses.message("That did not work", rejection.message, rejection.status)
        except StoreUnavailable:
            return self.responses.message("Try again shortly", AWAY, 503)
        if link is not None and link.blocked:
            return self.responses.message("This account is blocked", BLOCKED, 403)
        if opened is None:
            return self.responses.message(USED, SIGN_IN, 403)
        cookie, session = opened
        response = self.responses.redirect("/credits")
        secure = urlsplit(self.public_url).scheme == "https"
        seconds = (session.expires_at - now_ms()) // 1_000
        response.set_cookie(
            COOKIE, cookie, max_age=seconds, path="/credits", secure=secure, httponly=True, samesite="lax"
        )
        return response

    async def _session(self, request: Request) -> PortalSession | None:
        """PortalSession this browser has open. Raises StoreUnavailable."""
        token = request.cookies.get(COOKIE, "")
        return await self.portal.session(token) if token else None

    async def _sign_out(self, request: Request, visitor: Visitor) -> Response:
        del request
        await self.portal.close(visitor.token)
        response = self.responses.redirect("/credits/signed-out")
        response.delete_cookie(COOKIE, path="/credits")
        return response

    async def _signed_out(self, request: Request) -> Response:
        del request
        return self.responses.message("Signed out", "You can close this window.", 200)


def staff_of(caller: StaffCaller) -> Staff:
    """Person behind a caller, as their link and session remember them."""
    return Staff(caller.admin.actor, caller.admin.role, caller.admin.key_id)


def link_url(public_url: str, token: str) -> str:
    """Write the one-time link."""
    return f"{public_url.rstrip('/')}/credits/enter?token={token}"
