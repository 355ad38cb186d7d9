"""proxy.toml and the environment → Settings. Every complaint names file, key, reason and fix."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from config.checks import check_combinations, check_passwords
from config.errors import ConfigError
from config.former_keys import refuse_former_keys, refuse_former_variables
from config.settings import ENV_PREFIX, Settings


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
    """Read the content of the toml file, lay the environment over it and validate the whole. Raises ConfigError."""
    document = _read_toml(raw, where)
    refuse_former_keys(document, where)
    refuse_former_variables(environ)
    overridden = _overlay_environment(document, environ)
    try:
        settings = msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        raise _explain(error, where, overridden) from None
    try:
        check_combinations(settings, where)
        check_passwords(settings, where, overridden)
    except ConfigError as error:
        if error.key in overridden:
            raise ConfigError(f"environment ({overridden[error.key]})", error.key, error.reason, error.fix) from None
        raise
    return settings


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
