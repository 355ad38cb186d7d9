"""`tollkeeper portal`: a one-time link to an account's Credits page."""

from typing import Any

from billing.ledger.portal_tokens import PortalTokens
from proxy.cli.context import Add, Context, Result, who
from proxy.credits_page.sign_in import link_url
from proxy.web.times import iso_time


def register(commands: Any, add: Add) -> None:
    """Add the command to the parser."""
    portal = add(commands, "portal", _portal, "A one-time link to an account's Credits page, good for ten minutes.")
    portal.add_argument("account")


async def _portal(context: Context) -> Result:
    settings = context.settings
    token, expires_at = await PortalTokens(context.database).link(context.arguments.account, who())
    host = "127.0.0.1" if settings.listen.host in ("0.0.0.0", "::") else settings.listen.host
    url = link_url(settings.portal.public_url or f"http://{host}:{settings.listen.port}", token)
    return {"url": url, "expiresAt": iso_time(expires_at)}, url, 0
