"""From a parsed request to what is held for it: model, tier, bounds, price. Sans I/O.

Everything here decides about money and knows nothing of HTTP servers, sockets or stores.
"""

from typing import NamedTuple

from billing.accounts import ApiKey
from billing.errors import UnpricedModel
from billing.holds import KeyLimits
from billing.money import Millicredits
from billing.periods import period_name
from billing.pricing import Bounds, Charge, Model, PriceBook
from billing.usage import Usage
from config.settings import Billing, Limits
from proxy.authenticate import may_use_model, refuse_model
from proxy.bodies import Parsed, bounds_of, input_bound, with_members
from proxy.endpoints import Endpoint
from proxy.rejections import forbidden, invalid

# what a client may ask for → the tier we price ("" = the operator's own)
ASKED_TIERS = {
    None: "",
    "auto": "",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
    "ultrafast": "ultrafast",
}
TIER_JSON = {"default": b'"default"', "flex": b'"flex"', "priority": b'"priority"', "ultrafast": b'"ultrafast"'}


class Plan(NamedTuple):
    """One request, ready to be held for. `cap` is output tokens per choice; `ceiling` the most it can cost."""

    endpoint: Endpoint
    parsed: Parsed
    model: Model
    tier: str
    cap: int
    cap_is_ours: bool
    searches: int
    bounds: Bounds
    ceiling: Charge
    input_is_counted: bool = False


def make_plan(endpoint: Endpoint, parsed: Parsed, key: ApiKey, prices: PriceBook, billing: Billing) -> Plan:
    """Check model, tier and fields; bound by bytes; price the worst case. Raises Rejection."""
    if not may_use_model(parsed.model, billing.model_allowlist, key.rules.models):
        raise refuse_model(parsed.model)
    model = prices.find(parsed.model)
    if model is None or endpoint.name not in model.endpoints:
        raise refuse_model(parsed.model)
    if parsed.store and not billing.allow_store:
        raise invalid("`store` must be false here: stored completions would be kept in a shared account.", "store", "unsupported_parameter")
    tier = _tier(endpoint, parsed, model, billing)
    searches = _searches(parsed, model)
    tokens_in = input_bound(parsed, parsed.input_bytes_bound, model.context_window)
    cap, cap_is_ours = _output_cap(parsed, model, billing)
    bounds = bounds_of(parsed, tokens_in, cap, searches)
    return Plan(endpoint, parsed, model, tier, cap, cap_is_ours, searches, bounds, prices.ceiling(model, tier, bounds))


def with_counted_input(plan: Plan, tokens: int, prices: PriceBook) -> Plan:
    """The same plan with its text counted instead of bounded by bytes."""
    tokens_in = min(plan.bounds.input_tokens, input_bound(plan.parsed, tokens, plan.model.context_window))
    return _rebound(plan, prices, tokens_in, plan.cap)._replace(input_is_counted=True)


