"""Bearer tokens of the operator's identity provider: signature, issuer, audience, time, and the role they carry.

The provider's public keys are cached; a token signed by an unknown key makes them be fetched again, at most every few seconds.
The library is loaded at the first token: a worker that never sees one does without it.
"""

import asyncio
import time
from typing import Any

import httpx
import msgspec

from billing.admins import Admin
from config.settings import Admin as AdminSettings
from proxy.rejections import Rejection, unauthorized, unavailable
from proxy.roles import ROLES

LEEWAY_SECONDS = 30
UNKNOWN_KEY_SECONDS = 5.0
FETCH_SECONDS = 5.0
MAX_JWKS_BYTES = 262_144
BEST_FIRST = ("owner", "ops", "finance", "support", "viewer", "service")
"""A token with several roles acts as the first of these that it has."""

Keys = dict[str, Any]


class TokenChecker:
    """Checks tokens of one issuer."""

    def __init__(self, conf: AdminSettings, client: httpx.AsyncClient) -> None:
        """`client` fetches the issuer's keys."""
        self._conf, self._client = conf, client
        self._keys: Keys = {}
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def check(self, token: str) -> Admin:
        """Who the token says is asking. Raises Rejection (401, or 503 when the issuer's keys cannot be had)."""
        jwt = await asyncio.to_thread(_library)
        try:
            head = jwt.get_unverified_header(token)
            key = await self._key(str(head.get("kid") or ""))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(self._conf.oidc_algorithms),
                issuer=self._conf.oidc_issuer,
                audience=self._conf.oidc_audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise unauthorized(f"This token is not accepted: {error}", "invalid_token") from None
        role = _role(claims, self._conf.oidc_role_claim)
        if role is None:
            raise unauthorized(f"This token carries no role of ours in {self._conf.oidc_role_claim!r}.", "no_role")
        name = claims.get("email") or claims["sub"]
        return Admin(f"oidc:{name}"[:120], role, None, int(claims["exp"]) * 1_000)

    async def _key(self, kid: str) -> Any:
        """The issuer's key of that id. Raises Rejection."""
        age = time.monotonic() - self._fetched_at
        if age > self._conf.jwks_cache_seconds or (kid not in self._keys and age > UNKNOWN_KEY_SECONDS):
            async with self._fetching:
                if time.monotonic() - self._fetched_at >= age:  # nobody fetched while we waited
                    await self._fetch()
        key = self._keys.get(kid) or (next(iter(self._keys.values())) if not kid and len(self._keys) == 1 else None)
        if key is None:
            raise unauthorized("This token is signed by a key that its issuer does not publish.", "unknown_signing_key")
        return key

    async def _fetch(self) -> None:
        from jwt import PyJWK, PyJWTError

        try:
            answer = await self._client.get(self._conf.oidc_jwks_url, timeout=FETCH_SECONDS)
            answer.raise_for_status()
            rows = msgspec.json.decode(answer.content)["keys"] if len(answer.content) <= MAX_JWKS_BYTES else []
            found = {}
            for row in rows:
                if row.get("use", "sig") == "sig":
                    found[str(row.get("kid") or "")] = PyJWK(row)
        except (httpx.HTTPError, msgspec.DecodeError, PyJWTError, KeyError, TypeError, AttributeError):
            if self._keys:  # the ones we have stay good: the issuer's trouble must not lock operators out
                self._fetched_at = time.monotonic() - self._conf.jwks_cache_seconds + UNKNOWN_KEY_SECONDS
                return
            raise _no_keys() from None
        self._keys, self._fetched_at = found, time.monotonic()


def _no_keys() -> Rejection:
    return unavailable("Tokens cannot be checked right now: the issuer's keys cannot be had.", "issuer_unavailable")


def _library() -> Any:
    import jwt

    return jwt


def _role(claims: dict[str, Any], path: str) -> str | None:
    """The best role among those a claim holds; `path` may lead into nested claims by dots."""
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
    given = {value} if isinstance(value, str) else {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()
    return next((role for role in BEST_FIRST if role in given and role in ROLES), None)
