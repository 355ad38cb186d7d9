"""Tokens of the operator's identity provider: signature, issuer, audience, time, and the role of whoever they name.

The provider's public keys are cached; a token signed by an unknown key makes them be fetched again, at most every few
seconds. Who somebody is, is said by `sub`, which the issuer never gives to anybody else; an e-mail address may change
hands. The library is loaded at the first token: a worker that never sees one does without it.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from billing.ledger.admins import LONGEST_ACTOR, Admin
from config.settings import AdminSettings
from proxy.admin.identity.provider import IdentityProvider
from proxy.admin.roles import ROLES
from proxy.web.rejections import Rejection, unauthorized, unavailable

LEEWAY_SECONDS = 30
UNKNOWN_KEY_SECONDS = 5.0
KNOWN_KEY_SECONDS = 1.0
"""How long a token of a known key waits for the keys to be fetched anew."""
FETCH_SECONDS = 5.0
CACHE_SECONDS = 300.0
"""How long the issuer's keys are kept."""
MAX_JWKS_BYTES = 262_144
LONGEST_SUBJECT = 71
"""As long as a SHA-256 in hex with its name before it, and short enough for LONGEST_ACTOR."""
BEST_FIRST = ("owner", "ops", "finance", "support", "viewer", "service")
"""A token with several roles acts as the first of these that it has."""

log = logging.getLogger("tollkeeper.oidc")

Keys = dict[str, Any]


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


class TokenChecker:
    """Checks tokens of one issuer."""

    def __init__(self, conf: AdminSettings, client: httpx.AsyncClient) -> None:
        """`client` asks the issuer for its keys, and for where they are when the settings do not say."""
        self._conf, self._client, self.provider = conf, client, IdentityProvider(conf, client)
        self._keys: Keys = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._troubled = False
        """The last fetch failed, or takes long."""

    async def check(self, token: str) -> Admin:
        """Return the admin that a token names. Raises Rejection (401, or 503 when the issuer's keys cannot be had)."""
        if not self._conf.oidc_audience:
            raise unauthorized("No tokens are taken here: admin.oidc_audience is not set.", "invalid_token")
        claims = await self._claims(token, self._conf.oidc_audience)
        return self._admin(claims, int(claims["exp"]) * 1_000)

    async def check_identity(self, token: str, nonce: str) -> Admin:
        """Return the admin that the id token of a sign-in in the browser names; the session has a length of its own.

        Raises Rejection, also for a token that was made for another sign-in or another client.
        """
        claims = await self._claims(token, self._conf.oidc_client_id)
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise unauthorized("This token is of another sign-in. Begin again.", "stale_sign_in")
        if claims.get("azp", self._conf.oidc_client_id) != self._conf.oidc_client_id:
            raise unauthorized("This token was made for another client.", "invalid_token")
        return self._admin(claims, None)

    async def _claims(self, token: str, audience: str) -> dict[str, Any]:
        """Return what a token of the issuer's says, its signature and times checked. Raises Rejection."""
        jwt = await asyncio.to_thread(_library)
        try:
            head = jwt.get_unverified_header(token)
            key = await self._key(str(head.get("kid") or ""))
            found: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(self._conf.oidc_algorithms),
                issuer=self._conf.oidc_issuer,
                audience=audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise unauthorized(f"This token is not accepted: {error}", "invalid_token") from None
        return found

    def _admin(self, claims: dict[str, Any], ends: int | None) -> Admin:
        """Return the admin of these claims. Raises Rejection for whoever has no role here."""
        role = role_of(claims, self._conf)
        if role is None:
            raise unauthorized(f"This token carries no role of ours in {self._conf.oidc_role_claim!r}.", "no_role")
        return Admin(_actor(str(claims["sub"]), claims.get("email")), role, None, ends)

    async def _key(self, kid: str) -> Any:
        """Return the issuer's key of that id. Raises Rejection.

        An unknown key is worth a fetch, but not one for each token that names one, however the last fetch went. Old
        keys are fetched anew; while the issuer is in trouble, whoever brings a key that is known does not wait for
        that.
        """
        key, now = self._known(kid), time.monotonic()
        wanted = key is None or now - self._fetched_at > CACHE_SECONDS
        if wanted and self._fetching is None and now - self._tried_at > UNKNOWN_KEY_SECONDS:
            self._tried_at = now
            self._fetching = asyncio.create_task(self._fetch())
        if wanted and self._fetching is not None and (key is None or not self._troubled):
            # one fetch for all who wait; it goes on without them
            await asyncio.wait((self._fetching,), timeout=None if key is None else KNOWN_KEY_SECONDS)
            self._troubled = self._troubled or self._fetching is not None
            key = self._known(kid)
        if key is None and not self._keys:
            raise _no_keys()
        if key is None:
            raise unauthorized("This token is signed by a key that its issuer does not publish.", "unknown_signing_key")
        return key

    def _known(self, kid: str) -> Any:
        return self._keys.get(kid) or (next(iter(self._keys.values())) if not kid and len(self._keys) == 1 else None)

    async def _fetch(self) -> None:
        """Replace the keys by those the issuer publishes. Whatever goes wrong, those we have stay good."""
        try:
            answer = await self._client.get(await self.provider.jwks_url(), timeout=FETCH_SECONDS)
            answer.raise_for_status()
            found = _keys_of(answer.content)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, Rejection) as error:
            # the issuer's trouble must not lock out whom it vouched for
            log.warning(
                "the identity provider's keys cannot be had (%s); those known stay good",
                str(error) or type(error).__name__,
            )
            self._troubled = True
        else:
            self._keys, self._fetched_at, self._troubled = found, time.monotonic(), False
        finally:
            self._fetching = None


