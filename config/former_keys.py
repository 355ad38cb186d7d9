"""Keys that proxy.toml once had: refused with a sentence that says where they went, never ignored. Pure.

An operator who upgrades meets all of theirs at once, a line each.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from config.errors import ConfigError
from config.settings import variable_of

MOVED: Mapping[str, str] = {
    "billing.min_output_tokens": "holds.min_output_tokens",
    "billing.default_max_output_tokens": "holds.default_max_output_tokens",
    "billing.realtime_max_output_tokens": "holds.realtime_max_output_tokens",
    "billing.max_tool_calls": "holds.max_tool_calls",
    "billing.on_disconnect": "metering.on_disconnect",
    "billing.drain_seconds": "metering.read_on_seconds",
    "billing.drain_output_tokens": "metering.read_on_output_tokens",
    "billing.zero_completion_insurance": "metering.zero_completion_insurance",
    "billing.top_up_url": "purchases.top_up_url",
    "billing.auto_recharge_monthly_usd": "purchases.auto_recharge_monthly_usd",
    "billing.hold_lease_seconds": "advanced.hold_lease_seconds",
    "embedded.timeout_seconds": "advanced.embedded_timeout_seconds",
    "journal.flush_interval_ms": "advanced.journal_flush_interval_ms",
    "stripe.same_checkout_seconds": "advanced.same_checkout_seconds",
    "stripe.max_webhook_bytes": "advanced.max_webhook_bytes",
    "stripe.sweep_minutes": "advanced.sweep_minutes",
    "jobs.finance_seconds": "advanced.finance_seconds",
    "jobs.openai_costs_url": "advanced.openai_costs_url",
}
"""Former key → today's, with the same meaning and default."""

NEW_VALUES: Mapping[str, str] = {"billing.on_disconnect": 'where "drain" is called "read_on"'}
"""Moved keys of which a value has another name as well."""

FIXED: Mapping[str, str] = {
    "upstream.connect_timeout_seconds": "connecting to OpenAI always may take 5 s",
    "upstream.keepalive_seconds": "idle connections to OpenAI always are used again for 30 s",
    "upstream.max_response_bytes": "an answer that is not streamed always may have 256 MiB",
    "journal.batch_size": "always 500 charges are written in one transaction",
    "stripe.timeout_seconds": "a call to Stripe always may take 10 s",
    "stripe.signature_tolerance_seconds": "a webhook's time always may be off by 300 s",
    "notices.timeout_seconds": "a delivery always may take 5 s",
    "notices.max_attempts": "a notice always is tried 12 times",
    "admin.jwks_cache_seconds": "an issuer's keys always are kept for 300 s",
}
"""Former key → its value, now a constant beside its use."""


class FormerKey(NamedTuple):
    """A former key that a file still has: what became of it, and what to do."""

    key: str
    reason: str
    fix: str


def take_former_keys(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[FormerKey]]:
    """Return the document without its former keys, and those."""
    found = []
    rest = dict(document)
    for section, table in document.items():
        if isinstance(table, dict):
            former = [name for name in table if f"{section}.{name}" in MOVED or f"{section}.{name}" in FIXED]
            rest[section] = {name: value for name, value in table.items() if name not in former}
            for key in (f"{section}.{name}" for name in former):
                fix = f"write it as {_key_of(MOVED[key])}" if key in MOVED else "remove it"
                found.append(FormerKey(key, _sentence(key), fix))
    return rest, found


def former_variables(names: Iterable[str]) -> list[ConfigError]:
    """Return the complaints about variables of former keys."""
    former = {variable_of(key): key for key in (*MOVED, *FIXED)}
    problems = []
    for name in sorted(names):
        if key := former.get(name):
            fix = f"set {variable_of(MOVED[key])} instead" if key in MOVED else "unset it"
            problems.append(ConfigError("environment", name, f"{key} {_sentence(key)}", fix))
    return problems


def _sentence(key: str) -> str:
    if key in FIXED:
        return f"is no longer a setting: {FIXED[key]}"
    return f"is now {MOVED[key]}" + (f", {NEW_VALUES[key]}" if key in NEW_VALUES else "")


def _key_of(key: str) -> str:
    section, _, name = key.partition(".")
    return f"{name} under [{section}]"
