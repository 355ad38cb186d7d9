"""The operator's identity provider as it describes itself: OpenID Connect Discovery 1.0, fetched at the first need.

https://openid.net/specs/openid-connect-discovery-1_0.html
"""

import time
from urllib.parse import urlsplit

import httpx
import msgspec

from config.settings import AdminSettings
from proxy.web.rejections import Rejection, unavailable

PLACE = "/.well-known/openid-configuration"
FETCH_SECONDS = 5.0
CACHE_SECONDS = 3_600.0
RETRY_SECONDS = 5.0
"""Between two tries while it does not answer: anybody may ask to sign in, and none of them is to be a call to it."""
MAX_BYTES = 262_144
METHOD = "S256"
"""The way of PKCE that we use; `plain` is none."""


class ProviderDocument(msgspec.Struct, frozen=True):
    """Members of the description that we read."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    code_challenge_methods_supported: tuple[str, ...] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class IdentityProvider:
    """One issuer, and what it says of itself."""

    def __init__(self, conf: AdminSettings, client: httpx.AsyncClient) -> None:
        """`client` asks the issuer."""
        self.conf, self.client = conf, client
        self._known: ProviderDocument | None = None
        self._asked_again_at, self._trouble = float("-inf"), "it was not reached yet"

    async def document(self) -> ProviderDocument:
        """Return the description, at most an hour old while the issuer answers. Raises Rejection (503)."""
        if time.monotonic() >= self._asked_again_at:
            self._asked_again_at = time.monotonic() + RETRY_SECONDS  # whatever comes of it, and for everybody at once
            try:
                self._known = await self._fetch()
                self._asked_again_at = time.monotonic() + CACHE_SECONDS
            except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, ValueError, RecursionError) as error:
                self._trouble = str(error) or type(error).__name__
        if self._known is None:
            raise no_provider(self._trouble)
        return self._known

    async def jwks_url(self) -> str:
        """Return where the issuer's public keys are: as configured, else as it says. Raises Rejection (503)."""
        return self.conf.oidc_jwks_url or (await self.document()).jwks_uri

    async def _fetch(self) -> ProviderDocument:
        """Fetch the description. Raises httpx.HTTPError, ValueError for one that cannot be trusted."""
        answer = await self.client.get(self.conf.oidc_issuer.rstrip("/") + PLACE, timeout=FETCH_SECONDS)
        answer.raise_for_status()
        if len(answer.content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        found = msgspec.json.decode(answer.content, type=ProviderDocument)
        if found.issuer != self.conf.oidc_issuer:
            raise ValueError("it describes another issuer")
        wanted = urlsplit(self.conf.oidc_issuer).scheme
        for url in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
            parts = urlsplit(url)
            if parts.scheme not in ("https", wanted) or not parts.hostname:
                raise ValueError("it names an address that is not encrypted")
        methods = found.code_challenge_methods_supported
        if methods is not None and METHOD not in methods:
            raise ValueError(f"it knows no PKCE by {METHOD}")
        return found


def no_provider(why: str) -> Rejection:
    """Return the refusal of whoever cannot be signed in now; the cause is in words for the operator."""
    return unavailable(f"The identity provider cannot be asked right now: {why}.", "issuer_unavailable")
