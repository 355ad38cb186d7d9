"""The lines of a batch's file: each read, bounded and priced as a live request is, at batch prices.

A line that would be refused refuses the batch, with its number. What goes upstream is written anew, line by line: with
the output caps that were held for, the tenant's own names, and nothing stored.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.catalogue.models import Model
from billing.money.pricing import PriceBook
from config.settings import Settings, UpstreamEntry
from proxy.gateway.bodies.json_body import mended, split
from proxy.gateway.bodies.parsed import NO_CONTEXT, Parsed, StoredContext
from proxy.gateway.counting.tokenizer import Tokenizer
from proxy.gateway.endpoints import METERED, Endpoint
from proxy.gateway.plan import HOSTED_TOOLS, Plan, make_plan
from proxy.gateway.settlement import counted_plan
from proxy.gateway.upstream.request_body import body_to_send
from proxy.gateway.upstream.tenants import Tenants
from proxy.web.rejections import Rejection, invalid

MOST_LINES = 50_000
"""Of one batch, by the API's reference."""
LONGEST_ID = 512
AT_ONCE = 64
"""Lines that are read in one go, beside the event loop."""
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""Endpoints whose models have batch prices."""
BATCH_TOOLS = frozenset(("file_search",))
"""Hosted tools whose calls have a price in a batch: that of a live request (docs/openai.md#batches)."""
MEMBERS = frozenset(("custom_id", "method", "url", "body"))
NEVER_KEPT = "Answers of a batch stand in its output file and nowhere else: leave `store` out, or send false."


class BatchTerms(NamedTuple):
    """Sender of a batch, the settings and prices it is planned by, the endpoint of its lines, and what runs it."""

    account_id: str
    key: ApiKey
    settings: Settings
    prices: PriceBook
    endpoint: Endpoint
    today: date = date.min
    """Models that ended before are refused; for a batch that runs already none did."""
    check_place: Callable[[Parsed, StoredContext], None] | None = None
    """Refuses a line that cannot run where its batch does; None for a batch that runs already. Raises Rejection."""
    entry: UpstreamEntry | None = None
    """Upstream that it runs at, None for one that takes whatever OpenAI does."""


class PlannedBatch(NamedTuple):
    """All lines together: the most they can cost and what they then cost us, in millicredits; and the file to send.

    `name` and `model` are the first line's; `also`: the names of the other models.
    """

    amount: int
    cost: int
    lines: int
    name: str
    model: Model
    data: bytes
    also: tuple[str, ...]


class _Line(NamedTuple):
    number: int
    custom_id: str
    parsed: Parsed


def endpoint_of(name: Any) -> Endpoint:
    """Endpoint that a batch's lines may go to. Raises Rejection."""
    if name is None:
        raise invalid("Missing required parameter: 'endpoint'.", "endpoint", "missing_required_parameter")
    if name not in ENDPOINTS:
        raise invalid(f"`endpoint` must be one of {', '.join(ENDPOINTS)}.", "endpoint")
    return METERED["POST", name.encode()]


def numbered(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without those that are blank."""
    start, number = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        if line := data[start:end].strip():
            yield number, line
        start = end + 1


async def plan_lines(
    data: bytes, terms: BatchTerms, tenants: Tenants, tokenizer: Tokenizer | None = None
) -> PlannedBatch:
    """Plan every line, in order; count their input with `tokenizer` where it is given, else bound it by bytes.

    Raises Rejection: of the first line that would be refused, with its number.
    """
    amount = cost = count = 0
    first: Plan | None = None
    ids, names = set[str](), set[str]()
    sent: list[bytes] = []
    rest = numbered(data.removeprefix(b"\xef\xbb\xbf"))
    while True:
        lines, refusal = await asyncio.to_thread(_read_some, rest, terms, ids)
        for line in lines:
            try:
                context = await _context(line.parsed, terms, tenants)
                if terms.check_place is not None:
                    terms.check_place(line.parsed, context)
                plan = plan_line(line.parsed, terms, context)
                if tokenizer is not None:
                    plan = await counted_plan(tokenizer, plan, terms.prices)
            except Rejection as rejection:
                raise _at(line.number, rejection) from None
            first = first or plan
            names.add(plan.parsed.model)
            amount, cost, count = amount + plan.ceiling.amount, cost + plan.ceiling.cost, count + 1
            sent.append(_line_to_send(line.custom_id, plan, terms, tenants))
        if refusal is not None:
            raise refusal
        if not lines:
            break
        await asyncio.sleep(0)
    if first is None:
        raise invalid("The batch's file has no lines.", "input_file_id", "empty_file")
    name = first.parsed.model
    return PlannedBatch(amount, cost, count, name, first.model, b"".join(sent), tuple(sorted(names - {name})))


def plan_line(parsed: Parsed, terms: BatchTerms, context: StoredContext = NO_CONTEXT) -> Plan:
    """Plan one line at batch prices. Raises Rejection."""
    plan = make_plan(
        terms.endpoint, parsed, terms.key, terms.prices, terms.settings, context, today=terms.today, in_batch=True
    )
    hosted = plan.parsed.tools & HOSTED_TOOLS - BATCH_TOOLS
    if hosted or plan.parsed.image_tool or plan.searches:
        name = min(hosted, default="image_generation" if plan.parsed.image_tool else "web search")
        raise invalid(f"The tool {name!r} runs at OpenAI and has no known batch price.", "tools", "unsupported_tool")
    return plan


def _read_some(
    lines: Iterator[tuple[int, bytes]], terms: BatchTerms, ids: set[str]
) -> tuple[list[_Line], Rejection | None]:
    """Read the next few lines, up to the first that is refused, and why that one is."""
    found: list[_Line] = []
    for number, line in lines:
        try:
            found.append(_read(number, line, terms, ids))
        except Rejection as rejection:
            return found, _at(number, rejection)
        if len(found) == AT_ONCE:
            break
    return found, None


def _read(number: int, line: bytes, terms: BatchTerms, ids: set[str]) -> _Line:
    try:
        members, _ = split(line)
    except Rejection:
        raise invalid("This is no JSON object.", code="invalid_json_line") from None
    if unknown := members.keys() - MEMBERS:
        raise invalid(f"Unrecognized member: {min(unknown)[:40]}.", min(unknown)[:40], "unknown_parameter")
    custom_id = _text(members, "custom_id")
    if not custom_id or len(custom_id) > LONGEST_ID:
        raise invalid(f"`custom_id` must have from 1 to {LONGEST_ID} characters.", "custom_id")
    if custom_id in ids:
        raise invalid(f"The custom_id {custom_id[:60]!r} is given twice.", "custom_id", "duplicate_custom_id")
    if len(ids) == MOST_LINES:
        raise invalid(f"A batch has at most {MOST_LINES} lines.", "input_file_id", "too_many_lines")
    ids.add(custom_id)
    if _text(members, "method") != "POST":
        raise invalid("`method` must be POST.", "method")
    if _text(members, "url") != terms.endpoint.name:
        raise invalid(f"`url` must be the batch's endpoint, {terms.endpoint.name}.", "url", "invalid_url")
    if "body" not in members:
        raise invalid("Missing required parameter: 'body'.", "body", "missing_required_parameter")
    # as white space a carriage return ends no line of ours, and inside of a text it stands escaped
    parsed = terms.endpoint.parse(bytes(members["body"]).replace(b"\r", b" "), b"application/json")
    _check(parsed)
    return _Line(number, custom_id, parsed)


def _check(parsed: Parsed) -> None:
    """Refuse what only a live request can have. Raises Rejection."""
    if parsed.stream:
        raise invalid("A line of a batch cannot be streamed: leave `stream` out.", "stream", "unsupported_parameter")
    if parsed.background:
        raise invalid("A batch is in the background already: leave it out.", "background", "unsupported_parameter")
    if parsed.store:
        raise invalid(NEVER_KEPT, "store", "unsupported_parameter")
    if parsed.conversation:
        message = "Lines of a batch run side by side and cannot share a conversation: send its items."
        raise invalid(message, "conversation", "unsupported_parameter")


def _text(members: dict[str, msgspec.Raw], name: str) -> str:
    """Member that must be a text. Raises Rejection."""
    if name not in members:
        raise invalid(f"Missing required parameter: {name!r}.", name, "missing_required_parameter")
    value = msgspec.json.decode(mended(bytes(members[name])))
    if not isinstance(value, str):
        raise invalid(f"`{name}` must be a string.", name, "invalid_type")
    return value


async def _context(parsed: Parsed, terms: BatchTerms, tenants: Tenants) -> StoredContext:
    if not parsed.references:
        return NO_CONTEXT
    return await tenants.context(terms.account_id, parsed.references, parsed.model)


def _line_to_send(custom_id: str, plan: Plan, terms: BatchTerms, tenants: Tenants) -> bytes:
    stores_nothing = msgspec.structs.replace(terms.settings.billing, allow_store=False)
    body = body_to_send(plan, stores_nothing, partial(tenants.identifier, terms.account_id), terms.entry)
    return b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n' % (
        msgspec.json.encode(custom_id),
        msgspec.json.encode(terms.endpoint.name),
        body,
    )


def _at(number: int, refused: Rejection) -> Rejection:
    """Refusal of a line as the batch's."""
    return Rejection(
        refused.status,
        refused.code,
        f"line {number}: {refused.message}",
        kind=refused.kind,
        param=refused.param,
        retry_after_ms=refused.retry_after_ms,
        extra=refused.extra,
    )
