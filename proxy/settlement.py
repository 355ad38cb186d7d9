"""What an answer is charged: upstream's own usage where it can be believed, else what was shown, counted."""

from typing import Any, NamedTuple

from billing.money import Millicredits
from billing.pricing import Charge, PriceBook, tier_of
from billing.record import Outcome, UsageSource
from billing.usage import Usage
from proxy.bodies import texts_to_count
from proxy.meter import Report, is_plausible
from proxy.plan import Plan, price_usage
from proxy.services import Services
from proxy.tokenizer import Tokenizer


class Ending(NamedTuple):
    """How an exchange ended, and what it is to be charged."""

    usage: Usage
    source: UsageSource
    outcome: Outcome
    charge: Charge
    report: Report


async def decide_ending(
    services: Services,
    prices: PriceBook,
    plan: Plan,
    report: Report,
    texts: list[str],
    *,
    searched: bool,
    insured: bool,
    outcome: Outcome = "completed",
    audio: int = 0,
) -> Ending:
    """What to charge: upstream's own usage if it can be believed, else what was shown, counted."""
    usage, source = report.usage, "upstream"
    if usage is not None and not is_plausible(usage, plan.model, plan.parsed):
        services.metrics.count(services.metrics.implausible)
        usage = None
    if usage is None:
        source = "counted"
        usage = await count_usage(services.tokenizer, plan, texts, audio)
    if plan.searches and searched:
        usage = Usage(**{**_fields(usage), "web_searches": plan.searches})
    if usage.cache_write_30m_tokens and plan.parsed.cache_write_12h and not usage.cache_write_12h_tokens:
        writes = usage.cache_write_30m_tokens
        usage = Usage(**{**_fields(usage), "cache_write_30m_tokens": 0, "cache_write_12h_tokens": writes})
    tier = tier_of(report.service_tier, plan.tier)
    charge = price_usage(plan, prices, usage, report.model, tier)
    if insured and services.settings.billing.zero_completion_insurance:
        charge, outcome = charge._replace(amount=Millicredits(0)), "insured"
    return Ending(usage, source, outcome, charge, report)  # type: ignore[arg-type]


async def count_usage(tokenizer: Tokenizer, plan: Plan, texts: list[str], audio: int) -> Usage:
    """Input as it would be counted, output as far as it was shown."""
    model = plan.parsed.model
    inputs, framing = texts_to_count(plan.endpoint.name, plan.parsed.source)
    counted = await tokenizer.count(model, inputs) + framing
    media = plan.parsed.images or plan.parsed.audio_tokens or plan.parsed.unbounded
    tokens_in = plan.bounds.input_tokens if media else min(counted, plan.bounds.input_tokens)
    tokens_out = await tokenizer.count(model, texts) if texts else 0
    if audio:
        return Usage(input_tokens=tokens_in, output_tokens=tokens_out + audio, audio_output_tokens=audio).normalised()
    return Usage(input_tokens=tokens_in, output_tokens=min(tokens_out, plan.bounds.output_tokens)).normalised()


def _fields(usage: Usage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in usage.__struct_fields__}
