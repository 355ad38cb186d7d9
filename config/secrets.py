"""Keys and signing secrets: from the environment, or from files that proxy.toml names, never from proxy.toml itself."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from config.checks import find_http_url_problems, find_selling_problems
from config.errors import ConfigError, raise_problems
from config.settings import Settings
from config.upstreams import DEFAULT_NAME

API_KEY = re.compile(r"(?:sk|rk)_(test|live)_[A-Za-z0-9_]+")
WEBHOOK_SECRET = re.compile(r"whsec_[\x21-\x2b\x2d-\x7e]+")
VISIBLE = re.compile(r"[\x21-\x7e]+")
SHORTEST_NOTICES_SECRET = 16
SHORTEST_SERVICE_KEY = 32
MOST_SECRETS = 2
LONGEST_FILE = 65_536
"""Bytes of a secret's file: a device that never ends is none."""


class Secret:
    """A string that never shows itself: not in repr, not in str, not in a format or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Wrap `value`."""
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; call it only where the secret leaves for its owner."""
        return self._value

    def __bool__(self) -> bool:
        """Tell whether there is a secret."""
        return bool(self._value)

    def __repr__(self) -> str:
        """Return something that never is the value."""
        return "Secret(***)"

    __str__ = __repr__


class StripeKeys(NamedTuple):
    """Our key at Stripe, and the secrets Stripe signs with: the present one and, while rotating, the one before."""

    api_key: Secret
    webhook_secrets: tuple[Secret, ...]


def upstream_key(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret:
    """Return the OpenAI key: OPENAI_API_KEY, else the file named by upstream.api_key_file, else empty.

    Raises ConfigError when the file cannot be read, or the key holds characters no header may carry.
    """
    value, where, name = environ.get("OPENAI_API_KEY", "").strip(), "environment", "OPENAI_API_KEY"
    if not value and settings.upstream.api_key_file:
        where, name = settings.upstream.api_key_file, "upstream.api_key_file"
        try:
            value = _kept_in(settings.upstream.api_key_file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "proxy.toml",
                "upstream.api_key_file",
                f"cannot be read ({type(error).__name__})",
                "name a readable file that holds the key alone, or set OPENAI_API_KEY",
            ) from None
    if value and not VISIBLE.fullmatch(value):
        raise ConfigError(where, name, "has blanks or control characters in it", "paste the key alone")
    return Secret(value)


def upstream_keys(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, Secret]:
    """Return the key of each upstream by its name; an empty one where it has none.

    Raises ConfigError, which names every key that cannot be read, and shows none.
    """
    if not settings.upstreams:
        return {DEFAULT_NAME: upstream_key(settings, environ)}
    found, problems = dict[str, Secret](), list[str]()
    for entry in settings.upstreams:
        value = environ.get(entry.api_key_variable, "").strip()
        if entry.api_key_file:
            try:
                value = _kept_in(entry.api_key_file)
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{entry.name}: {entry.api_key_file} cannot be read ({type(error).__name__})")
                continue
        if value and not VISIBLE.fullmatch(value):
            problems.append(f"{entry.name}: its key has blanks or control characters in it")
        elif not value and entry.dialect != "generic":
            problems.append(f"{entry.name}: {entry.api_key_file or entry.api_key_variable} is empty")
        found[entry.name] = Secret(value)
    if problems:
        fix = "put each key alone into its file or variable"
        raise ConfigError("proxy.toml", "upstreams", "; ".join(problems), fix)
    return found


def stripe_keys(settings: Settings, environ: Mapping[str, str] = os.environ) -> StripeKeys | None:
    """Return Stripe's keys; None when Stripe is not configured.

    Raises ConfigError for half a configuration, keys of the wrong mode, or what could not be sold with them.
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
    found = StripeKeys(Secret(key), _webhook_secrets(secrets))
    _check_mode(key, livemode=settings.stripe.livemode)
    raise_problems(list(find_selling_problems(settings)))
    return found


