"""`tollkeeper serve`, `check-config`, `migrate`: the server, and what it needs before it starts."""

import asyncio
from pathlib import Path
from typing import Any

from billing.ledger.rate_cards import RateCards
from billing.money.errors import StoreUnavailable
from billing.storage.migrate import migrate
from config.errors import ConfigError
from config.secrets import notices_secret, openai_admin_key, stripe_keys, upstream_key
from config.settings import Settings
from proxy.cli.context import Add, Context, Refusal, Result, open_database
from proxy.observability.log import configure_logging
from proxy.server.startup_checks import check_redis, prepare_database


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    add(commands, "serve", None, "Serve until SIGTERM.")
    add(commands, "check-config", _check_config, "Validate proxy.toml and the environment.")
    add(commands, "migrate", _migrate, "Bring the database to this version's schema.")


def serve(settings: Settings, path: Path | None) -> int:
    """Serve until SIGTERM. Raises ConfigError, Refusal."""
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
    async with open_database(settings) as database:
        await prepare_database(database)
    if settings.redis.url:
        await check_redis(settings)


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
