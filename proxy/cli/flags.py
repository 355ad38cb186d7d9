"""`tollkeeper flags`: switches that win over proxy.toml."""

from typing import Any, NamedTuple

import msgspec

from billing.ledger.accounts import Accounts
from billing.ledger.flag_overrides import FlagOverrides, in_force
from billing.storage.database import now_ms
from config.flags import FLAGS, flag_named, full_name, read_flag, value_of, with_flags
from config.rollout import is_in
from proxy.admin.flags import check_override, list_flags, set_override
from proxy.cli.context import Add, Context, Refusal, Result, expiry, short_text, table, who
from proxy.web.times import iso_time

SHARE = "rollout.percent"


class _NewlyMetered(NamedTuple):
    accounts: int
    without_credits: int


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    flags = commands.add_parser("flags", help="Kill switches that win over proxy.toml.").add_subparsers(
        dest="verb", required=True
    )
    set_ = add(flags, "set", _flag_set, "Override a flag, everywhere within 2 s.")
    set_.add_argument("flag", help=", ".join(full_name(flag) for flag in FLAGS))
    set_.add_argument("value", help='true, false, a word, a number, or a list such as ["gpt-6*"]')
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
    metered = await _newly_metered(context, overrides, value) if full_name(flag) == SHARE else None
    result = await set_override(overrides, flag, value, given.reason, who(), ends)
    until = f" until {iso_time(ends)}" if ends is not None else ""
    said = f"{full_name(flag)} = {_shown(value)}{until}, on every server within 2 s."
    if metered is not None:
        result |= {"newlyMetered": metered.accounts, "newlyMeteredWithoutCredits": metered.without_credits}
        said += f"\nNewly metered: {metered.accounts} accounts"
        said += f", {metered.without_credits} of them without credits: they get a 402." if metered.accounts else "."
    return result, said, 0


async def _newly_metered(context: Context, overrides: FlagOverrides, percent: int) -> _NewlyMetered:
    """Count the active accounts that a share of the rollout meters and the one in force does not."""
    known = {flag: value for flag, value in in_force(await overrides.all(), now_ms()).items() if flag in FLAGS}
    before = with_flags(context.settings, known).rollout
    after = msgspec.structs.replace(before, percent=percent)
    rows = [row for row in await Accounts(context.database).everyone() if row.status == "active"]
    entering = [row for row in rows if is_in(after, row.id) and not is_in(before, row.id)]
    return _NewlyMetered(len(entering), sum(row.posted_millicredits <= 0 for row in entering))


async def _flag_clear(context: Context) -> Result:
    flag = flag_named(context.arguments.flag)
    if not await FlagOverrides(context.database).clear(flag, context.arguments.reason, who()):
        raise Refusal(f"nothing overrides {full_name(flag)}")
    value = value_of(context.settings, flag)
    result = {"flag": full_name(flag), "value": value}
    return result, f"The file decides about {full_name(flag)} again; the one read here says {_shown(value)}.", 0


async def _flag_list(context: Context) -> Result:
    data = await list_flags(FlagOverrides(context.database), context.settings)
    shown = [(row["flag"], _shown(row["value"]), _by(row["override"])) for row in data]
    return {"data": data}, table("flag value set-by", shown), 0


def _by(override: dict[str, Any] | None) -> str:
    if override is None:
        return "the file"
    if override["ended"]:
        return f"the file (an override ended {override['expiresAt']})"
    until = f", until {override['expiresAt']}" if override["expiresAt"] else ""
    return f"{override['actor']}: {override['reason']}{until}"


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
