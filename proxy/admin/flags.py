"""Switches overridden by hand: listing and setting them, for the admin API, the ops page and the command line."""

from typing import Any

from billing.ledger.audit_log import Who
from billing.ledger.flag_overrides import FlagOverride, FlagOverrides, in_force
from billing.storage.database import now_ms
from config.flags import FLAGS, check_flag, full_name, value_of, with_flags
from config.settings import Settings
from proxy.web.times import iso_time


async def list_flags(overrides: FlagOverrides, file: Settings) -> list[dict[str, Any]]:
    """Every flag: the file's value, the one in force, and its override. Raises StoreUnavailable."""
    rows = {row.flag: row for row in await overrides.all()}
    return [_flag_row(flag, value_of(file, flag), rows.get(flag)) for flag in FLAGS]


def _flag_row(flag: str, file: Any, override: FlagOverride | None) -> dict[str, Any]:
    if override is None:
        return {"flag": full_name(flag), "file": file, "value": file, "override": None}
    ended = override.ended(now_ms())
    return {
        "flag": full_name(flag),
        "file": file,
        "value": file if ended else override.value,
        "override": {
            "value": override.value,
            "reason": override.reason,
            "actor": override.actor,
            "createdAt": iso_time(override.created_at),
            "expiresAt": iso_time(override.expires_at) if override.expires_at is not None else None,
            "ended": ended,
        },
    }


async def check_override(overrides: FlagOverrides, file: Settings, flag: str, value: Any) -> None:
    """Raise ConfigError for a value that the flag cannot have, or that does not fit the file and other overrides."""
    check_flag(flag, value)
    known = in_force(await overrides.all(), now_ms())
    others = {name: other for name, other in known.items() if name != flag and name in FLAGS}
    with_flags(file, {**others, flag: value})


async def set_override(
    overrides: FlagOverrides, flag: str, value: Any, reason: str, who: Who, expires_at: int | None
) -> dict[str, Any]:
    """FlagOverride a flag by a checked value. Raises StoreUnavailable."""
    await overrides.set(flag, value, reason, who, expires_at)
    ends = iso_time(expires_at) if expires_at is not None else None
    return {"flag": full_name(flag), "value": value, "expiresAt": ends}
