"""Callers of admin routes, and what their roles may do.

Admin keys, tokens of an identity provider, sign-ins of the ops page.
"""

import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import hash_key
from billing.ledger.admins import ADMIN_PREFIX, Admin, Admins
from billing.ledger.audit_log import Who
from proxy.admin.identity.oidc import TokenChecker
from proxy.admin.roles import may
from proxy.web.auth_failures import AuthFailures
from proxy.web.origin import origin_of
from proxy.web.rejections import Rejection, forbidden, unauthorized

UNAUTHORIZED = 401
BEARER = re.compile(r"(?i:bearer) +([\x21-\x7e]{1,8192})")


class Caller(NamedTuple):
    """An admin who asks, and their identity for the audit log."""

    admin: Admin
    who: Who

    def may(self, action: str) -> bool:
        """Tell whether their role may do this."""
        return may(self.admin.role, action)

    def require(self, action: str) -> None:
        """Raise Rejection (403) unless their role may do this."""
        if not self.may(action):
            raise forbidden(f"The role {self.admin.role!r} may not do this ({action}).", "role_not_allowed")


Handler = Callable[[Request, Caller], Awaitable[Response]]


class AdminRoute(NamedTuple):
    """A route of the admin API or the ops page: its action in proxy/admin/roles.py decides who may use it."""

    method: str
    path: str
    action: str
    handler: Handler


class AdminAuth:
    """Recognises admins. Raises Rejection."""

    def __init__(self, admins: Admins, tokens: TokenChecker | None, failures: AuthFailures) -> None:
        """`tokens` None: no identity provider is configured. `failures`: of keys and tokens, by address."""
        self.admins, self._tokens, self.failures = admins, tokens, failures

    async def bearer(self, request: Request) -> Caller:
        """Return the caller by the Authorization header: an admin key, or a token."""
        given = request.headers.getlist("authorization")
        match = BEARER.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            raise unauthorized("Send an admin key or a token as `Authorization: Bearer ...`.", "missing_admin_key")
        return caller_of(await self.admin(match[1], request), request)

    async def admin(self, token: str, request: Request) -> Admin:
        """Find the owner of a key or token. Keys are looked up each time: a revoked one ends at once.

        Raises Rejection.
        """
        address, digest = origin_of(request.scope).address, hash_key(token)
        doubtful = self.failures.is_over("admin", address, digest)
        try:
            async with self.failures.turn("admin", address) if doubtful else contextlib.nullcontext():
                found = await self._find(token)
        except Rejection as rejection:
            if rejection.status == UNAUTHORIZED:
                self.failures.count("admin", address)
                if doubtful:
                    raise self.failures.refusal("admin", address) from None
            raise
        self.failures.remember_proof(digest)
        return found

    async def _find(self, token: str) -> Admin:
        found = await self.admins.find(hash_key(token)) if token.startswith(ADMIN_PREFIX) else None
        if found is None and self._tokens is not None and token.count(".") == 2:
            found = await self._tokens.check(token)
        if found is None:
            raise unauthorized("This is not an admin key of ours.", "invalid_admin_key")
        return found

    async def find_portal_staff(self, request: Request) -> Caller | None:
        """Return the admin, or the operator's app, that may make a customer's sign-in link; None for anybody else.

        Raises Rejection (429, 503) when it cannot be said.
        """
        try:
            caller = await self.bearer(request)
        except Rejection as rejection:
            if rejection.status == UNAUTHORIZED:
                return None
            raise
        return caller if caller.may("portal.open") else None


def caller_of(admin: Admin, request: Request) -> Caller:
    """Return the admin, with the address and request by which they came."""
    asked = origin_of(request.scope)
    return Caller(admin, Who(admin.actor, admin.role, asked.request_id, asked.address))
