"""proxy.toml and the environment → Settings. Every complaint names file, line, key, reason and fix."""

import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from config.checks import find_passwords, find_problems
from config.errors import ConfigError, raise_problems
from config.former_keys import former_variables, take_former_keys
from config.settings import ENV_PREFIX, Settings, variable_of
from config.shape import check_shape, keys_of, nearest_key
from config.toml_lines import TomlProblem, key_lines, read_toml
from config.upstreams import find_two_ways

LISTS = ("packages", "upstreams")
"""Tables of which there are several: a variable sets all of them, as JSON."""


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
    """Read the content of the toml file, lay the environment over it and validate the whole.

    Raises ConfigError, with every problem there is.
    """
    text = _text_of(raw, where)
    lines_of = cache(lambda: key_lines(text))  # asked for by a complaint only: looking for them is most of the work

    def in_file(key: str, reason: str, fix: str, line: int | None = None) -> ConfigError:
        lines = lines_of()
        return ConfigError(where, key, reason, fix, line or lines.get(key) or lines.get(key.partition("[")[0]))

    document, unreadable = _read(text, where)
    problems = [in_file(found.key, found.reason, found.fix, found.line) for found in unreadable]
    document, former = take_former_keys(document)
    problems += [in_file(*found) for found in former]
    overridden, in_environment = _overlay_environment(document, environ)
    clean, misfits = check_shape(document)

    def placed(error: ConfigError) -> ConfigError:
        variable = overridden.get(error.key.partition("[")[0])
        if variable is not None:
            return ConfigError(f"environment ({variable})", error.key, error.reason, error.fix)
        return in_file(error.key, error.reason, error.fix)

    problems += [placed(ConfigError(where, *found)) for found in misfits]
    broken = {problem.key.partition("[")[0] for problem in (*problems, *in_environment)}
    settings = msgspec.convert(clean, Settings)
    problems += [placed(found) for found in find_problems(settings, where, broken)]
    if not broken & {"upstream.base_url", "upstream.api_key_file", "upstreams"}:
        problems += [placed(found) for found in find_two_ways(settings, where)]
    problems += [placed(found) for found in find_passwords(settings, where, overridden)]
    raise_problems([*sorted(problems, key=lambda found: found.line or sys.maxsize), *in_environment])
    return settings


def _text_of(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")  # editors on Windows put a mark before the text
    except UnicodeDecodeError:
        raise ConfigError(where, "(file)", "is not UTF-8 text", "save it as UTF-8") from None


def _read(text: str, where: str) -> tuple[dict[str, Any], list[TomlProblem]]:
    try:
        return read_toml(text)
    except (RecursionError, ValueError) as error:
        # tables nested too deep, a number of thousands of digits: the reader gives up without a TOMLDecodeError
        raise ConfigError(
            where, "(file)", f"cannot be read as TOML ({type(error).__name__})", "undo the last edit"
        ) from None


def _overlay_environment(
    document: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[ConfigError]]:
    """Lay TOLLKEEPER_<SECTION>__<KEY> over the document; return dotted key → variable name, and what cannot be laid."""
    overridden, problems = dict[str, str](), former_variables(environ)
    known = {problem.key for problem in problems}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            try:
                overridden |= _overlay(document, name, environ[name])
            except ConfigError as error:
                problems.append(error)
    return overridden, problems


def _overlay(document: dict[str, Any], name: str, raw: str) -> dict[str, str]:
    """Lay one variable over the document; return its dotted key → its name. Raises ConfigError."""
    section, separator, key = name[len(ENV_PREFIX) :].lower().partition("__")
    if not separator:
        if section == "config":
            return {}  # names the file itself (proxy/cli/main.py)
        if section in LISTS:
            document[section] = _json_value(name, raw)
            return {section: name}
        raise ConfigError("environment", name, "names no section and key", _near_variable(section, ""))
    field_type = _field_type(section, key)
    if field_type is None:
        raise ConfigError("environment", name, f"there is no setting {section}.{key}", _near_variable(section, key))
    value: Any = raw if _is_text(field_type) else _json_value(name, raw)
    table = document.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError("environment", name, f"{section} is not a table in the file", "make it a [section]")
    table[key] = value
    return {f"{section}.{key}": name}


def _near_variable(section: str, key: str) -> str:
    """Return what to write instead of a variable that there is not."""
    if not key:
        # LISTEN_PORT for LISTEN__PORT
        section, _, key = section.partition("_")
        meant = f"{section}.{key}" if key in keys_of(section) else None
        return f"did you mean {variable_of(meant)}?" if meant else "write TOLLKEEPER_<SECTION>__<KEY>"
    meant = nearest_key(section, key)
    return f"did you mean {variable_of(meant)}?" if meant else "unset it; proxy.toml lists every key"


def _field_type(section: str, key: str) -> msgspec.inspect.Type | None:
    return _field_types().get((section, key))


@cache
def _field_types() -> dict[tuple[str, str], msgspec.inspect.Type]:
    """Return the type of every key by section and key."""
    root = msgspec.inspect.type_info(Settings)
    sections = root.fields if isinstance(root, msgspec.inspect.StructType) else ()
    return {
        (section.name, key.name): key.type
        for section in sections
        if isinstance(section.type, msgspec.inspect.StructType)
        for key in section.type.fields
    }


def _is_text(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.LiteralType):
        return True
    return isinstance(kind, msgspec.inspect.StrType)


def _json_value(name: str, raw: str) -> Any:
    try:
        return msgspec.json.decode(raw.encode())
    except (msgspec.DecodeError, RecursionError):
        raise ConfigError(
            "environment", name, f"{raw!r} is not JSON", 'write true/false, a number, or a list such as ["gpt-*"]'
        ) from None
