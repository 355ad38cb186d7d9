"""The usage rows of a request: the one to book when it ends, and the one to book if its process dies. Pure."""

from typing import NamedTuple

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.errors import UnpricedModel
from billing.money.pricing import BookOrigin, Bounds, Charge, PriceBook
from billing.money.usage_record import UsageRecord, encode_record
from proxy.gateway.bodies.chat import Parsed
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import Plan, Tools
from proxy.gateway.settlement import Ending, Terms

LONGEST_NAME = 120


class PendingRecord(msgspec.Struct, frozen=True):
    """What settling a background response needs, kept in SQL while it runs; no text of the request.

    Amounts in millicredits.
    """

    key_id: str
    endpoint: str
    model: str
    tier: str
    held: int
    started_ms: int
    cap: int
    input_tokens: int
    output_tokens: int
    cache_write_12h: bool
    search: str
    calls: int
    image_model: str
    context: int | None
    book: BookOrigin | None = None
    insurance: bool | None = None
    """What it is charged by; None in records of versions that did not keep it, which end by what is in force then."""


encode_pending = msgspec.json.Encoder().encode
decode_pending = msgspec.json.Decoder(PendingRecord).decode


class Facts(NamedTuple):
    """What a request's rows say of it whatever happens.

    `held` in millicredits; `started_ms` Unix, the others elapsed milliseconds.
    """

    request_id: str
    key: ApiKey
    plan: Plan
    held: int
    started_ms: int
    first_byte_ms: int
    elapsed_ms: int


def _plain(text: str) -> str:
    """Text as every database takes it: PostgreSQL refuses a NUL, and with it the whole batch."""
    return text.replace("\0", "")[:LONGEST_NAME]


def orphan_record(facts: Facts, charge: Charge, tokens_out: int) -> bytes:
    """The row to book if this process dies: the input bound and the output shown so far."""
    plan = facts.plan
    return encode_record(
        UsageRecord(
            charge_id=facts.request_id,
            account_id=facts.key.account_id,
            key_id=facts.key.key_id,
            endpoint=plan.endpoint.name,
            model=_plain(plan.parsed.model),
            created_at=facts.started_ms,
            held_millicredits=facts.held,
            cost_millicredits=charge.cost,
            usage_source="bounded",
            outcome="orphaned",
            rates=charge.rates,
            service_tier=charge.tier,
            stream=plan.parsed.stream,
            input_tokens=plan.bounds.input_tokens,
            output_tokens=tokens_out,
        )
    )


def usage_record(facts: Facts, ending: Ending, *, free: bool, head: list[tuple[bytes, bytes]]) -> bytes:
    """The row of a request that ended; `head` are the headers of the upstream's answer."""
    plan, usage = facts.plan, ending.usage
    upstream_id = next((value for name, value in head if name == b"x-request-id"), b"")
    return encode_record(
        UsageRecord(
            charge_id=facts.request_id,
            account_id=facts.key.account_id,
            key_id=facts.key.key_id,
            endpoint=plan.endpoint.name,
            model=_plain(plan.parsed.model),
            billed_model=_plain(ending.report.model),
            created_at=facts.started_ms,
            held_millicredits=facts.held,
            cost_millicredits=ending.charge.cost,
            usage_source=ending.source,
            outcome=ending.outcome,
            rates=ending.charge.rates,
            service_tier=ending.charge.tier,
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
            image_output_tokens=usage.image_output_tokens
            + sum(other.image_output_tokens for _, other in ending.report.more),
            audio_milliseconds=usage.milliseconds,
            characters=usage.characters,
            web_searches=usage.web_searches,
            tool_calls=msgspec.json.encode(dict(usage.calls)).decode() if usage.calls else "",
            upstream_request_id=_plain(upstream_id.decode("latin-1")),
            upstream_id=_plain(ending.report.upstream_id),
            first_byte_ms=facts.first_byte_ms,
            duration_ms=facts.elapsed_ms,
        )
    )


def pending_record(facts: Facts, terms: Terms) -> str:
    """The facts of a request that goes on in the background, as JSON.

    `terms` are what it is charged by when it ends.
    """
    plan = facts.plan
    return encode_pending(
        PendingRecord(
            key_id=facts.key.key_id,
            endpoint=plan.endpoint.name,
            model=plan.parsed.model,
            tier=plan.tier,
            held=facts.held,
            started_ms=facts.started_ms,
            cap=plan.cap,
            input_tokens=plan.bounds.input_tokens,
            output_tokens=plan.bounds.output_tokens,
            cache_write_12h=plan.parsed.cache_write_12h,
            search=plan.tools.search,
            calls=plan.tools.calls,
            image_model=plan.tools.image.name if plan.tools.image is not None else "",
            context=plan.context,
            book=terms.prices.origin,
            insurance=terms.insurance,
        )
    ).decode()


def pending_plan(record: PendingRecord, prices: PriceBook) -> Plan:
    """The plan of a background response again, for settling it.

    Raises UnpricedModel when its model is no longer sold.
    """
    model = prices.find(record.model)
    endpoint = METERED["POST", record.endpoint.encode()]
    if model is None:
        raise UnpricedModel(record.model, "has no price any more.")
    bounds = Bounds(record.input_tokens, record.output_tokens, cache_write_12h=record.cache_write_12h)
    parsed = Parsed(
        model=record.model,
        source=b"",
        cache_write_12h=record.cache_write_12h,
        background=True,
        unbounded=True,
        explicit_cap=record.cap,
    )
    image = prices.find(record.image_model) if record.image_model else None
    tools = Tools(calls=record.calls, search=record.search, image=image)
    ceiling = prices.ceiling(model, record.tier, bounds)
    return Plan(
        endpoint, parsed, model, record.tier, record.cap, False, 0, bounds, ceiling, tools, record.context, keeps=True
    )
