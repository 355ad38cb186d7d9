"""proxy.toml and the environment → Settings. Every complaint names file, key, reason and fix."""

import os
import re
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from config.settings import Secret, Settings

ENV_PREFIX = "TOLLKEEPER_"
DATABASE_SCHEMES = ("sqlite+aiosqlite", "postgresql+asyncpg")


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, key, reason and fix."""

    def __init__(self, where: str, key: str, reason: str, fix: str) -> None:
        """`where` is a file name or `environment`; `key` is dotted."""
        super().__init__(f"{where}: {key}: {reason}. Fix: {fix}")
        self.where, self.key, self.reason, self.fix = where, key, reason, fix


def load_settings(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the toml file (none: defaults only), lay the environment over it and validate the whole.

    Raises ConfigError.
    """
    if path is None:
        return parse_settings(b"", "defaults", environ)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), "(file)", f"cannot be read ({error.strerror})", "name an existing file") from None
    return parse_settings(raw, str(path), environ)


def parse_settings(raw: bytes, where: str, environ: Mapping[str, str] = os.environ) -> Settings:
    """The content of the toml file under the environment, validated whole. Raises ConfigError."""
    document = _read_toml(raw, where)
    overridden = _overlay_environment(document, environ)
    try:
        settings = msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        raise _explain(error, where, overridden) from None
    try:
        check_combinations(settings, where)
        _check_secrets(settings, where, overridden)
    except ConfigError as error:
        if error.key in overridden:
            raise ConfigError(f"environment ({overridden[error.key]})", error.key, error.reason, error.fix) from None
        raise
    return settings


def upstream_key(settings: Settings, environ: Mapping[str, str] = os.environ) -> Secret:
    """The OpenAI key: OPENAI_API_KEY, else the file named by upstream.api_key_file, else empty.

    Raises ConfigError when the file cannot be read, or the key holds characters no header may carry.
    """
    value, where, name = environ.get("OPENAI_API_KEY", "").strip(), "environment", "OPENAI_API_KEY"
    if not value and settings.upstream.api_key_file:
        where, name = settings.upstream.api_key_file, "upstream.api_key_file"
        try:
            value = Path(settings.upstream.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "proxy.toml",
                "upstream.api_key_file",
                f"cannot be read ({type(error).__name__})",
                "name a readable file that holds the key alone, or set OPENAI_API_KEY",
            ) from None
    if value and not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ConfigError(where, name, "has blanks or control characters in it", "paste the key alone")
    return Secret(value)


def _read_toml(raw: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))  # editors on Windows put a mark before the text
    except UnicodeDecodeError:
        raise ConfigError(where, "(file)", "is not UTF-8 text", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, "(file)", f"is not valid TOML: {error}", "correct that line") from None
    except (RecursionError, ValueError) as error:
        # tables nested too deep, a number of thousands of digits: the reader gives up without a TOMLDecodeError
        raise ConfigError(
            where, "(file)", f"cannot be read as TOML ({type(error).__name__})", "undo the last edit"
        ) from None


