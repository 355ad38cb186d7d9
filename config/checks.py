"""Settings that are each valid and cannot work together, or name nothing. Pure. A check yields what it finds."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from importlib.util import find_spec
from ipaddress import ip_network
from urllib.parse import SplitResult, urlsplit

from config.app import DARK_GROUND, LEAST_CONTRAST, LIGHT_GROUND, contrast_tenths
from config.errors import ConfigError, raise_problems
from config.settings import Settings, variable_of
from config.store_urls import SECRET_FIELDS, UrlProblem, fields_of, find_redis_problems, find_url_problems, password_of
from config.upstreams import find_upstream_problems, is_plain_url

DATABASE_SCHEMES = ("sqlite+aiosqlite", "postgresql+asyncpg")
POSTGRESQL = "postgresql+asyncpg:"
AMOUNT = "amount"
"""Stands for a package where the buyer named the amount."""


def check_combinations(settings: Settings, where: str) -> None:
    """Refuse settings that are each valid and cannot work together. `where`: the file, or `flags`.

    Raises ConfigError with all of them.
    """
    raise_problems(list(find_problems(settings, where, ())))


def find_problems(settings: Settings, where: str, broken: Collection[str]) -> Iterator[ConfigError]:
    """Yield what cannot work together, but for checks that read a key which is `broken`: its value is not known."""
    for check, keys in CHECKS:
        if not any(key == bad or key.startswith(f"{bad}.") for key in keys for bad in broken):
            yield from check(settings, where)


def find_passwords(settings: Settings, where: str, overridden: Mapping[str, str]) -> Iterator[ConfigError]:
    """Yield passwords in the file: it is read by more eyes than the environment.

    `overridden`: dotted key → variable, of what the environment says.
    """
    for key, url in urls_of_stores(settings):
        if key in overridden:
            continue
        if password_of(url) or any(name in SECRET_FIELDS for name in fields_of(url)):
            name = variable_of(key)
            yield ConfigError(
                where,
                key,
                "has a password in it, and secrets never stand in the file",
                f"set {name} in the environment",
            )


def urls_of_stores(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return the key and the URL of each store; "" where there is none."""
    database = settings.database
    return (
        ("database.url", database.url),
        ("database.replica_url", database.replica_url),
        ("redis.url", settings.redis.url),
    )


def find_selling_problems(settings: Settings) -> Iterator[ConfigError]:
    """Yield what Stripe could not sell by: addresses to come back to, prices that are no cents."""
    yield from find_http_url_problems("stripe.success_url", settings.stripe.success_url)
    yield from find_http_url_problems("stripe.cancel_url", settings.stripe.cancel_url)
    if settings.stripe.api_base:
        yield from find_http_url_problems("stripe.api_base", settings.stripe.api_base)
        if settings.stripe.livemode:
            yield ConfigError("proxy.toml", "stripe.api_base", "names a simulator in live mode", "leave it empty")
    for package in settings.packages:
        if (Fraction(package.usd) * 100).denominator != 1:
            yield ConfigError(
                "proxy.toml", "packages", f"{package.code!r} does not cost whole cents", "Stripe sells in cents"
            )


def find_http_url_problems(key: str, url: str) -> Iterator[ConfigError]:
    """Yield what a browser, or we, could not follow."""
    fits = re.fullmatch("[!-~]+", url)
    parts = _parts(url.replace("{CHECKOUT_SESSION_ID}", "cs")) if fits else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        yield ConfigError("proxy.toml", key, "is not an http(s) URL", 'write it like "https://app.example.com/credits"')


def _check_workers(settings: Settings, where: str) -> Iterator[ConfigError]:
    if settings.listen.workers > 1 and not settings.redis.url:
        yield ConfigError(
            where,
            "listen.workers",
            f"{settings.listen.workers} workers cannot share the embedded store, which lives in one process's memory",
            "set redis.url, or listen.workers = 1",
        )


def _check_upstream(settings: Settings, where: str) -> Iterator[ConfigError]:
    if not is_plain_url(settings.upstream.base_url):
        yield ConfigError(
            where, "upstream.base_url", "is not a plain http(s) URL", 'write it like "https://api.openai.com/v1"'
        )


def _check_costs_url(settings: Settings, where: str) -> Iterator[ConfigError]:
    url = settings.advanced.openai_costs_url
    if url and not _is_http(_parts(url)):
        yield ConfigError(
            where,
            "advanced.openai_costs_url",
            "is not an http(s) URL",
            'write it like "https://api.openai.com/v1/organization/costs"',
        )


def _check_listeners(settings: Settings, where: str) -> Iterator[ConfigError]:
    listen = settings.listen
    ports = [port for port in (listen.port, listen.side_port, listen.admin_port) if port]
    if len(ports) != len(set(ports)):
        yield ConfigError(
            where,
            "listen.side_port",
            "two listeners share a port",
            "give each a port of its own, or 0 for the main one",
        )


