"""Rules for the URL of an endpoint: where events may be sent, so that nobody has us call into our own network."""

import httpx

from billing.jobs.notice_delivery import public_address
from billing.ledger.events.endpoints import BadEndpoint

LONGEST_URL = 2_000


async def check_url(url: str, *, private: bool) -> str:
    """Return the URL, if events may be sent there; `private`: also into private networks, and without TLS.

    Raises BadEndpoint.
    """
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise BadEndpoint("url", "be a URL such as https://app.example.com/events") from None
    if not url.isprintable() or len(url) > LONGEST_URL or not parts.host or parts.userinfo or parts.fragment:
        raise BadEndpoint(
            "url", f"be a URL of at most {LONGEST_URL} characters, without a password in it or a fragment"
        )
    if private:
        if parts.scheme not in ("http", "https"):
            raise BadEndpoint("url", "begin with https:// or http://")
        return url
    if parts.scheme != "https":
        raise BadEndpoint("url", "begin with https://")
    try:
        address = await public_address(parts)
    except (OSError, UnicodeError):
        raise BadEndpoint("url", "name a host that can be found") from None
    if address is None:
        raise BadEndpoint("url", "lead to a public address (notices.private_endpoints allows others)")
    return url
