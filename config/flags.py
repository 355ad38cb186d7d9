"""The kill switches: which settings may be overridden while running, and what that makes of the settings. Pure.

An override is one value of one key of a live section. It wins over the file and the environment.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from config.checks import check_combinations
from config.errors import ConfigError
from config.settings import Settings

FLAGS: Mapping[str, str] = {
    "purchase_enabled": "billing",
    "charging_enabled": "billing",
    "charging_disabled_mode": "billing",
    "rounding_mode": "billing",
    "model_allowlist": "billing",
    "auto_recharge": "billing",
    "percent": "rollout",
    "outside": "rollout",
}
"""Flag → its section. The last two are written `rollout.percent` and `rollout.outside`."""
DRAIN = "drain:"
"""Before the name of an upstream: the override that drains it."""


def flag_named(name: str) -> str:
    """Return the flag of that short or dotted name. Raises ConfigError."""
    section, _, short = name.rpartition(".")
    if FLAGS.get(short) != (section or "billing"):
        known = ", ".join(short if section == "billing" else f"{section}.{short}" for short, section in FLAGS.items())
        raise ConfigError("flags", name[:60], "is not a flag", f"the flags are {known}")
    return short


def full_name(flag: str) -> str:
    """Return the name to show: `rollout.percent`, but `charging_enabled`."""
    if flag.startswith(DRAIN):
        return f"upstreams.{flag.removeprefix(DRAIN)}.draining"
    section = FLAGS[flag]
    return flag if section == "billing" else f"{section}.{flag}"


def read_flag(flag: str, text: str) -> Any:
    """Read a value as typed by a person: JSON, or a bare word. Raises ConfigError."""
    try:
        value = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError):
        value = text
    return check_flag(flag, value)


def check_flag(flag: str, value: Any) -> Any:
    """Return the value, if the flag can have it. Raises ConfigError."""
    with_flags(Settings(), {flag: value})
    return value


def value_of(settings: Settings, flag: str) -> Any:
    """Return a flag's value, as JSON knows it."""
    value = getattr(getattr(settings, FLAGS[flag]), flag)
    return list(value) if isinstance(value, tuple) else value


def with_drained(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Lay overrides that drain upstreams over the settings; those that would leave nobody who serves do nothing."""
    names = {flag.removeprefix(DRAIN) for flag, value in values.items() if flag.startswith(DRAIN) and value}
    if not any(entry.name not in names and not entry.draining for entry in settings.upstreams):
        return settings
    changed = [
        msgspec.structs.replace(entry, draining=True) if entry.name in names else entry for entry in settings.upstreams
    ]
    return msgspec.structs.replace(settings, upstreams=tuple(changed))


def with_flags(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Lay overrides over the settings; the result is valid as a whole. Raises ConfigError."""
    if not values:
        return settings
    changed: dict[str, Any] = {}
    for section in sorted({FLAGS[flag] for flag in values}):
        before = getattr(settings, section)
        document = {
            **msgspec.to_builtins(before),
            **{flag: value for flag, value in values.items() if FLAGS[flag] == section},
        }
        try:
            changed[section] = msgspec.convert(document, type(before))
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `$.")
            raise ConfigError(
                "flags", f"{section}.{place.rstrip('`')}", reason, "see the comment at this key in proxy.toml"
            ) from None
    found = msgspec.structs.replace(settings, **changed)
    check_combinations(found, "flags")
    return found
