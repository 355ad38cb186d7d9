"""Calls that cost nothing: limited by a key's rate like those that do, and nothing is left of them in the balances.

What is paid for is limited by the money for it. What is free has no such end, so there is a rate for it even where a
key has none (`limits.free_requests_per_minute`).
"""

from billing.ledger.accounts import ApiKey
from billing.money.amounts import Millicredits
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import HoldRequest, KeyLimits, Refused
from config.settings import Limits
from proxy.gateway.admission import key_limits, over_limit
from proxy.gateway.limits.standing import CANNOT_READ
from proxy.gateway.plan import Plan
from proxy.gateway.services import Services
from proxy.web.rejections import unavailable

LEASE_MS = 5_000
"""Life of the empty hold that counts a call, should this process die before it is released."""


def free_limits(key: ApiKey, defaults: Limits, now_ms: int) -> KeyLimits:
    """Limits of a key for what costs nothing: its own, and the rate that all have."""
    own = key_limits(key, defaults, now_ms, ())
    rates = [rate for rate in (own.requests_per_minute, defaults.free_requests_per_minute) if rate]
    return own._replace(requests_per_minute=min(rates, default=0), budgets=())


def limits_for(plan: Plan, key: ApiKey, defaults: Limits, now_ms: int) -> KeyLimits:
    """Return the limits of a key for what a request asks for."""
    if plan.endpoint.free:
        return free_limits(key, defaults, now_ms)
    return key_limits(key, defaults, now_ms, (plan.parsed.model, *plan.also))


async def count_free_call(services: Services, key: ApiKey, request_id: str, started_ms: int) -> None:
    """Count a call that costs nothing. Raises Rejection (429, 503).

    Only requests a minute limit it: it has no tokens, and takes no place among those in flight. Whose batch or
    background response has the only place must be able to ask how it does, and to cancel it.
    """
    limits = free_limits(key, services.settings.limits, started_ms)._replace(tokens_per_minute=0, concurrency=0)
    if not limits.any:
        return
    nothing = Millicredits(0)
    wanted = HoldRequest(request_id, key.account_id, key.key_id, nothing, 0, LEASE_MS, limits, b"")
    try:
        result = await services.balances.hold(wanted)
        if isinstance(result, Refused):
            raise over_limit(result)
        await services.balances.release(request_id, key.account_id)
    except (StoreUnavailable, AccountNotFound):
        raise unavailable(CANNOT_READ, "store_unavailable") from None
