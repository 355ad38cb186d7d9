"""The `tollkeeper` command. One JSON object on stdout with --json, text for people otherwise.

Exit codes: 0 ok, 1 a finding or a refusal, 2 usage or configuration, 3 a check could not be made.
"""

import argparse
import asyncio
import gc
import json as plain_json
import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli.parser.outputs import OutputLost, flush, forget_output, open_outputs, write
from proxy.cli.parser.table import TABLE
from proxy.cli.parser.words import (
    PROGRAM,
    Parser,
    UsageError,
    make_first_parser,
    make_parser,
    take_common,
    unknown_word,
)

if TYPE_CHECKING:  # what a command needs is imported when one is carried out: `tollkeeper --help` needs none of it
    from billing.storage.database import Database
    from config.errors import ConfigError
    from config.settings import Settings
    from proxy.cli.context import Command, Result

DEFAULT_CONFIG = "proxy.toml"
SWITCHES_ELSEWHERE = "The service goes on with the last good edit of the file: meanwhile switches are set at /admin."
BEGINNINGS = {("account", "create"), ("admin", "create"), ("rates", "import"), ("flags", "set")}
"""Commands that begin an empty database beside a configuration, and say so; all others work on one that is there. In a
wrong folder there is neither.
"""
OPENS_NONE = ("migrate", "check-config", "preflight")
"""Commands that look at the database themselves, in whatever state it is."""
READER_LEFT = 128 + signal.SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Carry out a command; return its exit code."""
    try:
        try:
            _interrupted_by(signal.SIG_DFL)  # there is nothing to put right yet, and a second of imports to come
            return _main(sys.argv[1:] if argv is None else argv)
        finally:
            _interrupted_by(signal.default_int_handler)
            gc.enable()
            flush()
    except BrokenPipeError:
        return _leave_quietly()
    except OutputLost as lost:
        forget_output()
        return _fail(f"the answer cannot be written: {lost}", 1, json=False)


def _interrupted_by(handler: Any) -> None:
    """Change what Ctrl-C does, where that is ours to change: not below `nohup`, nor in a program that imports us."""
    both = (signal.SIG_DFL, signal.default_int_handler)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in both:
        signal.signal(signal.SIGINT, handler)


def _main(typed: list[str]) -> int:
    words, json, config = take_common(typed)
    open_outputs(json=json)
    try:
        arguments = _parse(words)
    except UsageError as error:
        return _fail(error.message, 2, json=json)
    arguments.json, arguments.config = json, config
    return _carry_out(arguments)


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse, with the commands of the first word alone. Raises UsageError."""
    if any(word.encode("utf-8", "replace").decode() != word for word in words):
        raise UsageError("an argument is not UTF-8 text")  # which no database would take
    options = words[: words.index("--")] if "--" in words else words
    for name, sign, value in (word.partition("=") for word in options):
        if name.startswith("--") and sign and value == "--":  # which argparse reads as no value at all
            raise UsageError(f"{name}: -- is no value")
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None or words[0] != first:
        return make_first_parser(version("tollkeeper")).parse_args(words)
    if first not in TABLE:
        raise unknown_word(first)
    return make_parser(version("tollkeeper"), first).parse_args(words)


def _parser() -> Parser:
    """Return the parser of every command, for those who walk over them."""
    return make_parser(version("tollkeeper"))


def _carry_out(arguments: argparse.Namespace) -> int:
    import msgspec

    from billing.money.amounts import MoneyError
    from billing.money.errors import BillingError
    from config.errors import ConfigError
    from config.load import load_settings
    from proxy.cli.context import Refusal

    try:
        path = _config_path(arguments)
        if arguments.command == "demo":
            from proxy.cli.quickstart import main as demo

            _interrupted_by(signal.default_int_handler)
            return demo(path)
        settings = load_settings(path)
        _interrupted_by(signal.default_int_handler)
        if arguments.command == "serve":
            gc.disable()  # until tune_process: a sixth of a start went into looking for garbage in what is imported
            from proxy.cli.serve import serve

            return serve(settings, path)
        result, text, code = asyncio.run(_run(arguments, settings, path))
    except ConfigError as error:
        if arguments.command != "preflight":
            return _fail(*_explain(arguments.command, error), json=arguments.json, problems=error)
        result, text, code = _broken_config(error)
    except (BillingError, MoneyError, Refusal) as error:
        return _fail(*_explain(arguments.command, error), json=arguments.json)
    except KeyboardInterrupt:
        return 130
    write(f"{msgspec.json.encode(result).decode() if arguments.json else text}\n")
    return code