def _keys_of(body: bytes) -> Keys:
    """Read the signing keys of a key set, without those that nobody here can use.

    Raises ValueError when it has none, or is none.
    """
    from jwt import PyJWK, PyJWTError

    if len(body) > MAX_JWKS_BYTES:
        raise ValueError(f"more than {MAX_JWKS_BYTES} bytes")
    try:
        rows = msgspec.json.decode(body, type=_KeySet).keys
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("not a key set") from None
    found: Keys = {}
    for row in rows:
        if row.get("use", "sig") != "sig":
            continue
        try:
            found[str(row.get("kid") or "")] = PyJWK(row)
        except (PyJWTError, ValueError, TypeError, KeyError, AttributeError) as error:
            # a curve or a kind of key that the library does not know: the others are none the worse for it
            log.info("a key of the identity provider is passed over: %s", type(error).__name__)
    if not found:
        raise ValueError("no signing key in it")
    return found


def _no_keys() -> Rejection:
    return unavailable("Tokens cannot be checked right now: the issuer's keys cannot be had.", "issuer_unavailable")


def _actor(subject: str, email: Any) -> str:
    """oidc:SUBJECT (E-MAIL). The subject stays whole; one that is too long or has blanks in it is named by its hash."""
    if len(subject) > LONGEST_SUBJECT or not subject.isprintable() or " " in subject:
        subject = "sha256-" + hashlib.sha256(subject.encode("utf-8", "replace")).hexdigest()
    actor = f"oidc:{subject}"
    room = LONGEST_ACTOR - len(actor) - len(" ()")
    if isinstance(email, str) and email.isprintable() and email and room > 0:
        actor += f" ({email[:room]})"
    return actor


def _library() -> Any:
    import jwt

    return jwt


def role_of(claims: Mapping[str, Any], conf: AdminSettings) -> str | None:
    """Return the best role that somebody has: by the claim with roles, by their e-mail address, by their groups.

    An address counts only where the issuer says that it is verified: anybody may claim one.
    """
    given = set(_texts(_claim(claims, conf.oidc_role_claim)))
    names = {f"group:{name}" for name in _texts(_claim(claims, conf.oidc_groups_claim))}
    email = claims.get("email")
    if isinstance(email, str) and claims.get("email_verified") in (True, "true"):
        names |= {email.lower(), f"@{email.lower().rpartition('@')[2]}"}
    given |= {role for name, role in conf.oidc_roles.items() if _folded(name) in names}
    return next((role for role in BEST_FIRST if role in given and role in ROLES), None)


def _folded(name: str) -> str:
    """Return a name of the table as it is compared: addresses whatever their case, groups as they are."""
    return name if name.startswith("group:") else name.lower()


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim; `path` may lead into nested claims by dots."""
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for step in path.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _texts(value: Any) -> list[str]:
    """Return the text, or the texts of a list, that a claim holds."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
