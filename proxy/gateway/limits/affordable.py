"""How much of what a request may cost an account can pay for, and leaves to its other requests. Sans I/O."""

from billing.money.pricing import PriceBook
from proxy.gateway.plan import Plan, with_cap

SHARE = 4
"""Requests of an account that our own caps leave room for side by side."""
USUAL_TOKENS, USUAL_REASONED_TOKENS = 4_096, 8_192
"""Most output tokens of most answers, without and with reasoning."""


def affordable_cap(plan: Plan, budget: int, prices: PriceBook) -> int:
    """Find the highest output cap a choice, not above the plan's, that `budget` millicredits pay for; 0 for none."""
    low, high = 0, plan.cap
    if not plan.model.tier(plan.tier).short.output:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if with_cap(plan, middle, prices).ceiling.amount <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def clamped(plan: Plan, budget: int, minimum: int, prices: PriceBook) -> Plan | None:
    """Plan anew with our own output cap lowered to what `budget` millicredits pay for; None below `minimum`."""
    if not plan.cap_is_ours:
        return None
    cap = affordable_cap(plan, budget, prices)
    return None if cap < min(minimum, plan.cap) else with_cap(plan, cap, prices)


def smallest(plan: Plan, minimum: int, prices: PriceBook) -> Plan:
    """Least that could be held for this request: what a 402 says is required."""
    return with_cap(plan, min(plan.cap, minimum), prices) if plan.cap_is_ours else plan


def usual(plan: Plan, prices: PriceBook) -> Plan:
    """Plan with what such a model usually answers with at most: our cap leaves room for others down to that."""
    tokens = USUAL_REASONED_TOKENS if plan.model.reasoning else USUAL_TOKENS
    return with_cap(plan, min(plan.cap, tokens), prices)


def share_of(budget: int, enough: int) -> int:
    """Part of what is available that our own cap may take, so that others find some: not less than what is usual."""
    return min(budget, max(budget // SHARE, enough))