def _broken_config(error: "ConfigError") -> "Result":
    from proxy.cli.preflight.command import broken_config

    return broken_config(error)


def _leave_quietly() -> int:
    """End as a program does whose reader went away (`| head`): without a word, by SIGPIPE."""
    if threading.current_thread() is threading.main_thread():
        forget_output()  # nothing is flushed into the broken pipe
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    return READER_LEFT


def _fail(message: str, code: int, *, json: bool, problems: "ConfigError | None" = None) -> int:
    """Print why a command was not carried out; return its exit code."""
    if json:
        result: dict[str, object] = {"error": message}
        if problems is not None:
            result["problems"] = [
                {"where": one.where, "line": one.line, "key": one.key, "reason": one.reason, "fix": one.fix}
                for one in problems.problems
            ]
        write(plain_json.dumps(result) + "\n")
    several = problems is not None and len(problems.problems) > 1
    head = f"{len(problems.problems)} problems in the configuration:\n" if problems is not None and several else ""
    print(f"{PROGRAM}: {head}{message}", file=sys.stderr)
    return code


def _explain(command: str, error: Exception) -> tuple[str, int]:
    """Message and exit code of an error."""
    from billing.money.amounts import MoneyError
    from billing.money.errors import AccountNotFound, InvalidDetails, KeyNotFound, StoreUnavailable
    from config.errors import ConfigError
    from proxy.cli import jobs

    match error:
        case ConfigError():
            return f"{error}. {SWITCHES_ELSEWHERE}" if command == "flags" else str(error), 2
        case AccountNotFound():
            return f"There is no such account: {error} (`tollkeeper account list --search` finds by name)", 1
        case KeyNotFound():
            return f"There is no such API key, or it is revoked already: {error} (`tollkeeper key list ACCOUNT`)", 1
        case StoreUnavailable():
            return str(error), 3 if command in jobs.COMMANDS else 1
        case MoneyError() | InvalidDetails():
            return str(error), 2
        case _:
            return str(error), 1


def _config_path(arguments: argparse.Namespace) -> Path | None:
    named = arguments.config or os.environ.get("TOLLKEEPER_CONFIG")
    if named:
        return Path(named)
    return Path(DEFAULT_CONFIG) if Path(DEFAULT_CONFIG).exists() else None


def _require_ledger(arguments: argparse.Namespace, database: "Database", config: Path | None) -> None:
    """Raise Refusal rather than begin a ledger, or show an empty one made just now, to someone in a wrong folder."""
    from config.settings import ENV_PREFIX
    from proxy.cli.context import Refusal

    path = Path(database.url.database or "")
    if not database.is_sqlite or path.exists():
        return
    meant = config is not None or any(name.startswith(ENV_PREFIX) for name in os.environ)
    if meant and (arguments.command, getattr(arguments, "verb", "")) in BEGINNINGS:
        return
    raise Refusal(
        f"there is no ledger at {path.absolute()}: run this where the server's proxy.toml is (or name it with "
        "--config); `tollkeeper migrate` begins a new one"
    )


async def _run(arguments: argparse.Namespace, settings: "Settings", path: Path | None) -> "Result":
    from billing.ledger.accounts import Accounts
    from billing.ledger.customers.search import AccountSearch
    from billing.ledger.ledger import Ledger
    from proxy.cli.context import Context, find_account, open_database, say_begun
    from proxy.server.startup_checks import prepare_database

    command: Command = arguments.run
    async with open_database(settings) as database:
        accounts = Accounts(database)
        if arguments.command not in OPENS_NONE:
            _require_ledger(arguments, database, path)
            if await prepare_database(database):
                say_begun(database, path)
            if getattr(arguments, "account", None):
                arguments.account = await find_account(AccountSearch(database), arguments.account)
        return await command(Context(settings, database, Ledger(database), accounts, arguments, path))


if __name__ == "__main__":
    sys.exit(main())
