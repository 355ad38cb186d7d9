"""Standing of a key before any work is done for it: whether anything of it could be served now.

A look that changes nothing, taken where work comes before the hold: a heavy body to parse, a socket to open. It only
spares work; the hold, which is atomic, stays the judge (I1).
"""

from billing.ledger.accounts import ApiKey
from billing.money.amounts import LIMIT, Millicredits, millicredits
from billing.money.errors import AccountNotFound, StoreUnavailable
from billing.money.holds import HoldRequest, KeyLimits, Refused
from billing.money.pricing import PriceBook
from billing.storage.database import now_ms
from config.app import ways_home
from config.settings import Settings
from proxy.gateway.admission import key_limits, over_limit, tightest_budget
from proxy.gateway.limits.affordable import affordable_cap, smallest
from proxy.gateway.plan import Plan
from proxy.gateway.services import Services
from proxy.web.rejections import Rejection, insufficient_credits, unavailable

CANNOT_READ = "Your balance cannot be read right now, so nothing was served or charged. Try again shortly."
EVERYTHING = millicredits(LIMIT - 1)
RATES = frozenset(("requests_per_minute", "tokens_per_minute", "concurrency"))


async def check_standing(
    services: Services, key: ApiKey, request_id: str, started_ms: int, *, free: bool, least: int = 1
) -> None:
    """Refuse whom nothing could be served. Raises Rejection (402, 429, 503).

    `free`: nothing is to be paid; `least`: millicredits that anything costs. What others hold may be free in a moment,
    so that alone refuses nobody. Who pays may depend on an end user whom nobody has named yet: the hold asks.
    """
    if key.users is not None and key.user is None:
        return
    settings = services.settings  # the same throughout, also when they change meanwhile
    limits = key_limits(key, settings.limits, started_ms, ())  # budgets of some models: the hold asks them
    if free and not limits.any:
        return
    amount = Millicredits(0 if free else least)
    wanted = HoldRequest(request_id, key.account_id, key.key_id, amount, 0, 0, limits, b"")
    try:
        refused = await services.balances.look(wanted)
    except StoreUnavailable as error:
        services.metrics.count(services.metrics.store_errors, error.store)
        raise unavailable(CANNOT_READ, "store_unavailable") from None
    except AccountNotFound:
        raise unavailable(CANNOT_READ, "store_unavailable") from None
    if refused is None or refused.source == "in_flight":
        return
    if refused.source in RATES:
        raise over_limit(refused)
    raise short_of_money(services, settings, limits, refused, least, key=key)


async def left_for(services: Services, key: ApiKey) -> tuple[int, int]:
    """Return (balance, held) as a key's holder may know them; the difference is what is there for them.

    Who may not know the account's has what the tightest of their budgets leaves of it. Raises StoreUnavailable,
    AccountNotFound.
    """
    if key.sees_balance:
        reading = await services.balances.read(key.account_id)
        return reading.balance, reading.held
    limits = key_limits(unhurried(key), services.settings.limits, now_ms(), ())
    limits = limits._replace(requests_per_minute=0, tokens_per_minute=0, concurrency=0)
    everything = HoldRequest("", key.account_id, key.key_id, EVERYTHING, 0, 0, limits, b"")
    found = await services.balances.look(everything)
    if found is None:
        raise RuntimeError("an account that covers every amount")
    left = found.balance - found.held
    return max(0, min(left, found.key_available) if found.source == "key_limit" else left), 0


def unhurried(key: ApiKey) -> ApiKey:
    """Key with its spend limit alone: rates are of live requests. A batch lasts for up to a day, and who asks about one
    makes none.
    """
    rules = key.rules._replace(requests_per_minute=0, tokens_per_minute=0, concurrency=0)
    return key._replace(rules=rules)


def short_for(
    services: Services,
    settings: Settings,
    key: ApiKey,
    limits: KeyLimits,
    asked: tuple[Plan, PriceBook],
    result: Refused,
) -> Rejection:
    """402 for a plan, with what is needed, what is there and what is affordable; counted.

    `asked`: the plan and its prices; `settings`: those that the request began under, as the prices are.
    """
    plan, prices = asked
    budget = result.key_available if result.source == "key_limit" else result.balance - result.held
    needed = smallest(plan, settings.holds.min_output_tokens, prices).ceiling.amount
    affordable = affordable_cap(plan, budget, prices) if plan.parsed.choices else None
    if result.source != "key_limit":
        result = result._replace(source="in_flight" if result.balance >= needed else "balance")
    return short_of_money(services, settings, limits, result, needed, affordable, key=key)


def short_of_money(
    services: Services,
    settings: Settings,
    limits: KeyLimits,
    result: Refused,
    needed: int,
    affordable: int | None = None,
    *,
    key: ApiKey,
) -> Rejection:
    """402, with what is needed, what is there and what is affordable; counted.

    Whoever may not know what the account has is told of their own limit alone.
    """
    limit = tightest_budget(limits, result) if result.source == "key_limit" else None
    source = "end_user_limit" if limit is not None and limit.whose == "end_user" else result.source
    services.metrics.count(services.metrics.insufficient, source)
    retry = 1_000 if source == "in_flight" else None
    top_up, ways = services.absolute(settings.purchases.top_up_url), ways_home(settings.app)
    if not key.sees_balance:
        left = max(0, limit.left) if limit is not None else 0
        return insufficient_credits(source, needed, left, 0, None, top_up, retry, limit, ways)
    return insufficient_credits(source, needed, result.balance, result.held, affordable, top_up, retry, limit, ways)
