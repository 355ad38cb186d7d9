"""The `tollkeeper` command. One JSON object on stdout with --json, text for people otherwise.

Exit codes: 0 ok, 1 a finding or a refusal, 2 usage or configuration, 3 a check could not be made.
"""

import argparse
import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from billing.ledger.accounts import Accounts
from billing.ledger.ledger import Ledger
from billing.money.amounts import MoneyError
from billing.money.errors import AccountNotFound, BillingError, KeyNotFound, StoreUnavailable
from billing.storage.database import Database
from config.errors import ConfigError
from config.load import load_settings
from config.settings import Settings
from proxy.cli import accounts, admin, balances, books, flags, jobs, purchases, rates, serve, stripe
from proxy.cli.context import Command, Context, Refusal, Result, open_database
from proxy.cli.preflight import command as preflight
from proxy.cli.smoke import command as smoke
from proxy.server.startup_checks import prepare_database

DEFAULT_CONFIG = "proxy.toml"
SWITCHES_ELSEWHERE = "The service goes on with the last good edit of the file: meanwhile switches are set at /admin."
BEGINNINGS = {("account", "create"), ("admin", "create"), ("rates", "import"), ("flags", "set")}
"""Commands that begin an empty database; all others work on one that is there, and in a wrong folder there is none."""


def main(argv: list[str] | None = None) -> int:
    """Carry out a command; return its exit code."""
    parser, words = _parser(), sys.argv[1:] if argv is None else argv
    if any(word.encode("utf-8", "replace").decode() != word for word in words):
        parser.error("an argument is not UTF-8 text")  # which no database would take
    arguments = parser.parse_args(words)
    try:
        path = _config_path(arguments)
        settings = load_settings(path)
        if arguments.command == "serve":
            return serve.serve(settings, path)
        result, text, code = asyncio.run(_run(arguments, settings))
    except ConfigError as error:
        if arguments.command != "preflight":
            return _fail(arguments, error)
        result, text, code = preflight.broken_config(error)
    except (BillingError, MoneyError, Refusal) as error:
        return _fail(arguments, error)
    except KeyboardInterrupt:
        return 130
    print(msgspec.json.encode(result).decode() if arguments.json else text)
    return code


def _fail(arguments: argparse.Namespace, error: Exception) -> int:
    """Print why a command was not carried out; return its exit code."""
    message, code = _explain(arguments.command, error)
    if getattr(arguments, "json", False):
        print(msgspec.json.encode({"error": message}).decode())
    print(f"tollkeeper: {message}", file=sys.stderr)
    return code


def _explain(command: str, error: Exception) -> tuple[str, int]:
    """Message and exit code of an error."""
    match error:
        case ConfigError():
            return f"{error}. {SWITCHES_ELSEWHERE}" if command == "flags" else str(error), 2
        case AccountNotFound():
            return f"There is no such account (or it is revoked already): {error}", 1
        case KeyNotFound():
            return f"There is no such API key (or it is revoked already): {error}", 1
        case StoreUnavailable():
            return str(error), 3 if command in jobs.COMMANDS else 1
        case MoneyError():
            return str(error), 2
        case _:
            return str(error), 1


def _config_path(arguments: argparse.Namespace) -> Path | None:
    named = arguments.config or os.environ.get("TOLLKEEPER_CONFIG")
    if named:
        return Path(named)
    return Path(DEFAULT_CONFIG) if Path(DEFAULT_CONFIG).exists() else None


def _require_ledger(arguments: argparse.Namespace, database: Database) -> None:
    """Raise Refusal rather than show an empty ledger, made just now, to someone in a wrong folder."""
    path = Path(database.url.database or "")
    if (
        database.is_sqlite
        and not path.exists()
        and (arguments.command, getattr(arguments, "verb", "")) not in BEGINNINGS
    ):
        raise Refusal(
            f"there is no ledger at {path.absolute()}: run this where the server's proxy.toml is (or name it with "
            "--config); `tollkeeper account create` or `tollkeeper migrate` begin a new one"
        )


async def _run(arguments: argparse.Namespace, settings: Settings) -> Result:
    command: Command = arguments.run
    async with open_database(settings) as database:
        if arguments.command not in ("migrate", "check-config", "preflight"):
            _require_ledger(arguments, database)
            await prepare_database(database)
        return await command(Context(settings, database, Ledger(database), Accounts(database), arguments))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", help="the configuration file (default: proxy.toml here, else built-in defaults)")
    common.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser = argparse.ArgumentParser(prog="tollkeeper", description="A prepaid meter in front of the OpenAI API.")
    parser.add_argument("--version", action="version", version=f"tollkeeper {version('tollkeeper')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(group: Any, name: str, run: Command | None, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(run=run)
        return made

    serve.register(commands, add)
    accounts.register(commands, add)
    rates.register(commands, add)
    stripe.register(commands, add)
    purchases.register(commands, add)
    books.register(commands, add)
    flags.register(commands, add)
    admin.register(commands, add)
    jobs.register(commands, add)
    preflight.register(commands, add)
    smoke.register(commands, add)
    balances.register(commands, add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
