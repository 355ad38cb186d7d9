"""Settings that are each valid and cannot work together, or name nothing. Pure. Every check raises ConfigError."""

import re
from collections.abc import Mapping
from fractions import Fraction
from importlib.util import find_spec
from ipaddress import ip_network
from urllib.parse import SplitResult, urlsplit

from config.errors import ConfigError
from config.settings import Settings, variable_of

DATABASE_SCHEMES = ("sqlite+aiosqlite", "postgresql+asyncpg")
REDIS_SCHEMES = ("redis", "rediss", "unix")


def check_combinations(settings: Settings, where: str) -> None:
    """Refuse settings that are each valid and cannot work together. `where`: the file, or `flags`."""
    _check_workers(settings, where)
    _check_upstream(settings, where)
    _check_listeners(settings, where)
    _check_identity_provider(settings, where)
    _check_tracing(settings, where)
    _check_stores(settings, where)
    _check_billing(settings, where)
    _check_packages(settings, where)


def check_passwords(settings: Settings, where: str, overridden: Mapping[str, str]) -> None:
    """Refuse passwords in the file: it is read by more eyes than the environment.

    `overridden`: dotted key → variable, of what the environment says.
    """
    for key, url in (("database.url", settings.database.url), ("redis.url", settings.redis.url)):
        parts = _parts(url)
        if key not in overridden and parts is not None and parts.password:
            name = variable_of(key)
            raise ConfigError(
                where,
                key,
                "has a password in it, and secrets never stand in the file",
                f"set {name} in the environment",
            )


def check_selling(settings: Settings) -> None:
    """Refuse what Stripe could not sell by: addresses to come back to, prices that are no cents."""
    check_http_url("stripe.success_url", settings.stripe.success_url)
    check_http_url("stripe.cancel_url", settings.stripe.cancel_url)
    if settings.stripe.api_base:
        check_http_url("stripe.api_base", settings.stripe.api_base)
        if settings.stripe.livemode:
            raise ConfigError("proxy.toml", "stripe.api_base", "names a simulator in live mode", "leave it empty")
    for package in settings.packages:
        if (Fraction(package.usd) * 100).denominator != 1:
            raise ConfigError(
                "proxy.toml", "packages", f"{package.code!r} does not cost whole cents", "Stripe sells in cents"
            )


def check_http_url(key: str, url: str) -> None:
    """Refuse what a browser, or we, could not follow."""
    fits = re.fullmatch("[!-~]+", url)
    parts = urlsplit(url.replace("{CHECKOUT_SESSION_ID}", "cs")) if fits else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ConfigError("proxy.toml", key, "is not an http(s) URL", 'write it like "https://app.example.com/credits"')


def _check_workers(settings: Settings, where: str) -> None:
    if settings.listen.workers > 1 and not settings.redis.url:
        raise ConfigError(
            where,
            "listen.workers",
            f"{settings.listen.workers} workers cannot share the embedded store, which lives in one process's memory",
            "set redis.url, or listen.workers = 1",
        )


def _check_upstream(settings: Settings, where: str) -> None:
    base = _parts(settings.upstream.base_url) if re.fullmatch("[!-~]+", settings.upstream.base_url) else None
    if base is None or not _is_http(base) or base.query or base.fragment or base.username:
        raise ConfigError(
            where, "upstream.base_url", "is not a plain http(s) URL", 'write it like "https://api.openai.com/v1"'
        )
    url = settings.advanced.openai_costs_url
    if url and not _is_http(_parts(url)):
        raise ConfigError(
            where,
            "advanced.openai_costs_url",
            "is not an http(s) URL",
            'write it like "https://api.openai.com/v1/organization/costs"',
        )


def _check_listeners(settings: Settings, where: str) -> None:
    listen = settings.listen
    ports = [port for port in (listen.port, listen.side_port, listen.admin_port) if port]
    if len(ports) != len(set(ports)):
        raise ConfigError(
            where,
            "listen.side_port",
            "two listeners share a port",
            "give each a port of its own, or 0 for the main one",
        )
    for network in listen.trusted_proxies:
        try:
            ip_network(network)
        except ValueError as error:
            raise ConfigError(
                where, "listen.trusted_proxies", f"{error}", 'write networks such as "10.0.0.0/8" or "10.0.0.7"'
            ) from None


def _check_identity_provider(settings: Settings, where: str) -> None:
    admin = settings.admin
    if admin.oidc_issuer and not (admin.oidc_audience and admin.oidc_jwks_url):
        raise ConfigError(
            where,
            "admin.oidc_issuer",
            "needs admin.oidc_audience and admin.oidc_jwks_url beside it",
            "name the audience that tokens for this service carry, and where the issuer's keys are",
        )
    if admin.oidc_jwks_url and not _is_http(_parts(admin.oidc_jwks_url)):
        raise ConfigError(
            where, "admin.oidc_jwks_url", "is not an http(s) URL", 'write it like "https://id.example.com/jwks.json"'
        )


def _check_tracing(settings: Settings, where: str) -> None:
    if settings.log.opentelemetry and find_spec("opentelemetry") is None:
        raise ConfigError(
            where, "log.opentelemetry", "OpenTelemetry is not installed", "pip install 'tollkeeper[otel]', or say false"
        )


def _check_stores(settings: Settings, where: str) -> None:
    scheme = settings.database.url.partition(":")[0]
    if scheme not in DATABASE_SCHEMES or _parts(settings.database.url) is None:
        raise ConfigError(
            where,
            "database.url",
            f"{scheme[:30]!r} is not a database we speak, or the rest of the URL is broken",
            'use "sqlite+aiosqlite:///path" or "postgresql+asyncpg://..."',
        )
    redis = _parts(settings.redis.url)
    if settings.redis.url and (redis is None or redis.scheme not in REDIS_SCHEMES):
        raise ConfigError(
            where, "redis.url", "is not a Redis URL", 'write redis://host:port/0, or "" for the embedded store'
        )


def _check_billing(settings: Settings, where: str) -> None:
    billing = settings.billing
    if billing.service_tier not in billing.allowed_service_tiers:
        raise ConfigError(
            where,
            "billing.service_tier",
            f"{billing.service_tier!r} is not among billing.allowed_service_tiers",
            "add it there, or choose one that is",
        )
    if billing.allow_background and not billing.allow_store:
        raise ConfigError(
            where,
            "billing.allow_background",
            "background responses are kept upstream, which billing.allow_store forbids",
            "set billing.allow_store = true as well",
        )
    if billing.auto_recharge and settings.stripe.automatic_tax:
        raise ConfigError(
            where,
            "billing.auto_recharge",
            "nobody computes the tax of a payment that is made by itself, "
            "and stripe.automatic_tax says that tax is due",
            "leave one of them off",
        )
    if not Fraction(billing.markup):
        raise ConfigError(
            where,
            "billing.markup",
            "would give everything away",
            'use charging_enabled = false with charging_disabled_mode = "free"',
        )


def _check_packages(settings: Settings, where: str) -> None:
    for package in settings.packages:
        paid = Fraction(package.usd) * 1_000_000
        if not paid or paid.denominator != 1 or (paid * Fraction(package.bonus_percent) / 100).denominator != 1:
            raise ConfigError(
                where,
                "packages",
                f"{package.code!r} is not a whole number of millicredits",
                "use cents, and a bonus that divides them",
            )
    codes = [package.code for package in settings.packages]
    if len(codes) != len(set(codes)):
        raise ConfigError(where, "packages", "two packages share a code", "give each package a code of its own")


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