def _check_proxies(settings: Settings, where: str) -> Iterator[ConfigError]:
    for network in settings.listen.trusted_proxies:
        try:
            ip_network(network)
        except ValueError as error:
            yield ConfigError(
                where, "listen.trusted_proxies", f"{error}", 'write networks such as "10.0.0.0/8" or "10.0.0.7"'
            )


def _check_identity_provider(settings: Settings, where: str) -> Iterator[ConfigError]:
    admin = settings.admin
    if admin.oidc_issuer and not (admin.oidc_audience or admin.oidc_client_id):
        yield ConfigError(
            where,
            "admin.oidc_issuer",
            "needs admin.oidc_audience or admin.oidc_client_id beside it",
            "name the audience that tokens for this service carry, or the client that people sign in by in the browser",
        )
    if admin.oidc_client_id and not admin.oidc_issuer:
        yield ConfigError(
            where, "admin.oidc_client_id", "needs admin.oidc_issuer beside it", "name the issuer that knows this client"
        )
    if admin.oidc_issuer and not admin.oidc_jwks_url and not _is_http(_parts(admin.oidc_issuer)):
        yield ConfigError(
            where,
            "admin.oidc_issuer",
            "is no http(s) URL, so nobody can ask it where its keys are",
            'write it like "https://id.example.com", or set admin.oidc_jwks_url',
        )
    if admin.oidc_client_id and "openid" not in admin.oidc_scopes:
        yield ConfigError(where, "admin.oidc_scopes", 'lacks "openid"', "no sign-in is OpenID Connect without it")
    if admin.public_url:
        yield from find_http_url_problems("admin.public_url", admin.public_url)
    if admin.oidc_jwks_url and not _is_http(_parts(admin.oidc_jwks_url)):
        yield ConfigError(
            where, "admin.oidc_jwks_url", "is not an http(s) URL", 'write it like "https://id.example.com/jwks.json"'
        )


def _check_tracing(settings: Settings, where: str) -> Iterator[ConfigError]:
    if settings.log.opentelemetry and find_spec("opentelemetry") is None:
        yield ConfigError(
            where, "log.opentelemetry", "OpenTelemetry is not installed", "pip install 'tollkeeper[otel]', or say false"
        )


def _check_database(settings: Settings, where: str) -> Iterator[ConfigError]:
    url = settings.database.url
    scheme = url.partition(":")[0]
    if scheme not in DATABASE_SCHEMES or _parts(url) is None:
        yield ConfigError(
            where,
            "database.url",
            f"{scheme[:30]!r} is not a database we speak, or the rest of the URL is broken",
            'use "sqlite+aiosqlite:///path" or "postgresql+asyncpg://..."',
        )
        return
    for problem in find_url_problems(url):
        yield ConfigError(where, "database.url", problem.reason, problem.fix)


def _check_replica(settings: Settings, where: str) -> Iterator[ConfigError]:
    url, primary = settings.database.replica_url, settings.database.url
    if not url:
        return
    problems = []
    if not primary.startswith(POSTGRESQL):
        problems.append(UrlProblem("needs a ledger in PostgreSQL, and database.url names none", 'write ""'))
    elif not url.startswith(POSTGRESQL) or _parts(url) is None:
        problems.append(UrlProblem("is no URL of PostgreSQL", 'write "postgresql+asyncpg://...", or "" for none'))
    elif url == primary:
        problems.append(UrlProblem("is database.url itself", 'name a replica of it, or write "" for none'))
    else:
        problems += find_url_problems(url)
    for problem in problems:
        yield ConfigError(where, "database.replica_url", problem.reason, problem.fix)


def _check_redis(settings: Settings, where: str) -> Iterator[ConfigError]:
    if url := settings.redis.url:
        for problem in find_redis_problems(url):
            yield ConfigError(where, "redis.url", problem.reason, problem.fix)


def _check_origins(settings: Settings, where: str) -> Iterator[ConfigError]:
    for origin in settings.cors.allowed_origins:
        if not _is_http(_parts(origin)):
            yield ConfigError(
                where, "cors.allowed_origins", f"{origin[:80]!r} is no origin", 'write "https://app.example.com"'
            )


def _check_tier(settings: Settings, where: str) -> Iterator[ConfigError]:
    billing = settings.billing
    if billing.service_tier not in billing.allowed_service_tiers:
        yield ConfigError(
            where,
            "billing.service_tier",
            f"{billing.service_tier!r} is not among billing.allowed_service_tiers",
            "add it there, or choose one that is",
        )


def _check_markup(settings: Settings, where: str) -> Iterator[ConfigError]:
    if not Fraction(settings.billing.markup):
        yield ConfigError(
            where,
            "billing.markup",
            "would give everything away",
            'use charging_enabled = false with charging_disabled_mode = "free"',
        )


