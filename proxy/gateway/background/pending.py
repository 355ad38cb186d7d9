"""A background response as SQL keeps it while it runs: what settling it will need. Pure."""

import msgspec

from billing.money.errors import UnpricedModel
from billing.money.pricing import BookOrigin, Bounds, PriceBook
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import Plan, Tools
from proxy.gateway.services import PricingTerms
from proxy.gateway.upstream.tenants import ConversationShare
from proxy.gateway.usage_rows import RequestFacts


class PendingRecord(msgspec.Struct, frozen=True):
    """The facts that settling a background response needs, kept in SQL while it runs; no text of the request.

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
    picture_tokens: int = 0
    picture_extra: int = 0
    estimated_input: int = 0
    """Tokens of the input, counted; 0 in records of versions that did not keep it, which end by their bound."""
    conversation: str = ""
    conversation_reserved: int = 0
    conversation_seen: int = -1
    compact_at: int | None = None
    truncates: bool = False
    stream: bool = False
    """True when its events may have been read: what they showed is owed though it ends without usage."""
    insurance: bool | None = None
    """Terms it is charged by; None in records of versions that did not keep it, which end by what is in force then."""
    end_user: str = ""
    tags: str = ""


encode_pending = msgspec.json.Encoder().encode
decode_pending = msgspec.json.Decoder(PendingRecord).decode


def pending_record(
    facts: RequestFacts, terms: PricingTerms, counted: int, share: ConversationShare | None = None
) -> str:
    """Facts of a request that goes on in the background, as JSON.

    `counted`: tokens of its input; `share`: what it reserved in its conversation; `terms` are what it is
    charged by when it ends.
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
            picture_tokens=plan.parsed.picture_tokens,
            picture_extra=plan.parsed.picture_extra,
            estimated_input=counted,
            conversation=share.conversation if share is not None else "",
            conversation_reserved=share.reserved if share is not None else 0,
            conversation_seen=share.seen if share is not None else -1,
            book=terms.prices.origin,
            insurance=terms.insurance,
            compact_at=plan.parsed.compact_at,
            end_user=facts.labels.end_user,
            tags=facts.labels.tags,
            truncates=plan.parsed.truncates,
            stream=plan.parsed.stream,
        )
    ).decode()


def pending_plan(record: PendingRecord, prices: PriceBook) -> Plan:
    """Plan of a background response again, for settling it.

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
        picture_tokens=record.picture_tokens,
        picture_extra=record.picture_extra,
        estimated_input=record.estimated_input or None,
        compact_at=record.compact_at,
        truncates=record.truncates,
    )
    image = prices.find(record.image_model) if record.image_model else None
    tools = Tools(calls=record.calls, search=record.search, image=image)
    ceiling = prices.ceiling(model, record.tier, bounds)
    return Plan(
        endpoint, parsed, model, record.tier, record.cap, False, 0, bounds, ceiling, tools, record.context, keeps=True
    )