def _webhook_secrets(text: str) -> tuple[Secret, ...]:
    if not text:
        raise ConfigError(
            "environment",
            "STRIPE_WEBHOOK_SECRET",
            "is not set, so anybody could say that they paid",
            "set it to the endpoint's signing secret (whsec_...), or unset STRIPE_API_KEY",
        )
    parts = tuple(part.strip() for part in text.split(","))
    if not all(WEBHOOK_SECRET.fullmatch(part) for part in parts) or len(parts) > MOST_SECRETS:
        raise ConfigError(
            "environment",
            "STRIPE_WEBHOOK_SECRET",
            "is not one or two whsec_... secrets",
            "paste the endpoint's signing secret",
        )
    return tuple(Secret(part) for part in parts)


def _check_mode(key: str, *, livemode: bool) -> None:
    mode = API_KEY.fullmatch(key)
    if mode is None:
        raise ConfigError(
            "environment",
            "STRIPE_API_KEY",
            "is not an sk_... or rk_... key",
            "paste the secret or restricted key alone",
        )
    if (mode[1] == "live") != livemode:
        raise ConfigError(
            "environment",
            "STRIPE_API_KEY",
            f"is a {mode[1]} key, but stripe.livemode is {str(livemode).lower()}",
            "use the key of that mode, or change stripe.livemode",
        )


def notices_secret(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """Return the secret that notices are signed with; None when no URL is configured. Raises ConfigError."""
    if not settings.notices.url:
        return None
    raise_problems(list(find_http_url_problems("notices.url", settings.notices.url)))
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
    """Return the key that the operator's app makes sign-in links with; None when there is none. Raises ConfigError."""
    key = _secret("PORTAL_SERVICE_KEY", settings.portal.service_key_file, "portal.service_key_file", environ)
    if settings.portal.public_url:
        raise_problems(list(find_http_url_problems("portal.public_url", settings.portal.public_url)))
    if key and len(key) < SHORTEST_SERVICE_KEY:
        raise ConfigError(
            "environment",
            "PORTAL_SERVICE_KEY",
            f"is shorter than {SHORTEST_SERVICE_KEY} characters",
            "use a long random one, such as `openssl rand -hex 32`",
        )
    return Secret(key) if key else None


def oidc_client_secret(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """Return our secret at the identity provider; None for a public client. Raises ConfigError."""
    admin = settings.admin
    secret = _secret("OIDC_CLIENT_SECRET", admin.oidc_client_secret_file, "admin.oidc_client_secret_file", environ)
    if secret and not VISIBLE.fullmatch(secret):
        raise ConfigError(
            "environment", "OIDC_CLIENT_SECRET", "has blanks or control characters in it", "paste the secret alone"
        )
    return Secret(secret) if secret and admin.oidc_client_id else None


def openai_admin_key(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """Return the key that OpenAI's costs are asked for with; None when they are not to be asked for.

    Raises ConfigError.
    """
    key = _secret("OPENAI_ADMIN_KEY", settings.jobs.openai_admin_key_file, "jobs.openai_admin_key_file", environ)
    if key and not VISIBLE.fullmatch(key):
        raise ConfigError(
            "environment", "OPENAI_ADMIN_KEY", "has blanks or control characters in it", "paste the key alone"
        )
    return Secret(key) if key else None


def upstream_admin_keys(settings: Settings) -> dict[str, Secret]:
    """Return the admin keys that upstreams have of their own, by name. Raises ConfigError."""
    found: dict[str, Secret] = {}
    for entry in settings.upstreams:
        if entry.admin_key_file:
            key = _secret("OPENAI_ADMIN_KEY", entry.admin_key_file, f"upstreams.{entry.name}.admin_key_file", {})
            found[entry.name] = Secret(key)
    return found


def _secret(name: str, path: str, key: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "").strip()
    if value or not path:
        return value
    try:
        return _kept_in(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "proxy.toml", key, f"cannot be read ({type(error).__name__})", f"name a readable file, or set {name}"
        ) from None


def _kept_in(path: str) -> str:
    """Return what the file of a secret holds. Raises OSError, also for one that is no secret's; UnicodeDecodeError."""
    with Path(path).open("rb") as file:
        raw = file.read(LONGEST_FILE + 1)
    if len(raw) > LONGEST_FILE:
        raise OSError(errno.EFBIG, "longer than any secret", path)
    return raw.decode().strip()
