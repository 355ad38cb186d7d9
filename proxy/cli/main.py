"""The `tollkeeper` command. One JSON object on stdout with --json, text for people otherwise.

Exit codes: 0 ok, 1 a finding or a refusal, 2 usage or configuration, 3 a check could not be made.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from billing.accounting.reconcile import traces
from billing.balances.embedded import EmbeddedBalances, journal_depth, lock_file, read_figures
from billing.balances.redis.store import RedisBalances
from billing.ledger.accounts import Accounts
from billing.ledger.flush import drain
from billing.ledger.ledger import Ledger
from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError, display_credits
from billing.money.errors import AccountNotFound, BillingError, KeyNotFound, StoreUnavailable
from billing.storage.database import Database
from billing.storage.migrate import migrate
from config.errors import ConfigError
from config.load import load_settings
from config.secrets import notices_secret, openai_admin_key, stripe_keys, upstream_key
from config.settings import Settings
from proxy.cli import accounts, books, jobs, launch, operations, portal, purchases, rates
from proxy.cli.context import Command, Context, Refusal, Result
from proxy.cli.jobs import store_figures
from proxy.observability.log import configure_logging
from proxy.server.startup_checks import check_redis, prepare_database

DEFAULT_CONFIG = "proxy.toml"
DRAIN_WAIT_SECONDS = 60
SWITCHES_ELSEWHERE = "The service goes on with the last good edit of the file: meanwhile switches are set at /admin."
BEGINNINGS = {("account", "create"), ("admin", "create"), ("rates", "import"), ("flags", "set")}
"""Commands that begin an empty database; all others work on one that is there, and in a wrong folder there is none."""


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser, words = _parser(), sys.argv[1:] if argv is None else argv
    if any(word.encode("utf-8", "replace").decode() != word for word in words):
        parser.error("an argument is not UTF-8 text")  # which no database would take
    arguments = parser.parse_args(words)
    try:
        path = _config_path(arguments)
        settings = load_settings(path)
        if arguments.command == "serve":
            return _serve(settings, path)
        result, text, code = asyncio.run(_run(arguments, settings))
    except ConfigError as error:
        if arguments.command == "flags":
            return _fail(arguments, f"{error}. {SWITCHES_ELSEWHERE}", 2)
        if arguments.command != "preflight":
            return _fail(arguments, str(error), 2)
        result, text, code = launch.broken_config(error)
    except (AccountNotFound, KeyNotFound) as error:
        kind = "account" if isinstance(error, AccountNotFound) else "API key"
        return _fail(arguments, f"There is no such {kind} (or it is revoked already): {error}", 1)
    except StoreUnavailable as error:
        return _fail(arguments, str(error), 3 if arguments.command in jobs.COMMANDS else 1)
    except (BillingError, Refusal) as error:
        return _fail(arguments, str(error), 1)
    except MoneyError as error:
        return _fail(arguments, str(error), 2)
    except KeyboardInterrupt:
        return 130
    print(msgspec.json.encode(result).decode() if arguments.json else text)
    return code


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    if getattr(arguments, "json", False):
        print(msgspec.json.encode({"error": message}).decode())
    print(f"tollkeeper: {message}", file=sys.stderr)
    return code


def _config_path(arguments: argparse.Namespace) -> Path | None:
    named = arguments.config or os.environ.get("TOLLKEEPER_CONFIG")
    if named:
        return Path(named)
    return Path(DEFAULT_CONFIG) if Path(DEFAULT_CONFIG).exists() else None


# -- serving ----------------------------------------------------------------------------------------


def _serve(settings: Settings, path: Path | None) -> int:
    from proxy.server import supervisor

    configure_logging(settings.log.level)
    key = upstream_key(settings)
    stripe_keys(settings)  # complain before anything is opened
    notices_secret(settings)
    openai_admin_key(settings)
    if not key:
        raise ConfigError(
            "environment",
            "OPENAI_API_KEY",
            "is not set, and upstream.api_key_file names no file",
            "set it, or run `make run` to try Tollkeeper on the built-in sandbox",
        )
    try:
        asyncio.run(_check_stores(settings))
    except StoreUnavailable as error:
        raise Refusal(f"cannot start: {error}") from None
    try:
        listeners = supervisor.bind(settings)
    except OSError as error:
        raise ConfigError(
            "proxy.toml", "listen.port", f"cannot listen ({error.strerror})", "free the port or choose another"
        ) from None
    host, port = listeners.main.getsockname()[:2]
    print(f"tollkeeper listening on http://{host}:{port}", flush=True)
    return supervisor.serve(settings, key, listeners, path)


async def _check_stores(settings: Settings) -> None:
    async with _database(settings) as database:
        await prepare_database(database)
    if settings.redis.url:
        await check_redis(settings)


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings.database.url, settings.database.pool_size, settings.database.timeout_seconds)
    try:
        yield database
    finally:
        await database.close()


def _must_be_there(arguments: argparse.Namespace, database: Database) -> None:
    """Raises Refusal rather than showing an empty ledger, made just now, to someone in a wrong folder."""
    path = Path(database.url.database or "")
    if (
        database.is_sqlite
        and not path.exists()
        and (arguments.command, getattr(arguments, "verb", "")) not in BEGINNINGS
    ):
        raise Refusal(
            f"there is no ledger at {path.absolute()}: run this where the server's proxy.toml is (or name it with --config); "
            "`tollkeeper account create` or `tollkeeper migrate` begin a new one"
        )


async def _run(arguments: argparse.Namespace, settings: Settings) -> Result:
    command: Command = arguments.run
    async with _database(settings) as database:
        if arguments.command not in ("migrate", "check-config", *launch.WITHOUT_DATABASE):
            _must_be_there(arguments, database)
            await prepare_database(database)
        return await command(Context(settings, database, Ledger(database), Accounts(database), arguments))


# -- configuration ------------------------------------------------------------------------------------


async def _check_config(context: Context) -> Result:
    upstream_key(context.settings)
    stripe_keys(context.settings)
    notices_secret(context.settings)
    openai_admin_key(context.settings)
    if context.settings.redis.url:
        await check_redis(context.settings)
    return {"ok": True}, "The configuration is valid.", 0


async def _migrate(context: Context) -> Result:
    revision = await migrate(context.database)
    await RateCards(context.database).begin_with_shipped()
    return {"revision": revision}, f"The database is at revision {revision}.", 0


# -- the two stores --------------------------------------------------------------------------------------


async def _rebuild(context: Context) -> Result:
    settings = context.settings
    if settings.redis.url:
        async with _opened(
            RedisBalances(settings.redis.url, context.ledger, settings.redis.timeout_seconds, _lease_ms(settings))
        ) as store:
            await store.rebuild()
    elif (await traces(context.database, 0)).redis:
        raise Refusal(
            "the service of this ledger keeps balances in Redis, and redis.url is not set here: set TOLLKEEPER_REDIS__URL"
        )
    else:
        async with _opened(
            EmbeddedBalances(Path(settings.embedded.path), context.ledger, settings.advanced.embedded_timeout_seconds)
        ):
            pass  # opening it is rebuilding it: orphans settled, journal flushed, balances read from SQL
    accounts = len(await context.ledger.posted_in())
    return {"ok": True, "accounts": accounts}, f"Rebuilt the balances of {accounts} accounts from the ledger.", 0


async def _drain(context: Context) -> Result:
    settings = context.settings
    if settings.redis.url:
        store = RedisBalances(settings.redis.url, context.ledger, settings.redis.timeout_seconds, _lease_ms(settings))
        async with _opened(store):
            moved: tuple[int, int] = await drain(store, store, context.ledger)
            pending, _ = await store.depth()
            _, held, _ = await store.all_figures()
    else:
        moved, pending, held = await _drain_embedded(context)
    result = {
        "chargesFlushed": moved[0],
        "creditsApplied": moved[1],
        "pendingCharges": pending,
        "heldMillicredits": str(sum(held.values())),
        "accountsWithHolds": len([amount for amount in held.values() if amount]),
    }
    text = (
        f"Flushed {moved[0]} charges and applied {moved[1]} credits; "
        f"{pending} charges pending, {display_credits(sum(held.values()))} credits held."
    )
    return result, text, 1 if pending else 0


async def _drain_embedded(context: Context) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Flush ourselves when no server runs; else wait while the running one does."""
    settings, path = context.settings, Path(context.settings.embedded.path)
    if not path.exists():
        return (0, 0), 0, {}
    if not _server_runs(path):
        store = EmbeddedBalances(path, context.ledger, settings.advanced.embedded_timeout_seconds)
        before = journal_depth(path)[0]
        async with _opened(store):
            moved = await drain(store, store, context.ledger)
        return (before + moved.charges, moved.credits), journal_depth(path)[0], {}
    charges = journal_depth(path)[0]
    credited = len(await context.ledger.outbox_pending(500))
    deadline = time.monotonic() + DRAIN_WAIT_SECONDS
    while (journal_depth(path)[0] or await context.ledger.outbox_pending(1)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return (charges, credited), journal_depth(path)[0], read_figures(path)[1]


def _server_runs(path: Path) -> bool:
    try:
        lock_file(path).close()
    except StoreUnavailable:
        return True
    return False


async def _figures_of(context: Context, account_id: str) -> tuple[int | None, int, int]:
    """(cached balance or None when the store has not seen the account, held, unflushed) in millicredits."""
    async with store_figures(context) as read:
        if read is None:
            return None, 0, 0
        figures, held, unflushed = await read([account_id])
    reading = figures.get(account_id)
    return (reading.balance if reading else None), held.get(account_id, 0), unflushed.get(account_id, 0)


@contextlib.asynccontextmanager
async def _opened(store: Any) -> AsyncIterator[Any]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def _lease_ms(settings: Settings) -> int:
    return settings.advanced.hold_lease_seconds * 1_000


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

    add(commands, "serve", None, "Serve until SIGTERM.")
    add(commands, "check-config", _check_config, "Validate proxy.toml and the environment.")
    add(commands, "migrate", _migrate, "Bring the database to this version's schema.")
    accounts.register(commands, add, _figures_of)
    rates.register(commands, add)
    purchases.register(commands, add)
    books.register(commands, add)
    portal.register(commands, add)
    operations.register(commands, add)
    jobs.register(commands, add)
    launch.register(commands, add)
    add(commands, "rebuild", _rebuild, "Rebuild the balance store from the ledger.")
    add(commands, "drain", _drain, "Flush all that is pending, then report.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