def clamped(plan: Plan, budget: int, minimum: int, prices: PriceBook) -> Plan | None:
    """The same plan with our own output cap lowered to what `budget` millicredits pay for; None below `minimum`."""
    choices = max(1, plan.parsed.choices)
    affordable = prices.affordable_output(plan.model, plan.tier, plan.bounds, budget)
    cap = min(plan.cap, (affordable - plan.parsed.extra_output) // choices)
    if not plan.cap_is_ours or cap < min(minimum, plan.cap):
        return None
    return _rebound(plan, prices, plan.bounds.input_tokens, cap)


def smallest(plan: Plan, minimum: int, prices: PriceBook) -> Plan:
    """The least that could be held for this request: what a 402 says is required."""
    return _rebound(plan, prices, plan.bounds.input_tokens, min(plan.cap, minimum)) if plan.cap_is_ours else plan


def body_to_send(plan: Plan) -> bytes:
    """The client's body with what we must set: usage reporting, an explicit tier, and our cap below the model's own."""
    parsed, changes = plan.parsed, {}
    if plan.endpoint.tiered and parsed.asked_tier not in (plan.tier, _wire_alias(plan.tier)):
        changes["service_tier"] = TIER_JSON[plan.tier]
    if parsed.stream and not parsed.wants_usage:
        changes["stream_options"] = b'{"include_usage":true' + parsed.keeps_stream_options + b"}"
    most = plan.model.max_output_tokens
    if plan.cap_is_ours and parsed.cap_field and (most is None or plan.cap < most):
        changes[parsed.cap_field] = str(plan.cap).encode()
    return with_members(parsed, changes)


def checkpoint_charge(plan: Plan, prices: PriceBook, output_tokens: int) -> Charge:
    """What an orphan of this plan would be charged: its input bound, and the output shown so far."""
    bounds = plan.bounds._replace(output_tokens=min(output_tokens, plan.bounds.output_tokens))
    return prices.ceiling(plan.model, plan.tier, bounds)


def price_usage(plan: Plan, prices: PriceBook, usage: Usage, billed_model: str, tier: str) -> Charge:
    """Price by the echoed model and tier; where the echo has no price, by what was asked for."""
    model = (prices.find(billed_model) if billed_model else None) or plan.model
    try:
        return prices.price(model, tier, usage)
    except UnpricedModel:
        return prices.price(plan.model, plan.tier, usage)


def key_limits(key: ApiKey, defaults: Limits, now_ms: int) -> KeyLimits:
    """A key's limits, the operator's defaults where it names none."""
    rules = key.rules
    if rules.spend_limit is None and not any(defaults_of(defaults)) and rules[4:6] == (None, None) and rules[3] is None:
        return NO_LIMITS
    return KeyLimits(
        spend_limit=rules.spend_limit,
        period=period_name(rules.spend_period or "total", now_ms),
        requests_per_minute=_either(rules.requests_per_minute, defaults.requests_per_minute),
        tokens_per_minute=_either(rules.tokens_per_minute, defaults.tokens_per_minute),
        concurrency=_either(rules.concurrency, defaults.concurrency),
    )


NO_LIMITS = KeyLimits()


def defaults_of(limits: Limits) -> tuple[int, int, int]:
    """The operator's defaults as a tuple."""
    return limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency


def held_amount(plan: Plan, *, free: bool) -> Millicredits:
    """What to hold: the ceiling, or nothing while charging is off."""
    return Millicredits(0) if free else plan.ceiling.amount


def _rebound(plan: Plan, prices: PriceBook, tokens_in: int, cap: int) -> Plan:
    bounds = bounds_of(plan.parsed, tokens_in, cap, plan.searches)
    return plan._replace(cap=cap, bounds=bounds, ceiling=prices.ceiling(plan.model, plan.tier, bounds))


def _tier(endpoint: Endpoint, parsed: Parsed, model: Model, billing: Billing) -> str:
    """The tier to send and to price: the client's, else the operator's. Raises Rejection."""
    if not endpoint.tiered:
        return "default"
    asked = ASKED_TIERS.get(parsed.asked_tier)
    if asked is None:
        raise invalid(f"`service_tier` {parsed.asked_tier!r} is not offered here.", "service_tier")
    if not asked:
        return billing.service_tier if billing.service_tier in model.tiers else "default"
    if asked not in billing.allowed_service_tiers:
        raise forbidden(f"`service_tier` {parsed.asked_tier!r} is not enabled here.", "service_tier_not_allowed", "service_tier")
    if asked not in model.tiers:
        raise invalid(f"The model {parsed.model!r} is not offered in service tier {parsed.asked_tier!r}.", "service_tier")
    return asked


def _searches(parsed: Parsed, model: Model) -> int:
    """Web searches that will be billed beside the tokens (their fee is not in usage)."""
    if not (model.searches_each_call or parsed.web_search):
        return 0
    if model.tiers["default"].short.web_search == 0:
        raise invalid(f"Web search has no price on the model {parsed.model!r}.", "web_search_options", "unsupported_parameter")
    return max(1, parsed.choices)


def _output_cap(parsed: Parsed, model: Model, billing: Billing) -> tuple[int, bool]:
    """(output tokens per choice, whether we chose it). Raises Rejection."""
    most = model.max_output_tokens
    if parsed.explicit_cap is not None:
        if most is not None and parsed.explicit_cap > most:
            raise invalid(
                f"The output maximum is too large: {parsed.explicit_cap}. {parsed.model!r} supports at most {most} output tokens.",
                parsed.cap_field or "max_tokens",
            )
        return parsed.explicit_cap, False
    chosen = billing.default_max_output_tokens or most
    if chosen is None:
        raise invalid(f"The model {parsed.model!r} has no known output maximum: send `{parsed.cap_field}`.", parsed.cap_field)
    return (min(chosen, most) if most is not None else chosen), True


def _wire_alias(tier: str) -> str:
    return "fast" if tier == "priority" else tier


def _either(own: int | None, default: int) -> int:
    return default if own is None else own
