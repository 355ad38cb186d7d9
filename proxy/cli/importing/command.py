"""`tollkeeper import`: accounts, keys and balances of another gateway, from a CSV."""

from pathlib import Path
from typing import Any

from billing.ledger.imports import import_customers, imported_id
from config.errors import ConfigError
from proxy.cli.context import Add, Context, Refusal, Result, actor, in_credits, short_text, who
from proxy.cli.importing.rows import BadRows, read_customers

MOST_BYTES = 67_108_864


def register(commands: Any, add: Add) -> None:
    """Add the command to the parser."""
    load = add(commands, "import", _import, "Take over accounts, keys and balances of another gateway, from a CSV.")
    load.add_argument("file", type=Path, help="the CSV: account,name,key or key_sha256,credits or usd (docs/import.md)")
    load.add_argument("--dry-run", action="store_true", help="say what it would do, and do nothing")
    load.add_argument("--reason", default="imported", type=short_text(2_000), help="for the ledger and the audit log")


async def _import(context: Context) -> Result:
    given = context.arguments
    try:
        customers = read_customers(_text(given.file).splitlines(keepends=True))
    except BadRows as error:
        raise Refusal(f"{given.file}: nothing was imported.\n{error}") from None
    found = await import_customers(context.database, customers, actor(), given.reason, who(), dry_run=given.dry_run)
    result = {
        "dryRun": given.dry_run,
        "rows": len(customers),
        "newAccounts": found.accounts,
        "newKeys": found.keys,
        "newBalances": found.balances,
        "grantedMillicredits": str(found.millicredits),
        "accounts": [{"account": one.account, "accountId": imported_id(one.account)} for one in customers],
    }
    parts = f"{found.accounts} accounts, {found.keys} keys, {found.balances} balances"
    verb = "Would import" if given.dry_run else "Imported"
    text = f"{verb} {parts} ({in_credits(found.millicredits)} credits); the file has {len(customers)} accounts."
    return result, text, 0


def _text(path: Path) -> str:
    """Return the file's text. Raises ConfigError."""
    try:
        raw = path.read_bytes()
        if len(raw) > MOST_BYTES:
            raise ConfigError(str(path), "import", f"is larger than {MOST_BYTES} bytes", "split it")
        return raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "import", f"cannot be read ({type(error).__name__})", "name a UTF-8 CSV") from None
