"""`tollkeeper admin` and `audit`: admin keys, and the log of what admins did."""

import argparse
import re
from pathlib import Path
from typing import Any

import msgspec

from billing.ledger.admins import LONGEST_NAME, Admins
from billing.ledger.audit_log import AuditLog, read_heads
from proxy.admin.roles import ROLES
from proxy.admin.rows import admin_row
from proxy.cli.context import Add, Context, Refusal, Result, because, expiry, short_text, table, who

HASH = re.compile(r"[0-9a-f]{64}")


def register(commands: Any, add: Add) -> None:
    """Add the groups to the parser."""
    admin = commands.add_parser("admin", help="Create, list, change, revoke admin keys.").add_subparsers(
        dest="verb", required=True
    )
    create = add(admin, "create", _admin_create, "Create an admin key. It is shown this once.")
    create.add_argument("name", type=short_text(LONGEST_NAME))
    create.add_argument("--role", required=True, choices=ROLES)
    create.add_argument("--expires", help="ISO 8601, or 30d, 12h, 15m")
    add(admin, "list", _admin_list, "List admin keys.")
    revoke = add(admin, "revoke", _admin_revoke, "Revoke an admin key, everywhere within 5 s.")
    revoke.add_argument("key")
    role = add(
        admin, "role", _admin_role, "Give an admin key another role. Whoever is signed in with it signs in anew."
    )
    role.add_argument("key")
    role.add_argument("--role", required=True, choices=ROLES)
    for command in (create, revoke, role):
        because(command)
    audit = commands.add_parser("audit", help="Verify and export the audit log.").add_subparsers(
        dest="verb", required=True
    )
    add(audit, "head", _audit_head, "Print the last row's number and hash, to be kept elsewhere.")
    verify = add(audit, "verify", _audit_verify, "Walk the hash chain; exit 1 when it is broken.")
    verify.add_argument("--head", type=_head, help="a hash that was the head once and must still be in the chain")
    verify.add_argument(
        "--heads", type=Path, help="a file of `audit head` lines (jobs.audit_head_file): all must still be in the chain"
    )
    export = add(audit, "export", _audit_export, "Every row as JSON lines.")
    export.add_argument("file", type=Path, help="where to; an existing file is not overwritten")


def _head(text: str) -> str:
    """Read a hash for argparse."""
    if not HASH.fullmatch(text):
        raise argparse.ArgumentTypeError("must be the 64 hexadecimal digits that `tollkeeper audit head` prints")
    return text


async def _admin_create(context: Context) -> Result:
    given = context.arguments
    key_id, secret = await Admins(context.database).create(
        given.name, given.role, who(), expiry(given.expires), given.reason
    )
    result = {"adminKeyId": key_id, "name": given.name, "role": given.role, "adminKey": secret}
    return result, f"Admin key {key_id} ({given.role}; shown this once): {secret}", 0


async def _admin_list(context: Context) -> Result:
    data = [admin_row(row) for row in await Admins(context.database).everyone()]
    shown = [(row["adminKeyId"], row["role"], row["state"], row["hint"], row["name"]) for row in data]
    return {"data": data}, table("key role state begins-with name", shown) or "There are no admin keys yet.", 0


async def _admin_role(context: Context) -> Result:
    given = context.arguments
    await Admins(context.database).change_role(given.key, given.role, who(), given.reason)
    return {"adminKeyId": given.key, "role": given.role}, f"{given.key} has the role {given.role} now.", 0


async def _admin_revoke(context: Context) -> Result:
    await Admins(context.database).revoke(context.arguments.key, who(), context.arguments.reason)
    return {"adminKeyId": context.arguments.key, "revoked": True}, f"{context.arguments.key} is revoked.", 0


async def _audit_head(context: Context) -> Result:
    head = await AuditLog(context.database).head()
    return {"rows": head.id, "head": head.hash}, f"{head.id} {head.hash}", 0


async def _audit_verify(context: Context) -> Result:
    given = context.arguments
    known = [given.head] if given.head else []
    if given.heads is not None:
        try:
            known += read_heads(given.heads)
        except (OSError, ValueError) as error:
            raise Refusal(f"{given.heads} cannot be read as heads of an audit log ({error})") from None
    verdict = await AuditLog(context.database).verify(known)
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
