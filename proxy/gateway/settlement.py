"""The charge of an answer: upstream's own usage where it can be believed, else what was streamed, counted.

One function decides for every transport, however the exchange ended.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from billing.money.amounts import LIMIT, Millicredits
from billing.money.catalogue.models import Model
from billing.money.errors import UnpricedModel
from billing.money.pricing import Charge, ModelUsage, PriceBook, tier_of
from billing.money.usage import MAX_TOKENS, Usage, Value
from billing.money.usage_record import Outcome, UsageSource
from proxy.gateway.answers.report import Report
from proxy.gateway.bodies.parsed import FRAMING_TOKENS, Parsed
from proxy.gateway.counting.tokenizer import Tokenizer
from proxy.gateway.limits.affordable import smallest
from proxy.gateway.plan import BATCH, RESPONSES, Plan, with_counted_input
from proxy.gateway.services import PricingTerms, Services

LONG_TEXT, LONG_TOKEN = 65_536, 8
"""Bytes of a text that takes a while to count, and of tokens that are longer on average than any language's."""
IMAGES_MODE = "image_generation"
DOUBTED = 10
"""A report is doubted where the output that it leaves out is more than this part of its input: a tenth."""
MOST_PER_TOKEN, MOST_BYTES_READ_PER_TOKEN = 64, 512
"""Characters that a token of an output stands for at most, but in long blanks, and bytes of a request that one of its
input does: a report of fewer tokens is counted after."""
TWICE = 2
"""Times that what a report says may be off from what is counted, or beyond what was held for, and be believed."""
LONGEST_SOUND = 86_400_000
"""Milliseconds, a day: no file that is taken plays longer, whatever else its bytes say."""
MOST_PICTURE = 200_000
"""Tokens of the largest picture of the dearest quality, rounded up."""
CALLS_A_TURN = 10
"""Searches that one call of a tool may stand for, at most."""


class SettlementDecision(Value, frozen=True):
    """The end of an exchange, and its charge."""

    usage: Usage
    source: UsageSource
    outcome: Outcome
    charge: Charge
    report: Report


class ObservedOutput(Value, frozen=True):
    """Output that passed towards the client, for when the answer's own usage is missing or wrong.

    `media`: tokens of sound or pictures; `searched`: a web search that is part of the price took place; `errored`: the
    answer ended in an error, or in nothing; `running`: its usage came in the middle, and the end did not; `early`: it
    came to its end, and what it used was said before that.
    """

    texts: list[str]
    media: int = 0
    searched: bool = True
    errored: bool = False
    running: bool = False
    early: bool = False

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
    report = with_possible_tools(report, plan)
    usage, source = report.usage, "upstream"
    if usage is not None and not is_plausible(usage, plan.model, plan.parsed, plan.tools.calls + 1):
        services.metrics.count(services.metrics.implausible)
        # neither what a model thought nor how long a file plays can be counted: then the report stands, as far as it
        # was held for
        uncountable = plan.model.reasoning or usage.milliseconds
        usage, source = (usage, "bounded") if uncountable else (None, source)
        if plan.model.mode == IMAGES_MODE and usage is None:
            report = report._replace(pictures=report.seen_pictures)
    if usage is not None and not is_billable(usage, plan):
        usage = None
    counted = 0
    if usage is None or report.pictures or falls_short(usage, observed, plan):
        counted = await count_input(services.tokenizer, plan)
        found = await count_usage(services.tokenizer, plan, counted, observed, report)
        if usage is None:
            usage, source = found, "counted"
        elif source == "upstream":
            usage, source = with_missing_parts(usage, found, plan, report, observed)
    if source == "upstream" and (observed.media or plan.parsed.estimated_audio):
        usage, source = with_untold_sound(usage, plan, observed)
    if plan.endpoint.free:
        usage = Usage()
    usage = _with_calls(plan, usage, report, searched=observed.searched, sessions=sessions)
    others = _other_models(plan, terms.prices, report, counted) if report.more or report.pictures else ()
    charge = price_usage(plan, terms.prices, usage, report, others)
    if source == "bounded":
        charge = charge._replace(amount=Millicredits(min(charge.amount, held)))
    if observed.errored and observed.is_empty(report) and terms.insurance:
        charge, outcome = charge._replace(amount=Millicredits(0)), "insured"
    return SettlementDecision(usage, source, outcome, charge, report)  # type: ignore[arg-type]


