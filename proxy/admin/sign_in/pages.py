"""Signing in to /admin and out of it: with an admin key, with a token, or with the identity provider in the browser.

Every way ends in the same session, in a cookie that only our own pages send. So the way back from the identity provider
ends in a page that leads on by itself: a redirect would still count as the other site's, and bring no cookie.
"""

import contextlib
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from billing.ledger.admins import Admin
from billing.money.errors import StoreUnavailable
from config.settings import AdminSettings
from proxy.admin.auth import UNAUTHORIZED, AdminAuth, caller_of
from proxy.admin.ops_frame import COOKIE, HEADERS, csrf_of, message, render
from proxy.admin.sign_in.code_flow import CodeFlow, new_attempt, read_attempt
from proxy.web.forms import NOT_REFUSED, own_form, session_form
from proxy.web.origin import origin_of
from proxy.web.query import check_parameters
from proxy.web.rejections import Rejection

ATTEMPT_COOKIE, ATTEMPT_PATH, ATTEMPT_SECONDS = "tk_sign_in", "/admin/sign-in", 600
CALLBACK = "/admin/sign-in/callback"
AWAY = "The database does not answer. Try again shortly."


@dataclass(frozen=True, slots=True)
class SignInPages:
    """The handlers and what they need.

    `flow` None: no identity provider for browsers. `admin_url`: how browsers reach /admin; `public_url`: how they reach
    our other pages, which may be the same.
    """

    auth: AdminAuth
    flow: CodeFlow | None
    conf: AdminSettings
    admin_url: str
    public_url: str

    def routes(self) -> list[Route]:
        """Routes to mount."""
        found = [
            Route("/admin/sign-in", self._with_key, methods=["POST"]),
            Route("/admin/sign-out", self._sign_out, methods=["POST"]),
        ]
        if self.flow is not None:
            found.append(Route("/admin/sign-in/start", self._start, methods=["GET"]))
            found.append(Route("/admin/sign-in/callback", self._callback, methods=["GET"]))
        return found

    def ask(self, problem: str, status: int) -> Response:
        """Show the page that asks who it is.

        Its form must name our origin, which a browser does only of a page that sends referrers.
        """
        content = {"trouble": problem, "wrong": NOT_REFUSED, "provider": self.flow is not None}
        answer = render("ops_sign_in.html", content, status)
        answer.headers["referrer-policy"] = "same-origin"
        return answer

    async def _with_key(self, request: Request) -> Response:
        try:
            # with a key of their own, somebody could otherwise have the visitor work as them
            form = await own_form(request, self.public_url, unnamed=False)
            token = await self._session_of(await self.auth.admin(str(form.get("key", "")).strip(), request), request)
        except Rejection as rejection:
            return self.ask(rejection.message, rejection.status)
        except StoreUnavailable:
            return self.ask(AWAY, 503)
        return self._signed_in(RedirectResponse("/admin", 303, HEADERS), token, request)

    async def _start(self, request: Request) -> Response:
        """Send the browser to the identity provider."""
        if self.flow is None:
            return self.ask("", 404)
        attempt = new_attempt()
        try:
            self.auth.failures.check("admin", origin_of(request.scope).address)
            url = await self.flow.address(attempt, self._redirect_uri())
        except Rejection as rejection:
            return self.ask(rejection.message, rejection.status)
        response = RedirectResponse(url, 303, {**HEADERS, "referrer-policy": "no-referrer"})
        response.set_cookie(
            ATTEMPT_COOKIE,
            attempt.cookie(),
            max_age=ATTEMPT_SECONDS,
            path=ATTEMPT_PATH,
            secure=self._is_secure(request),
            httponly=True,
            samesite="lax",  # it must come along when the identity provider sends the browser back
        )
        return response

    async def _callback(self, request: Request) -> Response:
        """Take whom the identity provider sends back; each attempt counts once."""
        response = await self._finished(request)
        response.delete_cookie(ATTEMPT_COOKIE, path=ATTEMPT_PATH)
        return response

    async def _finished(self, request: Request) -> Response:
        address = origin_of(request.scope).address
        if self.flow is None:
            return self.ask("", 404)
        try:
            check_parameters(request)
            self.auth.failures.check("admin", address)
            attempt = read_attempt(request.cookies.get(ATTEMPT_COOKIE, ""))
            admin = await self.flow.finish(attempt, request.query_params, self._redirect_uri())
            token = await self._session_of(admin, request)
        except Rejection as rejection:
            if rejection.status == UNAUTHORIZED:
                self.auth.failures.count("admin", address)
            return self.ask(rejection.message, rejection.status)
        except StoreUnavailable:
            return self.ask(AWAY, 503)
        return self._signed_in(render("ops_signed_in.html", {"wrong": NOT_REFUSED}), token, request)

    async def _session_of(self, admin: Admin, request: Request) -> str:
        """Open a session. Raises Rejection for whoever may see nothing here, StoreUnavailable."""
        caller = caller_of(admin, request)
        caller.require("overview.read")
        return await self.auth.admins.sign_in(admin, caller.who, self.conf.session_minutes)

    def _signed_in(self, response: Response, token: str, request: Request) -> Response:
        secure = self._is_secure(request)
        response.set_cookie(COOKIE, token, path="/admin", secure=secure, httponly=True, samesite="strict")
        return response

    async def _sign_out(self, request: Request) -> Response:
        token = request.cookies.get(COOKIE, "")
        try:
            await session_form(request, self.public_url, csrf_of(token))
        except Rejection as rejection:  # another site signs nobody out
            return message("That did not work", rejection.message, rejection.status)
        with contextlib.suppress(StoreUnavailable):
            await self.auth.admins.sign_out(token)
        response = RedirectResponse("/admin", 303, HEADERS)
        response.delete_cookie(COOKIE, path="/admin")
        return response

    def _redirect_uri(self) -> str:
        return self.admin_url.rstrip("/") + CALLBACK

    def _is_secure(self, request: Request) -> bool:
        return "https" in (urlsplit(self.admin_url).scheme, urlsplit(self.public_url).scheme, request.url.scheme)
