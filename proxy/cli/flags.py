"""`tollkeeper flags`: switches that win over proxy.toml."""

from typing import Any

import msgspec

from billing.ledger.flag_overrides import FlagOverrides
from config.flags import FLAGS, flag_named, full_name, read_flag, value_of
from proxy.admin.flags import check_override, list_flags, set_override
from proxy.cli.context import Add, Context, Refusal, Result, expiry, short_text, who
from proxy.web.times import iso_time


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    flags = commands.add_parser("flags", help="Kill switches that win over proxy.toml.").add_subparsers(
        dest="verb", required=True
    )
    set_ = add(flags, "set", _flag_set, "Override a flag, everywhere within 2 s.")
    set_.add_argument("flag", help=", ".join(full_name(flag) for flag in FLAGS))
    set_.add_argument("value", help='true, false, a word, a number, or a list such as ["gpt-4o*"]')
    set_.add_argument("--expires", help="ISO 8601, or 30d, 12h, 15m; without it, until it is cleared")
    clear = add(flags, "clear", _flag_clear, "Let the file decide again.")
    clear.add_argument("flag")
    for command in (set_, clear):
        command.add_argument("--reason", required=True, type=short_text(2_000))
    add(flags, "list", _flag_list, "Every flag: what the file says, and what is in force.")


async def _flag_set(context: Context) -> Result:
    given = context.arguments
    flag = flag_named(given.flag)
    value = read_flag(flag, given.value)
    ends = expiry(given.expires)
    overrides = FlagOverrides(context.database)
    await check_override(overrides, context.settings, flag, value)
    result = await set_override(overrides, flag, value, given.reason, who(), ends)
    until = f" until {iso_time(ends)}" if ends is not None else ""
    return result, f"{full_name(flag)} = {_shown(value)}{until}, on every server within 2 s.", 0


async def _flag_clear(context: Context) -> Result:
    flag = flag_named(context.arguments.flag)
    if not await FlagOverrides(context.database).clear(flag, context.arguments.reason, who()):
        raise Refusal(f"nothing overrides {full_name(flag)}")
    value = value_of(context.settings, flag)
    result = {"flag": full_name(flag), "value": value}
    return result, f"The file decides about {full_name(flag)} again; the one read here says {_shown(value)}.", 0


async def _flag_list(context: Context) -> Result:
    data = await list_flags(FlagOverrides(context.database), context.settings)
    lines = [f"{row['flag']:24} {_shown(row['value'])}{_by(row['override'])}" for row in data]
    return {"data": data}, "\n".join(lines), 0


def _by(override: dict[str, Any] | None) -> str:
    if override is None:
        return ""
    if override["ended"]:
        return f"   (an override ended {override['expiresAt']})"
    until = f", until {override['expiresAt']}" if override["expiresAt"] else ""
    return f"   set by {override['actor']}: {override['reason']}{until}"


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
