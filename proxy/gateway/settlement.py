"""The charge of an answer: upstream's own usage where it can be believed, else what was streamed, counted.

One function decides for every transport, however the exchange ended.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from billing.money.amounts import LIMIT, Millicredits
from billing.money.errors import UnpricedModel
from billing.money.pricing import Charge, Model, ModelUsage, PriceBook, tier_of
from billing.money.usage import MAX_TOKENS, Usage
from billing.money.usage_record import Outcome, UsageSource
from proxy.gateway.answers.report import Report
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.bodies.tokenizer import Tokenizer
from proxy.gateway.plan import Plan
from proxy.gateway.services import PricingTerms, Services

IMAGES_MODE = "image_generation"
DOUBTED = 10
"""A report is doubted where the output that it leaves out is more than this part of its input: a tenth."""


class SettlementDecision(NamedTuple):
    """The end of an exchange, and its charge."""

    usage: Usage
    source: UsageSource
    outcome: Outcome
    charge: Charge
    report: Report


class ObservedOutput(NamedTuple):
    """Output that passed towards the client, for when the answer's own usage is missing or wrong.

    `media`: tokens of sound or pictures; `searched`: a web search that is part of the price took place; `errored`: the
    answer ended in an error, or in nothing; `running`: its usage came in the middle, and the end did not.
    """

    texts: list[str]
    media: int = 0
    searched: bool = True
    errored: bool = False
    running: bool = False

    def is_empty(self, report: Report) -> bool:
        """Tell whether nothing billable passed, neither output nor a finished call of a hosted tool."""
        return not (self.media or any(self.texts) or report.calls or report.pictures or report.more)


NO_OUTPUT = ObservedOutput([], searched=False)


async def decide_settlement(
    services: Services,
    terms: PricingTerms,
    plan: Plan,
    report: Report,
    observed: ObservedOutput,
    outcome: Outcome = "completed",
    sessions: int = 0,
    held: int = LIMIT,
) -> SettlementDecision:
    """Decide what to charge, by the terms the request began under: the exit rule (docs/architecture.md), for every end.

    `sessions`: containers that began with it; `held`: millicredits, the most that a report nobody can believe costs.
    """
    usage, source = report.usage, "upstream"
    if usage is not None and not is_plausible(usage, plan.model, plan.parsed, plan.tools.calls + 1):
        services.metrics.count(services.metrics.implausible)
        # what a model thought cannot be counted: then the report stands, as far as it was held for
        usage, source = (usage, "bounded") if plan.model.reasoning else (None, source)
    if usage is not None and not is_billable(usage, plan):
        usage = None
    counted = 0
    if usage is None or report.pictures or falls_short(usage, observed):
        counted = await count_input(services.tokenizer, plan)
        found = await count_usage(services.tokenizer, plan, counted, observed, report)
        if usage is None:
            usage, source = found, "counted"
        elif source == "upstream":
            usage, source = with_missing_parts(usage, found, plan, report, running=observed.running)
    if plan.endpoint.free:
        usage = Usage()
    usage = _with_calls(plan, usage, report, searched=observed.searched, sessions=sessions)
    charge = price_usage(plan, terms.prices, usage, report, _other_models(plan, terms.prices, report, counted))
    if source == "bounded":
        charge = charge._replace(amount=Millicredits(min(charge.amount, held)))
    if observed.errored and observed.is_empty(report) and terms.insurance:
        charge, outcome = charge._replace(amount=Millicredits(0)), "insured"
    return SettlementDecision(usage, source, outcome, charge, report)  # type: ignore[arg-type]


def price_usage(plan: Plan, prices: PriceBook, usage: Usage, report: Report, more: Sequence[ModelUsage] = ()) -> Charge:
    """Price by the echoed model and tier; where the echo has no price, by what was asked for.

    `more`: other models' work.
    """
    model = (prices.find(report.model) if report.model else None) or plan.model
    try:
        return prices.price(model, tier_of(report.service_tier, plan.tier), usage, more)
    except UnpricedModel:
        return prices.price(plan.model, plan.tier, usage, more)


def _with_calls(plan: Plan, usage: Usage, report: Report, *, searched: bool, sessions: int) -> Usage:
    """Usage with what is billed beside tokens, by the names of their prices, and cache writes by the lifetime asked
    for where the answer does not say it.
    """
    changes: dict[str, Any] = {}
    if plan.parsed.characters:
        changes["characters"] = plan.parsed.characters  # known before; such an answer says nothing of it
    if plan.searches and searched:
        changes["web_searches"] = plan.searches
    if report.calls or sessions:
        calls = [(plan.tools.search if name == "web_search" else name, number) for name, number in report.calls]
        changes["calls"] = (*calls, *((("code_interpreter_1g", sessions),) if sessions else ()))
    if usage.cache_write_30m_tokens and plan.parsed.cache_write_12h and not report.writes_split:
        changes |= {"cache_write_30m_tokens": 0, "cache_write_12h_tokens": usage.cache_write_30m_tokens}
    return msgspec.structs.replace(usage, **changes) if changes else usage


async def count_input(tokenizer: Tokenizer, plan: Plan) -> int:
    """Count the input once and as far as it can be: files, sound and what hosted tools added are not.

    Nobody is charged a bound because a connection broke; what an upstream's failure leaves unknown is the platform's.
    (Of a background response no text is kept, but its count is; its bound stands where an older version began it.)
    """
    parsed, most = plan.parsed, plan.bounds.input_tokens
    if plan.endpoint.texts is None or not parsed.source:
        return most if parsed.estimated_input is None else min(parsed.estimated_input, most)
    inputs, framing = plan.endpoint.texts(parsed.source)
    counted = await tokenizer.count(parsed.model, inputs)
    return min(counted + framing + (plan.context or 0) + parsed.image_tokens, most)


async def count_usage(
    tokenizer: Tokenizer, plan: Plan, tokens_in: int, observed: ObservedOutput, report: Report
) -> Usage:
    """Usage by what passed: text counted, sound by its bytes, pictures by size and quality."""
    parsed, most = plan.parsed, plan.bounds
    if parsed.characters:
        return Usage()  # what is billed is known from the request
    card = plan.model.tier(plan.tier).short
    if parsed.milliseconds and not (card.input or card.output):
        likely = parsed.milliseconds if parsed.estimated_milliseconds is None else parsed.estimated_milliseconds
        return Usage(milliseconds=report.milliseconds or likely)
    heard = min(parsed.estimated_audio, tokens_in)
    texts = await tokenizer.count(parsed.model, observed.texts) if any(observed.texts) else 0
    media = observed.media
    drawn = 0
    if plan.model.mode == IMAGES_MODE:
        drawn, media = media + report.pictures * parsed.picture_tokens, 0
    tokens_out = min(texts + media + drawn, most.output_tokens)
    return Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        audio_input_tokens=heard,
        image_output_tokens=min(drawn, tokens_out),
        audio_output_tokens=min(media, tokens_out),
    ).normalised()


def falls_short(usage: Usage, observed: ObservedOutput) -> bool:
    """Tell whether a report says less than what plainly passed: no input, no output beside some, or only so far."""
    passed = bool(observed.media or any(observed.texts))
    return passed and not usage.milliseconds and (observed.running or not usage.input_tokens or not usage.output_tokens)


def with_missing_parts(
    usage: Usage, found: Usage, plan: Plan, report: Report, *, running: bool
) -> tuple[Usage, UsageSource]:
    """Usage whose missing parts fall to what was counted, and its source.

    A report is doubted where it leaves out more than a tenth of what it says, one from the middle where twice as much
    has passed: another tokenizer counts otherwise.
    """
    changes = {}
    if not usage.input_tokens:
        changes["input_tokens"] = found.input_tokens
    beyond = running and found.output_tokens > 2 * usage.output_tokens
    matters = beyond or not usage.input_tokens or found.output_tokens * DOUBTED > usage.input_tokens
    if found.output_tokens > usage.output_tokens and matters and plan.model.mode != IMAGES_MODE:
        changes |= {"output_tokens": found.output_tokens, "audio_output_tokens": found.audio_output_tokens}
    if plan.model.mode == IMAGES_MODE and report.pictures:
        drawn = report.pictures * plan.parsed.picture_tokens
        changes |= {
            "output_tokens": usage.output_tokens + drawn,
            "image_output_tokens": usage.image_output_tokens + drawn,
        }
    return (msgspec.structs.replace(usage, **changes), "counted") if changes else (usage, "upstream")


def is_billable(usage: Usage, plan: Plan) -> bool:
    """Tell whether a report is in a unit that its model has a price for."""
    card = plan.model.tiers[plan.tier].short
    tokens = usage.input_tokens or usage.output_tokens
    if tokens and not (card.input or card.output or card.audio_input):
        return not card.millisecond
    return not (usage.milliseconds and not tokens and not card.millisecond)


def _other_models(plan: Plan, prices: PriceBook, report: Report, counted: int) -> list[ModelUsage]:
    """Usage of other models, priced by the name that the answer gives them, else by the one that the request named.

    `counted`: tokens of the input, which is what a picture is drawn by where nothing says how many it took.
    """
    lines = []
    for name, usage in report.more:
        model = (prices.find(name) if name else None) or plan.tools.image or plan.model
        lines.append(ModelUsage(model, "default", usage.normalised()))
    if report.pictures and plan.tools.image is not None and plan.model.mode != IMAGES_MODE:
        drawn = report.pictures * plan.parsed.picture_tokens
        told = min(counted, plan.parsed.image_tool.input_tokens if plan.parsed.image_tool else counted)
        drawing = Usage(
            input_tokens=report.pictures * told, output_tokens=drawn, image_output_tokens=drawn
        ).normalised()
        lines.append(ModelUsage(plan.tools.image, "default", drawing))
    return lines


def is_plausible(usage: Usage, model: Model, parsed: Parsed, loops: int = 1) -> bool:
    """Tell whether a model can have used that much at all: each input within its window, each output within its
    maximum.

    `loops` is how often hosted tools may have made it read its input again.
    """
    window = model.context_window or MAX_TOKENS
    most_out = (model.max_output_tokens or window) * max(1, parsed.choices) * 2
    return usage.input_tokens <= window * parsed.inputs * loops and usage.output_tokens <= max(most_out, 1)
