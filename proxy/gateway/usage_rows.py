"""The rows of a request: of one that ended, and the checkpoint, which is booked if its process dies now. Pure.

A checkpoint has the bounded input and the output streamed so far, at the prices it was held by: an orphan never owes
more than its hold (I2, I3).
"""

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.holds import Checkpoint
from billing.money.pricing import Charge, PriceBook
from billing.money.usage import Value
from billing.money.usage_record import UsageRecord, encode_record
from proxy.gateway.callers.labels import NO_LABELS, Labels
from proxy.gateway.plan import Plan
from proxy.gateway.settlement import SettlementDecision
from proxy.gateway.upstream.route import Served
from proxy.web.raw_request import first_header

LONGEST_NAME = 120


class RequestFacts(Value, frozen=True):
    """Facts of a request that its rows state whatever happens.

    `held` in millicredits; `started_ms` Unix, the others elapsed milliseconds.
    """

    request_id: str
    key: ApiKey
    plan: Plan
    held: int
    started_ms: int
    first_byte_ms: int
    elapsed_ms: int
    served: Served
    labels: Labels = NO_LABELS


def _plain_text(text: str) -> str:
    """Text as every database takes it: PostgreSQL refuses a NUL, UTF-8 half a surrogate pair, and with it the batch."""
    if text.isascii() and "\0" not in text:
        return text[:LONGEST_NAME]
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:LONGEST_NAME]


def usage_record(
    facts: RequestFacts, decision: SettlementDecision, *, free: bool, head: list[tuple[bytes, bytes]]
) -> bytes:
    """Row of a request that ended; `head` are the headers of the upstream's answer."""
    plan, usage = facts.plan, decision.usage
    upstream_id = first_header(head, b"x-request-id")
    return encode_record(
        UsageRecord(
            charge_id=facts.request_id,
            account_id=facts.key.account_id,
            key_id=facts.key.key_id,
            endpoint=plan.endpoint.name,
            model=plan.parsed.model,
            billed_model=_plain_text(decision.report.model),
            created_at=facts.started_ms,
            held_millicredits=facts.held,
            cost_millicredits=decision.charge.cost,
            usage_source=decision.source,
            outcome=decision.outcome,
            rates=decision.charge.rates,
            service_tier=decision.charge.tier,
            stream=plan.parsed.stream,
            free=free,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_30m_tokens + usage.cache_write_12h_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            audio_input_tokens=usage.audio_input_tokens,
            audio_output_tokens=usage.audio_output_tokens,
            image_input_tokens=usage.image_input_tokens,
            image_output_tokens=usage.image_output_tokens + _pictures_of(decision),
            audio_milliseconds=usage.milliseconds,
            characters=usage.characters,
            web_searches=usage.web_searches,
            tool_calls=msgspec.json.encode(dict(usage.calls)).decode() if usage.calls else "",
            upstream_request_id=_plain_text(upstream_id.decode("latin-1")),
            upstream_id=_plain_text(decision.report.upstream_id),
            first_byte_ms=facts.first_byte_ms,
            duration_ms=facts.elapsed_ms,
            upstream=facts.served.upstream,
            tries=facts.served.tries,
            abandoned_millicredits=facts.served.abandoned,
            end_user=facts.labels.end_user,
            tags=facts.labels.tags,
        )
    )


def _pictures_of(decision: SettlementDecision) -> int:
    """Tokens of pictures that other models drew."""
    more = decision.report.more
    return sum([other.image_output_tokens for _, other in more]) if more else 0


def checkpoint_of(facts: RequestFacts, prices: PriceBook, output_tokens: int) -> Checkpoint:
    """Make the checkpoint of a request that has streamed so many tokens: its charge, and the row to book."""
    plan = facts.plan
    charge = checkpoint_charge(plan, prices, output_tokens)
    record = encode_record(
        UsageRecord(
            charge_id=facts.request_id,
            account_id=facts.key.account_id,
            key_id=facts.key.key_id,
            endpoint=plan.endpoint.name,
            model=plan.parsed.model,
            created_at=facts.started_ms,
            held_millicredits=facts.held,
            cost_millicredits=charge.cost,
            usage_source="bounded",
            outcome="orphaned",
            rates=charge.rates,
            service_tier=charge.tier,
            stream=plan.parsed.stream,
            input_tokens=plan.bounds.input_tokens,
            output_tokens=output_tokens,
            end_user=facts.labels.end_user,
            tags=facts.labels.tags,
            upstream=facts.served.upstream,
            tries=facts.served.tries,
            abandoned_millicredits=facts.served.abandoned,
        )
    )
    return Checkpoint(facts.request_id, facts.key.account_id, charge.amount, record)


def checkpoint_charge(plan: Plan, prices: PriceBook, output_tokens: int) -> Charge:
    """Price what an orphan of this plan owes: its input bound, and the output streamed so far."""
    bounds = plan.bounds._replace(output_tokens=min(output_tokens, plan.bounds.output_tokens))
    return prices.ceiling(plan.model, plan.tier, bounds)