def price_usage(plan: Plan, prices: PriceBook, usage: Usage, report: Report, more: Sequence[ModelUsage] = ()) -> Charge:
    """Price by the echoed model and tier; where the echo has no price, by what was asked for.

    `more`: other models' work.
    """
    tier = tier_of(report.service_tier, plan.tier)
    if tier == BATCH:  # no answer says so
        tier = plan.tier
    try:
        return prices.price(echoed_model(report, plan, prices), tier, usage, more)
    except UnpricedModel:
        return prices.price(plan.model, plan.tier, usage, more)


def echoed_model(report: Report, plan: Plan, prices: PriceBook) -> Model:
    """Find the model that an answer names, if it can have answered there; else the one that was asked for.

    Prices of another unit would make an answer free.
    """
    found = prices.find(report.model) if report.model else None
    served = plan.endpoint.priced_as or plan.endpoint.name
    return found if found is not None and served in found.endpoints else plan.model


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
    counted = await tokenizer.count_body(parsed.model, plan.endpoint.texts, parsed.source)
    return min(counted + (plan.context or 0) + parsed.image_tokens, most)


def is_worth_counting(plan: Plan, budget: int, prices: PriceBook) -> bool:
    """Tell whether counting the text may change what is decided.

    A long text is not counted where it cannot fit the model's window however long its tokens are, nor where `budget`
    millicredits do not pay for it even then.
    """
    if plan.input_is_counted or plan.endpoint.texts is None:
        return False
    if plan.text <= LONG_TEXT:
        return True
    window, fewest = plan.model.context_window, plan.text // LONG_TOKEN
    if window is not None and fewest > window * max(1, plan.parsed.inputs):
        return False
    return smallest(with_counted_input(plan, fewest, prices), 1, prices).ceiling.amount <= budget


async def counted_plan(tokenizer: Tokenizer, plan: Plan, prices: PriceBook) -> Plan:
    """Plan with its text counted: bytes over-hold English about fivefold."""
    if plan.endpoint.texts is None:
        return plan
    tokens = await tokenizer.count_body(plan.parsed.model, plan.endpoint.texts, plan.parsed.source)
    return with_counted_input(plan, tokens + plan.parsed.encrypted_tokens, prices)


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


def falls_short(usage: Usage, observed: ObservedOutput, plan: Plan) -> bool:
    """Tell whether a report may say less than what plainly was sent and passed: no input, no output beside some, only
    so far, or hardly any for so much text.
    """
    if usage.milliseconds:
        return False
    passed = bool(observed.media or any(observed.texts))
    if passed and (observed.running or observed.early or not usage.input_tokens or not usage.output_tokens):
        return True
    return _says_little_of_output(usage, observed) or _says_little_of_input(usage, plan)


def _says_little_of_output(usage: Usage, observed: ObservedOutput) -> bool:
    return sum(map(len, observed.texts)) > MOST_PER_TOKEN * usage.output_tokens


def _says_little_of_input(usage: Usage, plan: Plan) -> bool:
    """Tell whether a report says hardly any input for so much text, where all of it is read and nothing else is."""
    parsed = plan.parsed
    is_text = plan.endpoint.texts is not None and parsed.source and not (parsed.image_tokens or parsed.unbounded)
    is_all = plan.context == 0 and not parsed.truncates and parsed.compact_at is None
    hardly = parsed.input_bytes_bound - FRAMING_TOKENS > MOST_BYTES_READ_PER_TOKEN * usage.input_tokens
    return bool(hardly and is_text and is_all and not parsed.encrypted_tokens)


