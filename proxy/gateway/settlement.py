"""What an answer is charged: upstream's own usage where it can be believed, else what was shown, counted."""

from typing import Any, NamedTuple

import msgspec

from billing.money.amounts import Millicredits
from billing.money.pricing import Charge, Line, PriceBook, tier_of
from billing.money.usage import Usage
from billing.money.usage_record import Outcome, UsageSource
from proxy.gateway.answers.meter import Report, is_plausible
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.plan import Plan, price_usage
from proxy.gateway.services import Services


class Ending(NamedTuple):
    """How an exchange ended, and what it is to be charged."""

    usage: Usage
    source: UsageSource
    outcome: Outcome
    charge: Charge
    report: Report


class Shown(NamedTuple):
    """What an answer showed, for when its own usage is missing or wrong.

    `media`: tokens of sound or pictures; `searched`: whether a web search that is part of the price took place;
    `insured`: it ended in an error without output; `sessions`: code interpreter containers that began with it.
    """

    texts: list[str]
    media: int = 0
    searched: bool = True
    insured: bool = False
    sessions: int = 0


class Terms(NamedTuple):
    """What a request began under and ends under, whatever changes meanwhile.

    `insurance`: metering.zero_completion_insurance.
    """

    prices: PriceBook
    insurance: bool


async def decide_ending(
    services: Services, terms: Terms, plan: Plan, report: Report, shown: Shown, outcome: Outcome = "completed"
) -> Ending:
    """What to charge: upstream's own usage if it can be believed, else what was shown, counted.

    By the terms it began under.
    """
    prices = terms.prices
    usage, source = report.usage, "upstream"
    if usage is not None and not is_plausible(usage, plan.model, plan.parsed, plan.tools.calls + 1):
        services.metrics.count(services.metrics.implausible)
        usage = None
    if usage is None:
        source = "counted"
        usage = await count_usage(services.tokenizer, plan, shown.texts, shown.media)
    if plan.endpoint.free:
        usage = Usage()
    usage = _with_calls(plan, usage, searched=shown.searched, sessions=shown.sessions)
    tier = tier_of(report.service_tier, plan.tier)
    charge = price_usage(plan, prices, usage, report.model, tier, _lines(plan, prices, report))
    if shown.insured and terms.insurance:
        charge, outcome = charge._replace(amount=Millicredits(0)), "insured"
    return Ending(usage, source, outcome, charge, report)  # type: ignore[arg-type]


def _with_calls(plan: Plan, usage: Usage, *, searched: bool, sessions: int) -> Usage:
    """The usage with what is billed beside tokens, by the names of their prices, and cache writes by the lifetime asked
    for.
    """
    changes: dict[str, Any] = {}
    if plan.parsed.characters:
        changes["characters"] = plan.parsed.characters  # known before; such an answer says nothing of it
    if plan.searches and searched:
        changes["web_searches"] = plan.searches
    if usage.calls or sessions:
        calls = [(plan.tools.search if name == "web_search" else name, number) for name, number in usage.calls]
        changes["calls"] = (*calls, *((("code_interpreter_1g", sessions),) if sessions else ()))
    if usage.cache_write_30m_tokens and plan.parsed.cache_write_12h and not usage.cache_write_12h_tokens:
        changes |= {"cache_write_30m_tokens": 0, "cache_write_12h_tokens": usage.cache_write_30m_tokens}
    return msgspec.structs.replace(usage, **changes) if changes else usage


async def count_usage(tokenizer: Tokenizer, plan: Plan, texts: list[str], media: int) -> Usage:
    """Input as it would be counted, output as far as it was shown: texts counted, `media` tokens of sound or pictures."""
    parsed, most = plan.parsed, plan.bounds
    tokens_in = most.input_tokens
    unseen = parsed.audio_tokens or parsed.unbounded or (plan.tools.calls and parsed.tools) or plan.context is None
    if plan.endpoint.texts is not None and not unseen:
        inputs, framing = plan.endpoint.texts(parsed.source)
        counted = await tokenizer.count(parsed.model, inputs) + framing + (plan.context or 0) + parsed.image_tokens
        tokens_in = min(counted, tokens_in)
    if parsed.characters:
        return Usage()  # what is billed is known from the request
    card = plan.model.tier(plan.tier).short
    if parsed.milliseconds and not (card.input or card.output):
        return Usage(milliseconds=parsed.milliseconds)
    tokens_out = await tokenizer.count(parsed.model, texts) if texts else 0
    if media:
        drawn = media if plan.model.mode == "image_generation" else 0
        return Usage(
            input_tokens=tokens_in,
            output_tokens=tokens_out + media,
            image_output_tokens=drawn,
            audio_output_tokens=media - drawn,
        ).normalised()
    return Usage(input_tokens=tokens_in, output_tokens=min(tokens_out, most.output_tokens)).normalised()


def _lines(plan: Plan, prices: PriceBook, report: Report) -> list[Line]:
    """What other models did, priced by the name that the answer gives them, else by the one that the request named."""
    lines = []
    for name, usage in report.more:
        model = (prices.find(name) if name else None) or plan.tools.image or plan.model
        lines.append(Line(model, "default", usage.normalised()))
    return lines
