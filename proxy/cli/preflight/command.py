"""`tollkeeper preflight`: may this go live? A table of checks with what to do about each.

It changes nothing: it reads the stores, asks OpenAI and Stripe for what they have, and sends our own webhook one signed
event of a type that is verified and dropped (proxy/customer_api/stripe_webhook.py). Safe on a live system, at any time.
"""

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from typing import Any

import certifi
import httpx

from billing.ledger.flag_overrides import FlagOverrides, in_force
from billing.money.amounts import MoneyError
from billing.money.errors import StoreUnavailable
from billing.money.pricing import PriceBook
from billing.storage.database import Database, now_ms
from config.errors import ConfigError
from config.flags import FLAGS, with_flags
from config.secrets import Secret, StripeKeys, stripe_keys, upstream_keys
from config.settings import Settings
from proxy.cli.context import Add, Context, Result, not_negative
from proxy.cli.preflight.admins import admin_checks
from proxy.cli.preflight.clocks import clock_checks
from proxy.cli.preflight.database import backup_checks, replica_checks, schema_checks, sql_checks
from proxy.cli.preflight.edge import edge_checks
from proxy.cli.preflight.flags import flag_checks
from proxy.cli.preflight.host import host_checks
from proxy.cli.preflight.openai import cost_checks, upstream_checks
from proxy.cli.preflight.prices import end_checks, margin_checks, package_checks, plan_checks, rate_checks
from proxy.cli.preflight.redis import redis_checks
from proxy.cli.preflight.report import as_result, broken
from proxy.cli.preflight.site import Check, Site, base_url_of
from proxy.cli.preflight.stripe import stripe_checks
from proxy.cli.preflight.webhook import inbox_checks, webhook_checks
from proxy.gateway.services import utc_today
from proxy.server.startup_checks import file_problems, key_problems, kind_problems

HTTP_SECONDS = 10.0
AREAS = (
    "config",
    "openai",
    "stripe",
    "webhook",
    "prices",
    "flags",
    "database",
    "redis",
    "clocks",
    "edge",
    "admin",
    "host",
)


def register(commands: Any, add: Add) -> None:
    """Add the command to the parser."""
    look = add(
        commands,
        "preflight",
        _preflight,
        "May this go live? Checks everything, changes nothing; exit 1 when something fails.",
    )
    look.add_argument("--backup", type=Path, metavar="PATH", help="a backup file, or the directory that holds them")
    look.add_argument("--backup-hours", type=not_negative, default=26, help="how old the newest may be (default 26)")
    look.add_argument(
        "--min-free-gib", type=not_negative, default=1, help="free space that data paths need (default 1)"
    )


async def _preflight(context: Context) -> Result:
    given = context.arguments
    checks = await preflight(
        context.settings,
        context.database,
        backup=given.backup,
        backup_hours=given.backup_hours,
        min_free_gib=given.min_free_gib,
    )
    return as_result(checks)


def broken_config(error: ConfigError) -> Result:
    """Report that not even the file can be read."""
    return as_result([broken(problem) for problem in error.problems])


async def preflight(
    settings: Settings, database: Database, *, backup: Path | None, backup_hours: int, min_free_gib: int
) -> list[Check]:
    """Run every check; rows in the order of the table."""
    checks, upstream, stripe = _keys(settings)
    async with _client(settings) as http:
        site = Site(
            settings, database, (), upstream, stripe, http, base_url_of(settings), backup, backup_hours, min_free_gib
        )
        checks += await schema_checks(site)
        prices = None
        if site.migrated:
            more, prices = await _in_sql(site)
            checks += more
        checks += await _try_checks("database", "backup", backup_checks(site))
        checks += await redis_checks(site)
        checks += await _outside(site, prices)
        if prices is not None:
            checks += end_checks(site.settings, prices, utc_today())
            checks += margin_checks(site.settings, prices)
        checks += [*package_checks(site.settings), *clock_checks(site), *flag_checks(site), *host_checks(site)]
    return sorted(checks, key=lambda check: AREAS.index(check.area))


async def _in_sql(site: Site) -> tuple[list[Check], PriceBook | None]:
    checks: list[Check] = []
    try:
        await _take_overrides(site, checks)
        checks += [*await sql_checks(site), *await replica_checks(site)]
        more, prices = await rate_checks(site)
        more += await plan_checks(site, prices) if prices is not None else []
        return [*checks, *more, *await admin_checks(site), *await inbox_checks(site)], prices
    except StoreUnavailable as error:
        return [
            *checks,
            Check("database", "answers", "FAIL", str(error), "look at the database's log; then run this again"),
        ], None


async def _outside(site: Site, prices: PriceBook | None) -> list[Check]:
    asked = [
        await upstream_checks(site, prices),
        await cost_checks(site),
        await stripe_checks(site),
        await webhook_checks(site),
    ]
    return [*(check for checks in asked for check in checks), *await edge_checks(site)]


async def _try_checks(area: str, name: str, work: Awaitable[list[Check]]) -> list[Check]:
    try:
        return await work
    except StoreUnavailable as error:
        return [Check(area, name, "FAIL", str(error), "look at the database's log; then run this again")]


async def _take_overrides(site: Site, checks: list[Check]) -> None:
    """Look at the settings as servers do: with the overrides that count now."""
    rows = await FlagOverrides(site.database).all()
    site.overrides = tuple(row for row in rows if not row.ended(now_ms()) and row.flag in FLAGS)
    try:
        site.settings = with_flags(site.settings, in_force(site.overrides, now_ms()))
    except (ConfigError, MoneyError) as error:
        fix = "`tollkeeper flags clear FLAG --reason ...`, or edit the file"
        checks.append(Check("flags", "overrides", "FAIL", f"they do not fit the file: {error}", fix))


def _keys(settings: Settings) -> tuple[list[Check], Mapping[str, Secret], StripeKeys | None]:
    """Read the secrets, and check that each can be used."""
    checks = [
        broken(problem) for problem in (*key_problems(settings), *file_problems(settings), *kind_problems(settings))
    ]
    upstream: Mapping[str, Secret] = {}
    stripe = None
    with contextlib.suppress(ConfigError):  # which is among the problems
        upstream = upstream_keys(settings)
    with contextlib.suppress(ConfigError):
        stripe = stripe_keys(settings)
    return checks or [Check("config", "valid", "PASS", "the configuration and its keys fit together")], upstream, stripe


@contextlib.asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Follows no redirect: a load balancer that redirects Stripe's POST would lose it."""
    verify = ssl.create_default_context(
        cafile=settings.upstream.ca_file or os.environ.get("SSL_CERT_FILE") or certifi.where()
    )
    async with httpx.AsyncClient(verify=verify, timeout=HTTP_SECONDS, follow_redirects=False) as client:
        yield client