def _check_packages(settings: Settings, where: str) -> Iterator[ConfigError]:
    for package in settings.packages:
        paid = Fraction(package.usd) * 1_000_000
        if not paid or paid.denominator != 1 or (paid * Fraction(package.bonus_percent) / 100).denominator != 1:
            yield ConfigError(
                where,
                "packages",
                f"{package.code!r} is not a whole number of millicredits",
                "use cents, and a bonus that divides them",
            )
    codes = [package.code for package in settings.packages]
    if len(codes) != len(set(codes)):
        yield ConfigError(where, "packages", "two packages share a code", "give each package a code of its own")


def _check_app(settings: Settings, where: str) -> Iterator[ConfigError]:
    """Yield addresses that nobody could follow, and colours that nobody could read."""
    app = settings.app
    addresses = {"url": app.url, "terms_url": app.terms_url, "privacy_url": app.privacy_url}
    if not re.fullmatch(r"mailto:[!-~]+@[!-~]+", app.support_url):
        addresses["support_url"] = app.support_url
    for name, address in addresses.items():
        if address:
            yield from find_http_url_problems(f"app.{name}", address)
    colors = (("color", app.color, LIGHT_GROUND, "light"), ("dark_color", app.dark_color, DARK_GROUND, "dark"))
    for name, color, ground, words in colors:
        if color and contrast_tenths(color, ground) < LEAST_CONTRAST:
            reason = f"{color} cannot be read as text on the {words} ground of the page ({ground})"
            yield ConfigError(where, f"app.{name}", reason, "choose one with a contrast of 4.5 to 1 or more")


def _check_any_amount(settings: Settings, where: str) -> Iterator[ConfigError]:
    sold = settings.purchases
    least, most, price = (
        Fraction(text) for text in (sold.amount_min_usd, sold.amount_max_usd, sold.usd_per_1000_credits)
    )
    if not most:
        return
    if not 0 < least <= most or (least * 100).denominator != 1 or (most * 100).denominator != 1 or most >= 10**6:
        yield ConfigError(
            where,
            "purchases.amount_min_usd",
            "and purchases.amount_max_usd are no range of whole cents below a million dollars",
            'write "5" and "500", or "0" for the second to sell packages only',
        )
    if not 0 < price <= 1:
        yield ConfigError(
            where,
            "purchases.usd_per_1000_credits",
            "is not above 0 and at most 1: 1,000 credits are worth a dollar wherever they are spent",
            "raise billing.markup to earn more",
        )
    if any(package.code == AMOUNT for package in settings.packages):
        yield ConfigError(where, "packages", f"{AMOUNT!r} names purchases of any amount", "rename that package")


def _check_welcome(settings: Settings, where: str) -> Iterator[ConfigError]:
    given = Fraction(settings.credits.welcome_credits) * 1_000
    if given.denominator != 1:
        yield ConfigError(
            where, "credits.welcome_credits", "is finer than a millicredit", "write at most three decimal places"
        )
    elif given > settings.admin.welcome_credits_a_day * 1_000:
        yield ConfigError(
            where,
            "credits.welcome_credits",
            "is more than admin.welcome_credits_a_day, so nobody would get them",
            "raise that one, or lower this",
        )


Check = Callable[[Settings, str], Iterator[ConfigError]]
CHECKS: tuple[tuple[Check, tuple[str, ...]], ...] = (
    (_check_workers, ("listen.workers", "redis.url")),
    (_check_upstream, ("upstream.base_url",)),
    (_check_costs_url, ("advanced.openai_costs_url",)),
    (_check_listeners, ("listen.port", "listen.side_port", "listen.admin_port")),
    (_check_proxies, ("listen.trusted_proxies",)),
    (_check_identity_provider, ("admin",)),
    (_check_tracing, ("log.opentelemetry",)),
    (_check_database, ("database.url",)),
    (_check_replica, ("database.replica_url", "database.url")),
    (_check_redis, ("redis.url",)),
    (_check_origins, ("cors.allowed_origins",)),
    (_check_tier, ("billing.service_tier", "billing.allowed_service_tiers")),
    (_check_markup, ("billing.markup",)),
    (_check_packages, ("packages",)),
    (_check_app, ("app",)),
    (
        _check_any_amount,
        ("purchases.amount_min_usd", "purchases.amount_max_usd", "purchases.usd_per_1000_credits", "packages"),
    ),
    (_check_welcome, ("credits.welcome_credits", "admin.welcome_credits_a_day")),
    (find_upstream_problems, ("upstreams",)),
)
"""Each check, and the keys that it reads."""


def _is_http(parts: SplitResult | None) -> bool:
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


def _parts(url: str) -> SplitResult | None:
    """Return the parts of a URL; None when it is none."""
    if re.search(r"[\x00-\x1f\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
