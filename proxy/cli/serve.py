"""`tollkeeper serve`, `check-config`, `migrate`: the server, and what it needs before it starts."""

import asyncio
import contextlib
import os
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from billing.accounting.margins import selling_below
from billing.ledger.flag_overrides import FlagOverrides, in_force
from billing.ledger.plans.price_plans import PricePlans
from billing.ledger.rate_cards import RateCards
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.pricing import PriceBook, load_catalogue
from billing.storage.database import now_ms
from billing.storage.migrate import migrate
from config.errors import ConfigError
from config.flags import FLAGS, with_flags
from config.settings import ENV_PREFIX, Settings
from proxy.admin.plans.listing import warnings as plan_warnings
from proxy.cli.context import WHOLE_TABLES_SECONDS, Add, Context, Refusal, Result, open_database, say_begun
from proxy.customer_api.money_in import offers_of
from proxy.observability.log import configure_logging
from proxy.server.startup_checks import check_redis, check_schema, check_start, check_test_money, prepare_database


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    add(commands, "serve", None, "Serve until SIGTERM.")
    add(
        commands,
        "check-config",
        _check_config,
        "Make the checks of `serve` without serving, and say which file was read.",
    )
    add(commands, "migrate", _migrate, "Bring the database to this version's schema.")


def serve(settings: Settings, path: Path | None) -> int:
    """Serve until SIGTERM. Raises ConfigError, Refusal."""
    from proxy.server import supervisor

    configure_logging(settings.log.level)
    keys = check_start(settings)  # complain before anything is opened
    try:
        _check_apart(settings, path)
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
    return supervisor.serve(settings, keys, listeners, path)


def _check_apart(settings: Settings, path: Path | None) -> None:
    """Check in a process of its own: what reads migrations takes 12 MB, which every worker would inherit.

    Raises what it raised there.
    """
    found, told = Pipe(duplex=False)
    checks = ForkProcess(target=_check_and_tell, args=(told, os.getpid(), settings, path))
    checks.start()
    told.close()
    try:
        kind, words, parts = found.recv()
    except EOFError:
        raise Refusal("cannot start: the checks of the stores were ended") from None
    checks.join()
    if kind is not None:
        error: Exception = kind.__new__(kind, *words)  # errors are made of other things than they are told with
        error.__dict__.update(parts)
        raise error


def _check_and_tell(told: Connection, parent: int, settings: Settings, path: Path | None) -> None:
    from proxy.server.supervisor import die_with_parent

    die_with_parent(parent)
    try:
        asyncio.run(_check_stores(settings, path))
        told.send((None, (), {}))
    except (BillingError, ConfigError, Refusal) as error:
        told.send((type(error), error.args, error.__dict__))
    except KeyboardInterrupt:
        sys.exit(1)  # the parent has it as well, and says nothing either


async def _check_stores(settings: Settings, file: Path | None) -> None:
    async with open_database(settings) as database:
        if await prepare_database(database):
            say_begun(database, file)
        await check_test_money(settings, database)
    if settings.redis.url:
        await check_redis(settings)


async def _check_config(context: Context) -> Result:
    """Check what `serve` checks, and change nothing; ports alone are not tried: a server may be running on them."""
    settings, database = context.settings, context.database
    check_start(settings)
    has_ledger = False
    if not database.is_sqlite or _exists(database.url.database):
        has_ledger = not await check_schema(database)
        rows = [row for row in await FlagOverrides(database).all() if row.flag in FLAGS] if has_ledger else ()
        with_flags(settings, in_force(rows, now_ms()))
        if has_ledger:
            await check_test_money(settings, database)
    if settings.redis.url:
        await check_redis(settings)
    variables = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name != "TOLLKEEPER_CONFIG")
    book, offers = await _book(context, has_ledger=has_ledger), offers_of(settings)
    words, below = selling_below(book, offers)
    warned = [f"credits are sold below what they cost: {words}. billing.markup says why"] if below else []
    if has_ledger:
        warned += await plan_warnings(PricePlans(database), book, offers, now_ms())
    warning = "\n".join(f"WARNING: {words}." for words in warned)
    result = {
        "ok": True,
        "warning": warning or None,
        "file": str(context.file.absolute()) if context.file else None,
        "variables": variables,
    }
    where = f"{context.file.absolute()}" if context.file else "built-in defaults (there is no proxy.toml here)"
    over = f", and over it {', '.join(variables)}" if variables else ""
    text = "\n".join(filter(None, (f"The configuration is valid. Read: {where}{over}.", warning)))
    return result, text, 0


async def _book(context: Context, *, has_ledger: bool) -> PriceBook:
    """Return the prices that will apply: the active card's, or the shipped one's where there is no ledger to read."""
    billing, card = context.settings.billing, load_catalogue()
    if has_ledger:
        with contextlib.suppress(BillingError):
            cards = RateCards(context.database)
            active = await cards.active_id()
            card = await cards.get(active) if active is not None else card
    return PriceBook(card, billing.markup, billing.rounding_mode)


def _exists(path: str | None) -> bool:
    return Path(path or "").exists()


async def _migrate(context: Context) -> Result:
    async with open_database(context.settings, WHOLE_TABLES_SECONDS) as database:
        revision = await migrate(database)
    await RateCards(context.database).begin_with_shipped()
    return {"revision": revision}, f"The database is at revision {revision}.", 0
