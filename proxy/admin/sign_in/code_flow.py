"""Signing in to /admin with the identity provider: OpenID Connect's code flow with PKCE (RFC 7636, RFC 9207, RFC 9700).

What one sign-in must remember (state, nonce, verifier) is in a cookie of the browser that began it, and nowhere else:
an answer that another browser began, or an old one, fits no cookie.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import httpx
import msgspec

from billing.ledger.admins import Admin
from config.secrets import Secret
from proxy.admin.identity.oidc import TokenChecker
from proxy.admin.identity.provider import METHOD, IdentityProvider, ProviderDocument, no_provider
from proxy.web.rejections import Rejection, unauthorized

EXCHANGE_SECONDS = 10.0
MAX_ANSWER_BYTES = 65_536
LONGEST_CODE = 2_048
STALE = "This sign-in was not begun in this browser, or it took longer than ten minutes. Begin again."


class _TokenAnswer(msgspec.Struct):
    id_token: str


class Attempt(NamedTuple):
    """One sign-in under way."""

    state: str
    nonce: str
    verifier: str

    def cookie(self) -> str:
        """Write it as the cookie has it."""
        return ".".join(self)


def new_attempt() -> Attempt:
    """Begin one: 256 random bits for each part."""
    return Attempt(*(secrets.token_urlsafe(32) for _ in Attempt._fields))


def read_attempt(cookie: str) -> Attempt | None:
    """Read it back; None for what is none of ours."""
    parts = cookie.split(".")
    return Attempt(*parts) if len(parts) == len(Attempt._fields) and all(parts) else None


class CodeFlow:
    """The calls of one sign-in. Raises Rejection: 401 for whoever is not let in, 503 while the issuer is away."""

    def __init__(self, provider: IdentityProvider, tokens: TokenChecker, secret: Secret | None) -> None:
        """`secret`: of the client at the issuer; None for a public client, which PKCE alone protects."""
        self._provider, self._tokens, self._secret = provider, tokens, secret

    async def address(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return where the browser goes to sign in."""
        conf, document = self._provider.conf, await self._provider.document()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": conf.oidc_client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(conf.oidc_scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge,
            "code_challenge_method": METHOD,
        }
        joint = "&" if "?" in document.authorization_endpoint else "?"
        return f"{document.authorization_endpoint}{joint}{urlencode(query)}"

    async def finish(self, attempt: Attempt | None, answer: Mapping[str, str], redirect_uri: str) -> Admin:
        """Return the admin whom the issuer names, by the parameters with which the browser came back."""
        if attempt is None or not hmac.compare_digest(attempt.state.encode(), answer.get("state", "").encode()):
            raise unauthorized(STALE, "stale_sign_in")
        document = await self._provider.document()
        if answer.get("iss", document.issuer) != document.issuer:
            raise unauthorized("Another identity provider answered than was asked.", "wrong_issuer")
        if "error" in answer:
            shown = answer["error"][:60] if answer["error"].isprintable() else "an error"
            raise unauthorized(f"The identity provider did not sign you in: {shown}.", "sign_in_refused")
        code = answer.get("code", "")
        if not code or len(code) > LONGEST_CODE:
            raise unauthorized(STALE, "stale_sign_in")
        token = await self._exchange(document, code, attempt.verifier, redirect_uri)
        return await self._tokens.check_identity(token, attempt.nonce)

    async def _exchange(self, document: ProviderDocument, code: str, verifier: str, redirect_uri: str) -> str:
        """Return the id token for a code."""
        conf = self._provider.conf
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": conf.oidc_client_id,
            "code_verifier": verifier,
        }
        options: dict[str, Any] = {"data": form, "timeout": EXCHANGE_SECONDS, "headers": {"accept": "application/json"}}
        if self._secret is not None and "client_secret_basic" in document.token_endpoint_auth_methods_supported:
            # RFC 6749, 2.3.1: both are form-encoded before they become a user name and a password
            options["auth"] = (quote_plus(conf.oidc_client_id), quote_plus(self._secret.reveal()))
        elif self._secret is not None:
            form["client_secret"] = self._secret.reveal()
        try:
            answer = await self._provider.client.post(document.token_endpoint, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise no_provider(type(error).__name__) from None
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise no_provider(f"its answer was {answer.status_code}")
        if answer.status_code != httpx.codes.OK or len(answer.content) > MAX_ANSWER_BYTES:
            raise _not_taken()
        try:
            return msgspec.json.decode(answer.content, type=_TokenAnswer).id_token
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _not_taken() from None


def _not_taken() -> Rejection:
    return unauthorized("The identity provider did not take the code of this sign-in. Begin again.", "code_not_taken")
