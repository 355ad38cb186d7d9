"""Conditions for serving, beyond a valid file: stores reachable, schema current, Redis that keeps data."""

import logging
import os
from collections.abc import Mapping

from sqlalchemy import func, select

from billing.balances.redis.servers.address import CommandRefused, ask_once
from billing.balances.redis.servers.survey import find_data_servers
from billing.ledger.dismissals import TEST_MONEY, Dismissals
from billing.ledger.events.kinds import is_kind
from billing.ledger.rate_cards import RateCards
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database
from billing.storage.installation import tenant_secret
from billing.storage.migrate import current_revision, migrate, newest_revision
from billing.storage.tables.payments import purchases
from config.app import read_logo
from config.checks import urls_of_stores
from config.errors import ConfigError, raise_problems
from config.secrets import (
    Secret,
    notices_secret,
    oidc_client_secret,
    openai_admin_key,
    service_key,
    stripe_keys,
    upstream_keys,
)
from config.settings import Settings
from config.store_urls import FILE_FIELDS, SYSTEM_ROOTS, fields_of
from config.upstreams import DEFAULT_NAME

REDIS_SETTINGS = (("CONFIG", "GET", "maxmemory-policy"), ("CONFIG", "GET", "appendonly"))
"""One name each: Redis 6."""
log = logging.getLogger("tollkeeper")
UPSTREAM_KEYS = ("OPENAI_API_KEY", "upstream.api_key_file", "upstreams")


async def prepare_database(database: Database) -> bool:
    """Fill an empty database with the schema and a rate card; tell whether it was empty.

    Raises ConfigError when an old one needs `migrate`, StoreUnavailable.
    """
    empty = await check_schema(database)
    if empty:
        await migrate(database)
        await RateCards(database).begin_with_shipped()
        await tenant_secret(database)  # of its own: nothing was ever named by the upstream's key here
    return empty


async def check_schema(database: Database) -> bool:
    """Tell whether the database is empty.

    Raises ConfigError when it is not, and needs `migrate`; StoreUnavailable.
    """
    revision = await current_revision(database)
    if revision is not None and revision != newest_revision():
        raise ConfigError(
            "database",
            "database.url",
            f"its schema is at {revision}, this version needs {newest_revision()}",
            "run `tollkeeper migrate`",
        )
    return revision is None


async def check_redis(settings: Settings) -> None:
    """Refuse a Redis that evicts or keeps nothing: each of its servers. Raises ConfigError, StoreUnavailable.

    Of a cluster some may be away: the others are to be served.
    """
    timeout, failures = settings.redis.timeout_seconds, list[StoreUnavailable]()
    servers = await find_data_servers(settings.redis.url, timeout)
    for server in servers:
        try:
            answers = await ask_once(server.address, timeout, *REDIS_SETTINGS)
        except CommandRefused:
            continue  # CONFIG is forbidden here (managed Redis): docs/operations.md says what to check by hand
        except StoreUnavailable as error:
            failures.append(error)
        else:
            _check_redis_settings(settings, {name.decode(): value.decode() for name, value in answers})
    if len(failures) == len(servers):
        raise failures[0]
    for failure in failures:
        log.warning("a node of the cluster is away: %s", failure)


def _check_redis_settings(settings: Settings, found: Mapping[str, str]) -> None:
    policy = found.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise ConfigError(
            "redis",
            "redis.url",
            f"maxmemory-policy is {policy!r}, so Redis may throw balances away",
            "set `maxmemory-policy noeviction`",
        )
    if settings.redis.require_aof and found.get("appendonly") != "yes":
        raise ConfigError(
            "redis",
            "redis.require_aof",
            "appendonly is off, so a restart of Redis forgets holds and charges",
            "set `appendonly yes` and `appendfsync always`, or redis.require_aof = false if losing them is acceptable",
        )


def check_keys(settings: Settings) -> None:
    """Check what a file alone cannot know: the keys it needs. Raises ConfigError, with every problem there is."""
    raise_problems(key_problems(settings))


def check_start(settings: Settings) -> dict[str, Secret]:
    """Check everything short of the stores and ports, as `serve` and `check-config` do; return the upstreams' keys.

    Raises ConfigError, with every problem there is.
    """
    problems = key_problems(settings)
    keys = {} if any(problem.key in UPSTREAM_KEYS for problem in problems) else upstream_keys(settings)
    if keys and not settings.upstreams and not keys[DEFAULT_NAME]:
        problems.append(
            ConfigError(
                "environment",
                "OPENAI_API_KEY",
                "is not set, and upstream.api_key_file names no file",
                "set it, or run `make run` to try Tollkeeper on the built-in sandbox",
            )
        )
    raise_problems([*problems, *file_problems(settings), *kind_problems(settings)])
    return keys


def key_problems(settings: Settings) -> list[ConfigError]:
    """Return what is wrong with the keys and secrets that are there, each with the settings it belongs to."""
    problems: list[ConfigError] = []
    for read in (upstream_keys, stripe_keys, notices_secret, service_key, oidc_client_secret, openai_admin_key):
        try:
            read(settings)
        except ConfigError as error:
            problems += error.problems
    return problems


def file_problems(settings: Settings) -> list[ConfigError]:
    """Return the files of certificates and of the logo that settings name and nobody can use."""
    named = [("upstream.ca_file", "", settings.upstream.ca_file)]
    for key, url in urls_of_stores(settings):
        named += [(key, name, path) for name, path in fields_of(url).items() if name in FILE_FIELDS]
    problems = []
    for key, name, path in named:
        if path and (name, path) != ("sslrootcert", SYSTEM_ROOTS) and not os.access(path, os.R_OK):
            what = f"names a file in {name} that cannot be read" if name else "names a file that cannot be read"
            problems.append(ConfigError("proxy.toml", key, what, "name a readable PEM file"))
    try:
        read_logo(settings.app)
    except ConfigError as error:
        problems += error.problems
    return problems


def kind_problems(settings: Settings) -> list[ConfigError]:
    """Return the kinds of events that settings name and that there are not."""
    return [
        ConfigError("proxy.toml", "notices.kinds", f"{kind!r} is no kind of event", "docs/events.md lists them")
        for kind in settings.notices.kinds
        if not is_kind(kind)
    ]


async def check_test_money(settings: Settings, database: Database) -> None:
    """Refuse live payments on a ledger with credits that test cards bought. Raises ConfigError, StoreUnavailable."""
    if not settings.stripe.livemode:
        return
    query = select(func.count()).where(
        purchases.c.state == "credited", ~purchases.c.livemode, purchases.c.origin != "transfer"
    )
    async with database.read() as connection:
        number = (await connection.execute(query)).scalar_one()
    if number and not await Dismissals(database).objects([TEST_MONEY]):
        raise ConfigError(
            "database",
            "stripe.livemode",
            f"the ledger has {number} purchases of Stripe's test mode, whose credits nobody paid for",
            "use another database for live money; or take those credits back with `tollkeeper grant`, then "
            f"`tollkeeper findings dismiss {TEST_MONEY} --reason ...`",
        )
