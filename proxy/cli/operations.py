"""`tollkeeper flags`, `admin`, `audit`: switches, people, and what they did."""

from pathlib import Path
from typing import Any

import msgspec

from billing.ledger.admins import LONGEST_NAME, Admins
from billing.ledger.audit_log import AuditLog
from billing.ledger.flag_overrides import FlagOverrides, in_force
from billing.storage.database import now_ms
from config.flags import FLAGS, flag_named, full_name, read_flag, value_of, with_flags
from proxy.admin.ops_formatting import admin_row
from proxy.admin.roles import ROLES
from proxy.cli.context import Add, Context, Refusal, Result, because, expiry, short_text, who
from proxy.web.times import iso_time


def register(commands: Any, add: Add) -> None:
    """Add the groups to the parser."""
    _register_flags(commands, add)
    admin = commands.add_parser("admin", help="Create, list, revoke admin keys.").add_subparsers(
        dest="verb", required=True
    )
    create = add(admin, "create", _admin_create, "Create an admin key. It is shown this once.")
    create.add_argument("name", type=short_text(LONGEST_NAME))
    create.add_argument("--role", required=True, choices=ROLES)
    create.add_argument("--expires", help="ISO 8601, or 30d, 12h, 15m")
    add(admin, "list", _admin_list, "List admin keys.")
    revoke = add(admin, "revoke", _admin_revoke, "Revoke an admin key, everywhere within 5 s.")
    revoke.add_argument("key")
    for command in (create, revoke):
        because(command)
    audit = commands.add_parser("audit", help="Verify and export the audit log.").add_subparsers(
        dest="verb", required=True
    )
    verify = add(audit, "verify", _audit_verify, "Walk the hash chain; exit 1 when it is broken.")
    verify.add_argument("--head", default="", help="a hash that was the head once and must still be in the chain")
    export = add(audit, "export", _audit_export, "Every row as JSON lines.")
    export.add_argument("file", type=Path, help="where to; an existing file is not overwritten")


def _register_flags(commands: Any, add: Add) -> None:
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
    others = {name: other for name, other in in_force(await overrides.all(), now_ms()).items() if name != flag}
    with_flags(context.settings, {**others, flag: value})
    await overrides.set(flag, value, given.reason, who(), ends)
    until = f" until {iso_time(ends)}" if ends is not None else ""
    result = {"flag": full_name(flag), "value": value, "expiresAt": iso_time(ends) if ends is not None else None}
    return result, f"{full_name(flag)} = {_shown(value)}{until}, on every server within 2 s.", 0


async def _flag_clear(context: Context) -> Result:
    flag = flag_named(context.arguments.flag)
    if not await FlagOverrides(context.database).clear(flag, context.arguments.reason, who()):
        raise Refusal(f"nothing overrides {full_name(flag)}")
    value = value_of(context.settings, flag)
    result = {"flag": full_name(flag), "value": value}
    return result, f"The file decides about {full_name(flag)} again; the one read here says {_shown(value)}.", 0


async def _flag_list(context: Context) -> Result:
    rows = {row.flag: row for row in await FlagOverrides(context.database).all()}
    data = []
    for flag in FLAGS:
        file, row = value_of(context.settings, flag), rows.get(flag)
        rules = row is not None and not row.ended(now_ms())
        shown: dict[str, Any] = {
            "flag": full_name(flag),
            "file": file,
            "value": row.value if row and rules else file,
            "override": None,
        }
        if row is not None:
            shown["override"] = {
                "value": row.value,
                "reason": row.reason,
                "actor": row.actor,
                "createdAt": iso_time(row.created_at),
                "expiresAt": iso_time(row.expires_at) if row.expires_at is not None else None,
                "ended": not rules,
            }
        data.append(shown)
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


async def _admin_create(context: Context) -> Result:
    given = context.arguments
    key_id, secret = await Admins(context.database).create(
        given.name, given.role, who(), expiry(given.expires), given.reason
    )
    result = {"adminKeyId": key_id, "name": given.name, "role": given.role, "adminKey": secret}
    return result, f"Admin key {key_id} ({given.role}; shown this once): {secret}", 0


async def _admin_list(context: Context) -> Result:
    data = [admin_row(row) for row in await Admins(context.database).everyone()]
    lines = [f"{row['adminKeyId']}  {row['role']:8} {row['state']:8} {row['hint']}  {row['name']}" for row in data]
    return {"data": data}, "\n".join(lines) or "There are no admin keys yet.", 0


async def _admin_revoke(context: Context) -> Result:
    await Admins(context.database).revoke(context.arguments.key, who(), context.arguments.reason)
    return {"adminKeyId": context.arguments.key, "revoked": True}, f"{context.arguments.key} is revoked.", 0


async def _audit_verify(context: Context) -> Result:
    verdict = await AuditLog(context.database).verify(context.arguments.head)
    result = {"ok": not verdict.problem, "rows": verdict.rows, "head": verdict.head.hash, "problem": verdict.problem}
    if verdict.problem:
        return result, f"The audit log is BROKEN after {verdict.rows} good rows: {verdict.problem}", 1
    return result, f"{verdict.rows} rows, all in their chain. Head: {verdict.head.hash} (keep it elsewhere)", 0


async def _audit_export(context: Context) -> Result:
    path: Path = context.arguments.file
    number = 0
    try:
        with path.open("xb") as file:
            async for row in AuditLog(context.database).rows():
                file.write(msgspec.json.encode(row._asdict()) + b"\n")
                number += 1
    except OSError as error:
        raise Refusal(f"{path} cannot be written ({error.strerror})") from None
    return {"file": str(path), "rows": number}, f"Wrote {number} rows to {path}.", 0
