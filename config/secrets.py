"""Stripe's keys, OpenAI's admin key and the notices' secret: from the environment or from files, never from proxy.toml."""

import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from config.load import ConfigError
from config.settings import Secret, Settings

API_KEY = re.compile(r"(?:sk|rk)_(test|live)_[A-Za-z0-9_]+")
WEBHOOK_SECRET = re.compile(r"whsec_[\x21-\x2b\x2d-\x7e]+")
SHORTEST_NOTICES_SECRET = 16
SHORTEST_SERVICE_KEY = 32
MOST_SECRETS = 2


class StripeKeys(NamedTuple):
    """What Stripe knows us by, and what it signs with: the present secret and, while rotating, the one before."""

    api_key: Secret
    webhook_secrets: tuple[Secret, ...]


def stripe_keys(settings: Settings, environ: Mapping[str, str] = os.environ) -> StripeKeys | None:
    """The keys; None when Stripe is not configured.

    Raises ConfigError for half a configuration or keys of the wrong mode.
    """
    key = _secret("STRIPE_API_KEY", settings.stripe.api_key_file, "stripe.api_key_file", environ)
    secrets = _secret(
        "STRIPE_WEBHOOK_SECRET", settings.stripe.webhook_secret_file, "stripe.webhook_secret_file", environ
    )
    if not key and not secrets:
        return None
    if not key:
        raise ConfigError(
            "environment", "STRIPE_API_KEY", "is not set, but STRIPE_WEBHOOK_SECRET is", "set both, or neither"
        )
    if not secrets:
        raise ConfigError(
            "environment",
            "STRIPE_WEBHOOK_SECRET",
            "is not set, so anybody could say that they paid",
            "set it to the endpoint's signing secret (whsec_...), or unset STRIPE_API_KEY",
        )
    parts = tuple(part.strip() for part in secrets.split(","))
    if not all(WEBHOOK_SECRET.fullmatch(part) for part in parts) or len(parts) > MOST_SECRETS:
        raise ConfigError(
            "environment",
            "STRIPE_WEBHOOK_SECRET",
            "is not one or two whsec_... secrets",
            "paste the endpoint's signing secret",
        )
    mode = API_KEY.fullmatch(key)
    if mode is None:
        raise ConfigError(
            "environment",
            "STRIPE_API_KEY",
            "is not an sk_... or rk_... key",
            "paste the secret or restricted key alone",
        )
    if (mode[1] == "live") != settings.stripe.livemode:
        raise ConfigError(
            "environment",
            "STRIPE_API_KEY",
            f"is a {mode[1]} key, but stripe.livemode is {str(settings.stripe.livemode).lower()}",
            "use the key of that mode, or change stripe.livemode",
        )
    _check_urls(settings)
    for package in settings.packages:
        if (Fraction(package.usd) * 100).denominator != 1:
            raise ConfigError(
                "proxy.toml", "packages", f"{package.code!r} does not cost whole cents", "Stripe sells in cents"
            )
    return StripeKeys(Secret(key), tuple(Secret(part) for part in parts))


def notices_secret(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """What notices are signed with; None when no URL is configured. Raises ConfigError."""
    if not settings.notices.url:
        return None
    _check_url("notices.url", settings.notices.url)
    secret = _secret("NOTICES_SECRET", settings.notices.secret_file, "notices.secret_file", environ)
    if len(secret) < SHORTEST_NOTICES_SECRET:
        raise ConfigError(
            "environment",
            "NOTICES_SECRET",
            f"is not set or shorter than {SHORTEST_NOTICES_SECRET} characters",
            "set it to a long random string that the receiving app knows too",
        )
    return Secret(secret)


def service_key(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """What the operator's app makes sign-in links with; None when there is none. Raises ConfigError."""
    key = _secret("PORTAL_SERVICE_KEY", settings.portal.service_key_file, "portal.service_key_file", environ)
    if settings.portal.public_url:
        _check_url("portal.public_url", settings.portal.public_url)
    if key and len(key) < SHORTEST_SERVICE_KEY:
        raise ConfigError(
            "environment",
            "PORTAL_SERVICE_KEY",
            f"is shorter than {SHORTEST_SERVICE_KEY} characters",
            "use a long random one, such as `openssl rand -hex 32`",
        )
    return Secret(key) if key else None


def openai_admin_key(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """What OpenAI's costs are asked for with; None when there is none, and then they are not. Raises ConfigError."""
    key = _secret("OPENAI_ADMIN_KEY", settings.jobs.openai_admin_key_file, "jobs.openai_admin_key_file", environ)
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(
            "environment", "OPENAI_ADMIN_KEY", "has blanks or control characters in it", "paste the key alone"
        )
    return Secret(key) if key else None


def _secret(name: str, path: str, key: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "").strip()
    if value or not path:
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "proxy.toml", key, f"cannot be read ({type(error).__name__})", f"name a readable file, or set {name}"
        ) from None


def _check_urls(settings: Settings) -> None:
    _check_url("stripe.success_url", settings.stripe.success_url)
    _check_url("stripe.cancel_url", settings.stripe.cancel_url)
    if settings.stripe.api_base:
        _check_url("stripe.api_base", settings.stripe.api_base)
        if settings.stripe.livemode:
            raise ConfigError("proxy.toml", "stripe.api_base", "names a simulator in live mode", "leave it empty")


def _check_url(key: str, url: str) -> None:
    fits = re.fullmatch("[!-~]+", url)
    parts = urlsplit(url.replace("{CHECKOUT_SESSION_ID}", "cs")) if fits else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ConfigError("proxy.toml", key, "is not an http(s) URL", 'write it like "https://app.example.com/credits"')
