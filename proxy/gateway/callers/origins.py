"""Web pages that call from another origin, with a token that names their origin.

A browser asks before it calls (OPTIONS), without the token: it is answered for every origin that some token is of. The
call itself must come from an origin of its own token. No cookie is taken on /v1, so nobody's browser can be made to
ask in their name.
"""

import asyncio
import time

from billing.ledger.accounts import TokenTerms
from billing.ledger.customers.access_tokens import TOKEN_PREFIX, AccessTokens
from billing.money.errors import StoreUnavailable
from proxy.web.raw_request import Headers, first_header, has_any
from proxy.web.rejections import forbidden

FRESH_SECONDS = 2.0
AGAIN_SECONDS = 0.25
"""Between looks for an origin that is not among those known."""
PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"*, authorization"),
    (b"access-control-max-age", b"600"),
)
ORIGIN = (b"origin",)
EXPOSED = (b"access-control-expose-headers", b"*")
BEARER_TOKEN = b"bearer " + TOKEN_PREFIX.encode()


def check_origin(token: TokenTerms, headers: Headers) -> None:
    """Raise Rejection unless a token may be used from where a request comes from.

    One that names origins is for their pages alone, one that names none for no page.
    """
    found = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if token.origins and (len(found) != 1 or found[0] not in token.origins):
        raise forbidden("This token is used from web pages of other origins than this.", "origin_not_allowed")
    if not token.origins and found:
        raise forbidden("This token names no origin, so it is for no web page.", "origin_not_allowed")


def shared_headers(origin: bytes) -> Headers:
    """Headers of an answer that a page of this origin may read."""
    return [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), EXPOSED]


class TokenOrigins:
    """Origins of the tokens that are good now, as SQL has them."""

    def __init__(self, tokens: AccessTokens) -> None:
        """Nothing is known yet."""
        self._tokens, self._known = tokens, frozenset[str]()
        self._read_at = float("-inf")
        self._one_at_a_time = asyncio.Lock()

    async def sharing(self, method: str, headers: Headers) -> bytes | None:
        """Return the origin that an answer is shared with: a page asks, with a token or before it sends one."""
        if not has_any(headers, ORIGIN):
            return None
        origin = first_header(headers, b"origin")
        asks = method == "OPTIONS"
        named = b"access-control-request-method" if asks else b"authorization"
        found = first_header(headers, named)
        if not (found if asks else found[: len(BEARER_TOKEN)].lower() == BEARER_TOKEN):
            return None
        return origin if await self.allows(origin) else None

    async def allows(self, origin: bytes) -> bool:
        """Tell whether some token is of this origin; what cannot be read now is not."""
        name = origin.decode("latin-1")
        async with self._one_at_a_time:
            age = time.monotonic() - self._read_at
            if age > FRESH_SECONDS or (name not in self._known and age > AGAIN_SECONDS):
                try:
                    self._known, self._read_at = await self._tokens.origins(), time.monotonic()
                except StoreUnavailable:
                    return name in self._known
        return name in self._known
