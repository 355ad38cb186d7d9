"""The body that goes upstream: the client's own, byte for byte, with what we must set. Sans I/O."""

from collections.abc import Callable

import msgspec

from config.settings import Billing
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.plan import Plan

RESPONSE_CAP = "max_output_tokens"
TIER_JSON = {"default": b'"default"', "flex": b'"flex"', "priority": b'"priority"', "ultrafast": b'"ultrafast"'}


def body_to_send(plan: Plan, billing: Billing, identifier: Callable[[bytes], str]) -> bytes:
    """Client's body with what we must set: usage reporting, an explicit tier, our cap below the model's own, no
    storing.

    `identifier` makes this tenant's own name out of one that the client gave.
    """
    parsed, changes = plan.parsed, dict(plan.parsed.sets)
    for name, value in parsed.tenant_values.items():
        changes[name] = msgspec.json.encode(identifier(value)) if parsed.form is None else identifier(value).encode()
    if plan.endpoint.tiered and parsed.asked_tier not in (plan.tier, _wire_alias(plan.tier)):
        changes["service_tier"] = TIER_JSON[plan.tier]
    if parsed.stream and not parsed.wants_usage:
        changes["stream_options"] = b'{"include_usage":true' + parsed.keeps_stream_options + b"}"
    if plan.endpoint.stores and not billing.allow_store and parsed.store is None:
        changes["store"] = b"false"
    if plan.tools.calls and parsed.max_calls is None and parsed.cap_field == RESPONSE_CAP:
        changes["max_tool_calls"] = str(plan.tools.calls).encode()
    most = plan.model.max_output_tokens
    if plan.cap_is_ours and parsed.cap_field and (most is None or plan.cap < most):
        changes[parsed.cap_field] = str(plan.cap).encode()
    if not changes:
        return parsed.source
    return parsed.form.with_fields(changes) if parsed.form is not None else with_members(parsed, changes)


def _wire_alias(tier: str) -> str:
    return "fast" if tier == "priority" else tier


def with_members(parsed: Parsed, changes: dict[str, bytes]) -> bytes:
    """Body to send: the client's bytes with `changes` (name → JSON) set."""
    if not changes:
        return parsed.source
    if parsed.verbatim and not (changes.keys() & parsed.members.keys()):
        start = parsed.source.index(b"{") + 1
        added = b",".join(b'"%s":%s' % (name.encode(), value) for name, value in changes.items())
        return b"".join((parsed.source[:start], added, b",", parsed.source[start:]))
    merged: dict[str, bytes] = {name: bytes(raw) for name, raw in parsed.members.items()} | changes
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + value for name, value in merged.items()) + b"}"
