"""The body that goes upstream: the client's own, byte for byte, with what we must set. Sans I/O."""

from collections.abc import Callable

import msgspec

from config.settings import Billing, UpstreamEntry
from config.upstreams import keeps_objects, takes_tier, takes_usage_option
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.plan import BATCH, Plan

NOTHING: frozenset[str] = frozenset()
OPENAIS_OWN = ("prompt_cache_key", "safety_identifier")
"""Members that change no answer, and that a server of open models may refuse as unknown."""
RESPONSE_CAP = "max_output_tokens"
TIER_JSON = {"default": b'"default"', "flex": b'"flex"', "priority": b'"priority"', "ultrafast": b'"ultrafast"'}


def body_to_send(
    plan: Plan, billing: Billing, identifier: Callable[[bytes], str], entry: UpstreamEntry | None = None
) -> bytes:
    """Client's body with what we must set: usage reporting, an explicit tier, our cap below the model's own, no
    storing.

    `identifier` makes this tenant's own name out of one that the client gave; `entry`: the upstream that it is for,
    None for one that takes whatever OpenAI does.
    """
    parsed, changes = plan.parsed, _ours(plan, billing, identifier)
    dropped = _for_dialect(plan, entry, changes) if entry is not None else NOTHING
    if not changes and not dropped:
        return parsed.source
    if parsed.form is not None:
        return parsed.form.with_fields(changes)
    return with_members(parsed, changes, dropped)


def _for_dialect(plan: Plan, entry: UpstreamEntry, changes: dict[str, bytes]) -> frozenset[str]:
    """Change `changes` for an upstream that is not as OpenAI is; return the members that it does not take."""
    parsed, dropped = plan.parsed, set[str]()
    if not takes_tier(entry):
        dropped.add("service_tier")
    if not takes_usage_option(entry):
        dropped.add("stream_options")
    if not keeps_objects(entry):  # who wants something stored is not sent there
        dropped.add("store")
    if entry.dialect == "generic":
        dropped.update(OPENAIS_OWN)
    deployment = entry.deployments.get(parsed.model)
    if deployment is not None:
        changes["model"] = msgspec.json.encode(deployment) if parsed.form is None else deployment.encode()
    for name in dropped:
        changes.pop(name, None)
    return frozenset(dropped & parsed.members.keys())


def _ours(plan: Plan, billing: Billing, identifier: Callable[[bytes], str]) -> dict[str, bytes]:
    """Members that we set, as JSON; as text where the body is a form."""
    parsed, changes = plan.parsed, dict(plan.parsed.sets)
    for name, value in parsed.tenant_values.items():
        changes[name] = msgspec.json.encode(identifier(value)) if parsed.form is None else identifier(value).encode()
    if plan.endpoint.tiered and plan.tier != BATCH and parsed.asked_tier not in (plan.tier, _wire_alias(plan.tier)):
        changes["service_tier"] = TIER_JSON[plan.tier]
    if parsed.stream and not parsed.wants_usage:
        changes["stream_options"] = b'{"include_usage":true' + parsed.keeps_stream_options + b"}"
    if plan.endpoint.stores and parsed.store is None and not (billing.allow_store and plan.keeps):
        changes["store"] = b"false"
    if plan.tools.calls and parsed.max_calls is None and parsed.cap_field == RESPONSE_CAP:
        changes["max_tool_calls"] = str(plan.tools.calls).encode()
    most = plan.model.max_output_tokens
    if plan.cap_is_ours and parsed.cap_field and (most is None or plan.cap < most):
        changes[parsed.cap_field] = str(plan.cap).encode()
    return changes


def _wire_alias(tier: str) -> str:
    return "fast" if tier == "priority" else tier


def with_members(parsed: Parsed, changes: dict[str, bytes], dropped: frozenset[str] = NOTHING) -> bytes:
    """Body to send: the client's bytes with `changes` (name → JSON) set, and without what is `dropped`."""
    if not changes and not dropped:
        return parsed.source
    if parsed.verbatim and not dropped and not (changes.keys() & parsed.members.keys()):
        start = parsed.source.index(b"{") + 1
        added = b",".join(b'"%s":%s' % (name.encode(), value) for name, value in changes.items())
        # the rest may be megabytes: it is copied once
        return b"".join((parsed.source[:start], added, b",", memoryview(parsed.source)[start:]))
    merged: dict[str, bytes] = {name: bytes(raw) for name, raw in parsed.members.items()} | changes
    merged = {name: value for name, value in merged.items() if name not in dropped}
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + value for name, value in merged.items()) + b"}"