def with_missing_parts(
    usage: Usage, found: Usage, plan: Plan, report: Report, observed: ObservedOutput
) -> tuple[Usage, UsageSource]:
    """Usage whose missing parts fall to what was counted, and its source.

    No output beside some is no report of it. One from the middle, and one of hardly any tokens for so much text, are
    doubted where twice as much was sent or has passed: another tokenizer counts otherwise. One from the middle of an
    answer that did not end, and one that says nothing of its input, already where they leave out more than a tenth.
    """
    changes = {}
    short_in = _says_little_of_input(usage, plan) and found.input_tokens > TWICE * usage.input_tokens
    if not usage.input_tokens or short_in:
        changes["input_tokens"] = found.input_tokens
    doubted = observed.running or observed.early or _says_little_of_output(usage, observed)
    beyond = doubted and found.output_tokens > TWICE * usage.output_tokens
    matters = observed.running and found.output_tokens * DOUBTED > usage.input_tokens
    missing = not usage.input_tokens or not usage.output_tokens
    if found.output_tokens > usage.output_tokens and (beyond or matters or missing) and plan.model.mode != IMAGES_MODE:
        changes |= {"output_tokens": found.output_tokens, "audio_output_tokens": found.audio_output_tokens}
    if plan.model.mode == IMAGES_MODE and report.pictures:
        drawn = report.pictures * plan.parsed.picture_tokens
        changes |= {
            "output_tokens": usage.output_tokens + drawn,
            "image_output_tokens": usage.image_output_tokens + drawn,
        }
    return (msgspec.structs.replace(usage, **changes), "counted") if changes else (usage, "upstream")


def with_untold_sound(usage: Usage, plan: Plan, observed: ObservedOutput) -> tuple[Usage, UsageSource]:
    """Usage with the sound that passed, and that of the file which was sent, where it says of none; and its source.

    A file's request has no more text than its prompt: the rest of what was read is sound.
    """
    card, changes = plan.model.tier(plan.tier).short, dict[str, int]()
    if card.audio_output != card.output and not usage.audio_output_tokens:
        changes["audio_output_tokens"] = min(observed.media, usage.output_tokens)
    if card.audio_input != card.input and not usage.audio_input_tokens and plan.parsed.milliseconds:
        prompt = (plan.parsed.estimated_input or 0) - plan.parsed.estimated_audio
        changes["audio_input_tokens"] = max(0, usage.input_tokens - prompt)
    changed = any(changes.values())
    return (msgspec.structs.replace(usage, **changes), "counted") if changed else (usage, "upstream")


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
        model = prices.find(name) if name else None
        if model is None or RESPONSES not in model.endpoints:
            model = plan.tools.image or plan.model
        lines.append(ModelUsage(model, "default", usage.normalised()))
    if report.pictures and plan.tools.image is not None and plan.model.mode != IMAGES_MODE:
        drawn = report.pictures * plan.parsed.picture_tokens
        told = min(counted, plan.parsed.image_tool.input_tokens if plan.parsed.image_tool else counted)
        drawing = Usage(
            input_tokens=report.pictures * told, output_tokens=drawn, image_output_tokens=drawn
        ).normalised()
        lines.append(ModelUsage(plan.tools.image, "default", drawing))
    return lines


def with_possible_tools(report: Report, plan: Plan) -> Report:
    """Report without what its hosted tools cannot have used: then what stands in its output counts.

    A call may search more than once, but not a hundred times.
    """
    if not (report.calls or report.more):
        return report
    calls = max(1, plan.tools.calls)
    if any(number > CALLS_A_TURN * calls for _, number in report.calls):
        report = report._replace(calls=report.seen_calls)
    tool = plan.parsed.image_tool
    most = TWICE * calls * (MOST_PICTURE if tool is None else tool.output_tokens)
    most_read = TWICE * calls * (MAX_TOKENS if tool is None else tool.input_tokens)
    possible = tuple(
        (name, usage) for name, usage in report.more if usage.output_tokens <= most and usage.input_tokens <= most_read
    )
    if len(possible) < len(report.more):
        report = report._replace(more=possible, pictures=report.seen_pictures)
    return report


def is_plausible(usage: Usage, model: Model, parsed: Parsed, loops: int = 1) -> bool:
    """Tell whether a model can have used that much at all: each input within its window, each output within its
    maximum, or, where it has none, within twice the most that was asked for.

    `loops` is how often hosted tools may have made it read its input again.
    """
    window = model.context_window or MAX_TOKENS
    summaries = 0
    if parsed.compact_at is not None:  # one before each turn, one behind the last, and a turn behind that
        loops, summaries = 2 * loops + 2, loops + 1
    most_each = model.max_output_tokens or model.context_window or parsed.explicit_cap or MAX_TOKENS
    most_out = most_each * (max(1, parsed.choices) * 2 + summaries)
    if usage.milliseconds > max(LONGEST_SOUND, TWICE * parsed.milliseconds):
        return False
    return usage.input_tokens <= window * parsed.inputs * loops and usage.output_tokens <= most_out
