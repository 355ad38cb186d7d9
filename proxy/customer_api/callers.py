"""The customer behind a request of the side API."""

from starlette.requests import Request

from billing.ledger.accounts import ApiKey
from billing.ledger.audit_log import Who
from proxy.gateway.authenticate import Authenticator
from proxy.web.origin import origin_of


async def authenticate(authenticator: Authenticator, request: Request) -> ApiKey:
    """Return the request's API key. Raises Rejection."""
    return await authenticator.authenticate(request.scope["headers"], request.scope["client"])


def customer(key: ApiKey, request: Request) -> Who:
    """Name the customer by one of their keys, for the audit log."""
    return Who(f"customer:{key.account_id} by {key.key_id}", "customer", *origin_of(request.scope))
