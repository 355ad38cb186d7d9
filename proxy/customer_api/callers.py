"""The customer behind a request of the side API."""

from typing import Literal

from starlette.requests import Request

from billing.ledger.accounts import ApiKey
from billing.ledger.audit_log import Who
from proxy.gateway.authenticate import Authenticator
from proxy.web.origin import origin_of
from proxy.web.rejections import forbidden


async def authenticate(
    authenticator: Authenticator,
    request: Request,
    *,
    members: bool = False,
    tokens: Literal["none", "buyers", "all"] = "none",
) -> ApiKey:
    """Return the request's API key. Raises Rejection.

    `members`: whether this is for members of a team too, who see and change nothing but their own; `tokens`: whether it
    is for tokens of browsers and devices, or for those of them that may buy.
    """
    headers, client = request.scope["headers"], request.scope["client"]
    key = await authenticator.authenticate(headers, client, tokens=tokens != "none")
    if key.token is not None and tokens == "buyers" and not key.token.buys:
        raise forbidden("This token may not buy: it was made without `buy`.", "token_not_allowed")
    if key.rules.member and not members:
        raise forbidden("This is a team member's key: the account's affairs are its owner's.", "member_key")
    if key.token is None and key.account_id != key.home_id and not members:
        raise forbidden("This is an end user's wallet: its affairs are its owner's.", "wallet_of_end_user")
    return key


def customer(key: ApiKey, request: Request) -> Who:
    """Name the customer by one of their keys, for the audit log."""
    return Who(f"customer:{key.account_id} by {key.key_id}", "customer", *origin_of(request.scope))