def _overlay_environment(document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Lay TOLLKEEPER_<SECTION>__<KEY> over the document; return dotted key → variable name."""
    overridden: dict[str, str] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX):
            continue
        section, separator, key = name[len(ENV_PREFIX) :].lower().partition("__")
        if not separator:
            if section == "config":
                continue  # names the file itself (proxy/cli/main.py)
            if section == "packages":
                document["packages"] = _json_value(name, environ[name])
                overridden["packages"] = name
                continue
            raise ConfigError("environment", name, "names no section and key", "write TOLLKEEPER_<SECTION>__<KEY>")
        field_type = _field_type(section, key)
        if field_type is None:
            raise ConfigError(
                "environment", name, f"there is no setting {section}.{key}", "see proxy.toml for the names"
            )
        raw = environ[name]
        value: Any = raw if _is_text(field_type) else _json_value(name, raw)
        table = document.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError("environment", name, f"{section} is not a table in the file", "make it a [section]")
        table[key] = value
        overridden[f"{section}.{key}"] = name
    return overridden


def _field_type(section: str, key: str) -> msgspec.inspect.Type | None:
    root = msgspec.inspect.type_info(Settings)
    for name in (section, key):
        if not isinstance(root, msgspec.inspect.StructType):
            return None
        found = next((field.type for field in root.fields if field.name == name), None)
        if found is None:
            return None
        root = found
    return root


def _is_text(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.LiteralType):
        return True
    return isinstance(kind, msgspec.inspect.StrType)


def _json_value(name: str, raw: str) -> Any:
    try:
        return msgspec.json.decode(raw.encode())
    except msgspec.DecodeError:
        raise ConfigError(
            "environment", name, f"{raw!r} is not JSON", 'write true/false, a number, or a list such as ["gpt-*"]'
        ) from None


def _explain(error: msgspec.ValidationError, where: str, overridden: Mapping[str, str]) -> ConfigError:
    reason, _, location = str(error).partition(" - at `$.")
    key = location.rstrip("`") or "(top level)"
    unknown = re.search(r"unknown field `([^`]+)`", reason)
    fix = "see the comment at this key in proxy.toml"
    if unknown:
        key = f"{location.rstrip('`')}.{unknown[1]}".lstrip(".")
        reason, fix = "is not a known setting", "remove it, or correct its spelling (proxy.toml lists every key)"
    setting = key.partition("[")[0]
    if setting in overridden:
        where = f"environment ({overridden[setting]})"
    return ConfigError(where, key, reason.rstrip("."), fix)


def check_combinations(settings: Settings, where: str) -> None:
    """Refuse settings that are each valid and cannot work together."""
    if settings.listen.workers > 1 and not settings.redis.url:
        raise ConfigError(
            where,
            "listen.workers",
            f"{settings.listen.workers} workers cannot share the embedded store, which lives in one process's memory",
            "set redis.url, or listen.workers = 1",
        )
    base = _parts(settings.upstream.base_url) if re.fullmatch("[!-~]+", settings.upstream.base_url) else None
    if (
        base is None
        or base.scheme not in ("http", "https")
        or not base.hostname
        or base.query
        or base.fragment
        or base.username
    ):
        raise ConfigError(
            where,
            "upstream.base_url",
            "is not a plain http(s) URL",
            'write it like "https://api.openai.com/v1"',
        )
    _check_operations(settings, where)
    if settings.log.opentelemetry and find_spec("opentelemetry") is None:
        raise ConfigError(
            where, "log.opentelemetry", "OpenTelemetry is not installed", "pip install 'tollkeeper[otel]', or say false"
        )
    scheme = settings.database.url.partition(":")[0]
    if scheme not in DATABASE_SCHEMES or _parts(settings.database.url) is None:
        raise ConfigError(
            where,
            "database.url",
            f"{scheme[:30]!r} is not a database we speak, or the rest of the URL is broken",
            'use "sqlite+aiosqlite:///path" or "postgresql+asyncpg://..."',
        )
    redis = _parts(settings.redis.url)
    if settings.redis.url and (redis is None or redis.scheme not in ("redis", "rediss", "unix")):
        raise ConfigError(
            where, "redis.url", "is not a Redis URL", 'write redis://host:port/0, or "" for the embedded store'
        )
    if settings.billing.service_tier not in settings.billing.allowed_service_tiers:
        raise ConfigError(
            where,
            "billing.service_tier",
            f"{settings.billing.service_tier!r} is not among billing.allowed_service_tiers",
            "add it there, or choose one that is",
        )
    if settings.billing.allow_background and not settings.billing.allow_store:
        raise ConfigError(
            where,
            "billing.allow_background",
            "background responses are kept upstream, which billing.allow_store forbids",
            "set billing.allow_store = true as well",
        )
    if settings.billing.auto_recharge and settings.stripe.automatic_tax:
        raise ConfigError(
            where,
            "billing.auto_recharge",
            "nobody computes the tax of a payment that is made by itself, and stripe.automatic_tax says that tax is due",
            "leave one of them off",
        )
    if not Fraction(settings.billing.markup):
        raise ConfigError(
            where,
            "billing.markup",
            "would give everything away",
            'use charging_enabled = false with charging_disabled_mode = "free"',
        )
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


def _check_operations(settings: Settings, where: str) -> None:
    listen, admin = settings.listen, settings.admin
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
    if admin.oidc_issuer and not (admin.oidc_audience and admin.oidc_jwks_url):
        raise ConfigError(
            where,
            "admin.oidc_issuer",
            "needs admin.oidc_audience and admin.oidc_jwks_url beside it",
            "name the audience that tokens for this service carry, and where the issuer's keys are",
        )
    for key, url in (
        ("admin.oidc_jwks_url", admin.oidc_jwks_url),
        ("jobs.openai_costs_url", settings.jobs.openai_costs_url),
    ):
        parts = _parts(url) if url else None
        if url and (parts is None or parts.scheme not in ("http", "https") or not parts.hostname):
            raise ConfigError(where, key, "is not an http(s) URL", 'write it like "https://id.example.com/jwks.json"')


def _check_secrets(settings: Settings, where: str, overridden: Mapping[str, str]) -> None:
    """Refuse passwords in the file: it is read by more eyes than the environment."""
    for key, url in (("database.url", settings.database.url), ("redis.url", settings.redis.url)):
        parts = _parts(url)
        if key not in overridden and parts is not None and parts.password:
            name = ENV_PREFIX + key.replace(".", "__").upper()
            raise ConfigError(
                where,
                key,
                "has a password in it, and secrets never stand in the file",
                f"set {name} in the environment",
            )


def _parts(url: str) -> SplitResult | None:
    """The parts of a URL, or None when it is none."""
    if re.search(r"[\x00-\x1f\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
