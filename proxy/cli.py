"""The `tollkeeper` command. One JSON object on stdout with --json, text for people otherwise.

Exit codes: 0 ok, 1 a finding or a refusal, 2 usage or configuration.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from billing.accounts import Accounts, KeyRules
from billing.balances.embedded import EmbeddedBalances, journal_depth, lock_file, read_figures
from billing.balances.redis import RedisBalances
from billing.database import Database
from billing.errors import AccountNotFound, BillingError, KeyNotFound, StoreUnavailable
from billing.jobs import drain
from billing.ledger import Ledger, UsageFilters
from billing.migrate import migrate
from billing.money import MoneyError, display_credits, millicredits, parse_credits
from billing.periods import PERIODS
from billing.rates import RateCards
from billing.reconcile import StoreFigures, reconcile
from config.keys import notices_secret, stripe_keys
from config.load import ConfigError, load_settings, upstream_key
from config.settings import Settings
from proxy import cli_books, cli_launch, cli_money, cli_ops, cli_portal, cli_rates
from proxy.account_api import iso_time, usage_row
from proxy.checks import check_redis, prepare_database
from proxy.cli_context import Command, Context, Refusal, Result, actor, expiry, not_negative, short_text, who
from proxy.log import configure_logging

DEFAULT_CONFIG = "proxy.toml"
DRAIN_WAIT_SECONDS = 60
MAX_GRANT_CREDITS = 1_000_000_000


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    try:
        path = _config_path(arguments)
        settings = load_settings(path)
        if arguments.command in ("serve", "_child"):
            return _serve(arguments, settings, path)
        result, text, code = asyncio.run(_run(arguments, settings))
    except ConfigError as error:
        if arguments.command != "preflight":
            return _fail(arguments, str(error), 2)
        result, text, code = cli_launch.broken_config(error)
    except (AccountNotFound, KeyNotFound) as error:
        kind = "account" if isinstance(error, AccountNotFound) else "API key"
        return _fail(arguments, f"There is no such {kind} (or it is revoked already): {error}", 1)
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


def _serve(arguments: argparse.Namespace, settings: Settings, path: Path | None) -> int:
    from proxy import serve

    configure_logging(settings.log.level)
    key = upstream_key(settings)
    stripe_keys(settings)  # complain before anything is opened
    notices_secret(settings)
    if arguments.command == "_child":
        if arguments.role == "jobs":
            return serve.serve_jobs(settings, path)
        return serve.serve_worker(settings, key, serve.inherited(arguments.fds), with_jobs=False, config_path=path)
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
        listeners = serve.bind(settings)
    except OSError as error:
        raise ConfigError("proxy.toml", "listen.port", f"cannot listen ({error.strerror})", "free the port or choose another") from None
    host, port = listeners.main.getsockname()[:2]
    print(f"tollkeeper listening on http://{host}:{port}", flush=True)
    if not settings.redis.url:
        return serve.serve_worker(settings, key, listeners, with_jobs=True, config_path=path)
    return serve.Supervisor(settings, path, listeners).run()


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


async def _run(arguments: argparse.Namespace, settings: Settings) -> Result:
    command: Command = arguments.run
    async with _database(settings) as database:
        if arguments.command not in ("migrate", "check-config", *cli_launch.WITHOUT_DATABASE):
            await prepare_database(database)
        return await command(Context(settings, database, Ledger(database), Accounts(database), arguments))


# -- configuration ------------------------------------------------------------------------------------


async def _check_config(context: Context) -> Result:
    upstream_key(context.settings)
    stripe_keys(context.settings)
    notices_secret(context.settings)
    if context.settings.redis.url:
        await check_redis(context.settings)
    return {"ok": True}, "The configuration is valid.", 0


async def _migrate(context: Context) -> Result:
    revision = await migrate(context.database)
    await RateCards(context.database).begin_with_shipped()
    return {"revision": revision}, f"The database is at revision {revision}.", 0


# -- accounts and keys --------------------------------------------------------------------------------


async def _account_create(context: Context) -> Result:
    account_id = await context.accounts.create(context.arguments.name, who())
    key_id, secret = await context.accounts.create_key(account_id, KeyRules(), who())
    result = {"accountId": account_id, "name": context.arguments.name, "keyId": key_id, "apiKey": secret}
    text = f"Account {account_id} ({context.arguments.name})\nAPI key (shown this once): {secret}"
    return result, text, 0


async def _account_show(context: Context) -> Result:
    account_id = context.arguments.account
    account = await context.accounts.get(account_id)
    posted = await context.ledger.posted(account_id)
    figures, held, unflushed = await _figures_of(context, account_id)
    balance = figures if figures is not None else posted.balance
    result = {
        "accountId": account_id,
        "name": account["name"],
        "status": account["status"],
        "balanceMillicredits": str(balance),
        "heldMillicredits": str(held),
        "postedMillicredits": str(posted.balance),
        "unflushedMillicredits": str(unflushed),
        "createdAt": iso_time(account["created_at"]),
    }
    text = (
        f"{account_id}  {account['name']}  {account['status']}\n"
        f"balance {display_credits(balance)} credits, held {display_credits(held)}, in the ledger {display_credits(posted.balance)}"
    )
    return result, text, 0


async def _account_list(context: Context) -> Result:
    rows = await context.accounts.everyone()
    data = [
        {
            "accountId": row["id"],
            "name": row["name"],
            "status": row["status"],
            "postedMillicredits": str(row["posted_millicredits"]),
            "createdAt": iso_time(row["created_at"]),
        }
        for row in rows
    ]
    lines = [f"{row['id']}  {row['status']:8} {display_credits(row['posted_millicredits']):>14}  {row['name']}" for row in rows]
    return {"data": data}, "\n".join(lines) or "There are no accounts yet.", 0


async def _account_block(context: Context) -> Result:
    status = "active" if context.arguments.unblock else "blocked"
    await context.accounts.set_status(context.arguments.account, status, who())
    return {"accountId": context.arguments.account, "status": status}, f"{context.arguments.account} is {status}.", 0


async def _key_create(context: Context) -> Result:
    given = context.arguments
    limit = parse_credits(given.spend_limit) if given.spend_limit is not None else None
    if limit is not None and limit < 0:
        raise MoneyError("a spend limit is not negative")
    rules = KeyRules(
        models=tuple(given.models) if given.models else None,
        spend_limit=limit,
        spend_period=given.period if limit is not None else None,
        requests_per_minute=given.rpm,
        tokens_per_minute=given.tpm,
        concurrency=given.concurrency,
        expires_at=expiry(given.expires),
    )
    key_id, secret = await context.accounts.create_key(given.account, rules, who())
    return {"accountId": given.account, "keyId": key_id, "apiKey": secret}, f"Key {key_id} (shown this once): {secret}", 0


async def _key_list(context: Context) -> Result:
    rows = await context.accounts.keys_of(context.arguments.account)
    data = [
        {
            "keyId": row["id"],
            "hint": row["hint"],
            "models": msgspec.json.decode(row["models"]) if row["models"] else None,
            "spendLimitMillicredits": None if row["spend_limit_millicredits"] is None else str(row["spend_limit_millicredits"]),
            "spendPeriod": row["spend_period"],
            "requestsPerMinute": row["requests_per_minute"],
            "tokensPerMinute": row["tokens_per_minute"],
            "concurrency": row["concurrency"],
            "expiresAt": iso_time(row["expires_at"]) if row["expires_at"] else None,
            "revokedAt": iso_time(row["revoked_at"]) if row["revoked_at"] else None,
            "createdAt": iso_time(row["created_at"]),
        }
        for row in rows
    ]
    lines = [f"{row['keyId']}  {row['hint']}  {'revoked' if row['revokedAt'] else 'active'}" for row in data]
    return {"data": data}, "\n".join(lines) or "This account has no keys.", 0


async def _key_revoke(context: Context) -> Result:
    await context.accounts.revoke_key(context.arguments.key, who())
    return {"keyId": context.arguments.key, "revoked": True}, f"{context.arguments.key} is revoked.", 0


# -- money ------------------------------------------------------------------------------------------------


async def _grant(context: Context) -> Result:
    given = context.arguments
    amount = parse_credits(given.credits)
    if not amount or abs(amount) > MAX_GRANT_CREDITS * 1_000:
        raise MoneyError(f"a grant is not zero and at most {MAX_GRANT_CREDITS} credits either way")
    reference = given.reference or "grant_" + secrets.token_hex(12)
    new = await context.ledger.grant(given.account, millicredits(amount), reference, actor(), given.reason, who())
    posted = await context.ledger.posted(given.account)
    result = {
        "accountId": given.account,
        "grantedMillicredits": str(amount if new else 0),
        "reference": reference,
        "postedMillicredits": str(posted.balance),
    }
    what = f"Granted {display_credits(amount)} credits" if new else "This reference was booked before; nothing granted"
    return result, f"{what} ({reference}). The ledger says {display_credits(posted.balance)} credits.", 0


async def _ledger(context: Context) -> Result:
    await context.accounts.get(context.arguments.account)
    rows = await context.ledger.transfers_of(context.arguments.account, context.arguments.limit)
    data = [
        {
            "id": str(row["id"]),
            "kind": row["kind"],
            "amountMillicredits": str(row["effect"]),
            "debitAccount": row["debit_account"],
            "creditAccount": row["credit_account"],
            "referenceType": row["reference_type"],
            "referenceId": row["reference_id"],
            "actor": row["actor"],
            "reason": row["reason"],
            "createdAt": iso_time(row["created_at"]),
        }
        for row in rows
    ]
    lines = [
        f"{row['createdAt']}  {row['amountMillicredits']:>16}  {row['kind']:<14} {row['referenceId']}  {row['reason']}" for row in data
    ]
    return {"data": data}, "\n".join(lines) or "The ledger has no rows for this account.", 0


async def _usage(context: Context) -> Result:
    await context.accounts.get(context.arguments.account)
    rows = await context.ledger.usage_of(context.arguments.account, context.arguments.limit, UsageFilters())
    data = [usage_row(row) for row in rows]
    lines = [
        f"{row['createdAt']}  {row['chargedMillicredits']:>12}  {row['model']:<28} {row['inputTokens']:>8} in "
        f"{row['outputTokens']:>7} out  {row['usageSource']:<8} {row['outcome']:<12} {row['requestId']}"
        for row in data
    ]
    return {"data": data}, "\n".join(lines) or "There is no usage for this account.", 0


async def _reconcile(context: Context) -> Result:
    async with _store_figures(context) as figures:
        findings = await reconcile(context.database, figures)
    findings += await cli_money.check(context)
    data = [{"check": f.check, "subject": f.subject, "expected": str(f.expected), "found": str(f.found)} for f in findings]
    text = "\n".join(map(str, findings)) if findings else "Everything agrees."
    return {"ok": not findings, "findings": data}, text, 1 if findings else 0


async def _rebuild(context: Context) -> Result:
    settings = context.settings
    if settings.redis.url:
        async with _opened(RedisBalances(settings.redis.url, context.ledger, settings.redis.timeout_seconds, _lease_ms(settings))) as store:
            await store.rebuild()
    else:
        async with _opened(EmbeddedBalances(Path(settings.embedded.path), context.ledger, settings.embedded.timeout_seconds)):
            pass  # opening it is rebuilding it: orphans settled, journal flushed, balances read from SQL
    accounts = len(await context.ledger.posted_in())
    return {"ok": True, "accounts": accounts}, f"Rebuilt the balances of {accounts} accounts from the ledger.", 0


async def _drain(context: Context) -> Result:
    settings = context.settings
    if settings.redis.url:
        store = RedisBalances(settings.redis.url, context.ledger, settings.redis.timeout_seconds, _lease_ms(settings))
        async with _opened(store):
            moved: tuple[int, int] = await drain(store, store, context.ledger, settings.journal.batch_size)
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
        store = EmbeddedBalances(path, context.ledger, settings.embedded.timeout_seconds)
        before = journal_depth(path)[0]
        async with _opened(store):
            moved = await drain(store, store, context.ledger, settings.journal.batch_size)
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


@contextlib.asynccontextmanager
async def _store_figures(context: Context) -> AsyncIterator[Callable[[], Awaitable[StoreFigures]] | None]:
    """How to read the balance store beside a running server."""
    settings = context.settings
    if settings.redis.url:
        store = RedisBalances(settings.redis.url, context.ledger, settings.redis.timeout_seconds, _lease_ms(settings))
        async with _opened(store):
            yield store.all_figures
        return
    path = Path(settings.embedded.path)
    if not path.exists():
        yield None
        return

    async def read() -> StoreFigures:
        return await asyncio.to_thread(read_figures, path)

    yield read


async def _figures_of(context: Context, account_id: str) -> tuple[int | None, int, int]:
    """(cached balance or None when the store has not seen the account, held, unflushed) in millicredits."""
    async with _store_figures(context) as read:
        if read is None:
            return None, 0, 0
        figures, held, unflushed = await read()
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
    return settings.billing.hold_lease_seconds * 1_000


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", help="the configuration file (default: proxy.toml here, else built-in defaults)")
    common.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser = argparse.ArgumentParser(prog="tollkeeper", description="A prepaid meter in front of the OpenAI API.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(group: Any, name: str, run: Command | None, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(run=run)
        return made

    add(commands, "serve", None, "Serve until SIGTERM.")
    child = add(commands, "_child", None, argparse.SUPPRESS)
    child.add_argument("role", choices=["worker", "jobs"])
    child.add_argument("fds")
    add(commands, "check-config", _check_config, "Validate proxy.toml and the environment.")
    add(commands, "migrate", _migrate, "Bring the database to this version's schema.")
    account = commands.add_parser("account", help="Create, show, list, block accounts.").add_subparsers(dest="verb", required=True)
    add(account, "create", _account_create, "Create an account and its first API key.").add_argument("name", type=short_text(200))
    add(account, "show", _account_show, "Show one account.").add_argument("account")
    add(account, "list", _account_list, "List accounts.")
    block = add(account, "block", _account_block, "Block an account (or --unblock it).")
    block.add_argument("account")
    block.add_argument("--unblock", action="store_true")
    key = commands.add_parser("key", help="Create, list, revoke API keys.").add_subparsers(dest="verb", required=True)
    create = add(key, "create", _key_create, "Create an API key.")
    create.add_argument("account")
    create.add_argument("--models", nargs="+", help="model names or globs")
    create.add_argument("--spend-limit", metavar="CREDITS")
    create.add_argument("--period", choices=PERIODS, default="month", help="when the spend limit starts anew (UTC)")
    for name in ("rpm", "tpm", "concurrency"):
        create.add_argument(f"--{name}", type=not_negative)
    create.add_argument("--expires", help="ISO 8601, or 30d, 12h, 15m")
    add(key, "list", _key_list, "List an account's keys.").add_argument("account")
    add(key, "revoke", _key_revoke, "Revoke a key, everywhere within 5 s.").add_argument("key")
    grant = add(commands, "grant", _grant, "Move credits to an account (negative: back).")
    grant.add_argument("account")
    grant.add_argument("credits")
    grant.add_argument("--reason", required=True, type=short_text(2_000))
    grant.add_argument("--reference", type=short_text(80), help="repeat a grant safely: the same reference is booked once")
    for name, run, text in (("ledger", _ledger, "An account's transfers."), ("usage", _usage, "An account's charged requests.")):
        listing = add(commands, name, run, text)
        listing.add_argument("account")
        listing.add_argument("--limit", type=not_negative, default=100)
    cli_rates.register(commands, add)
    cli_money.register(commands, add)
    cli_books.register(commands, add)
    cli_portal.register(commands, add)
    cli_ops.register(commands, add)
    cli_launch.register(commands, add)
    check = add(commands, "reconcile", _reconcile, "Check that everything agrees; exit 1 with a list when it does not.")
    check.add_argument("--no-stripe", action="store_true", help="do not ask Stripe for its record")
    add(commands, "rebuild", _rebuild, "Rebuild the balance store from the ledger.")
    add(commands, "drain", _drain, "Flush all that is pending, then report.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
