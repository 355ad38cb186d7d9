"""Names and types of a document, each problem with a cure that can be typed. Pure.

A key at a time, not the whole document at once: one wrong key hides no other.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from config.settings import Package, Settings, UpstreamEntry

SECTIONS = {field.name: field for field in msgspec.structs.fields(Settings)}
LISTED: dict[str, type[msgspec.Struct]] = {"packages": Package, "upstreams": UpstreamEntry}
"""Tables of which there are several → one of them."""
LISTED_KEYS = {name: {field.name: field for field in msgspec.structs.fields(kind)} for name, kind in LISTED.items()}
SHORTEST_BEGINNING = 3
COMMENT = "see the comment at this key in proxy.toml"
ELSE_REMOVE = "remove it (proxy.toml lists every key)"
QUOTED_NUMBER = 'write a plain number in quotes, such as "1.25"'


class ShapeProblem(NamedTuple):
    """A key that is none, or whose value is none it can have."""

    key: str
    reason: str
    fix: str


def keys_of(section: str) -> Mapping[str, msgspec.structs.FieldInfo]:
    """Return the keys of a section; empty when there is no such section."""
    if section not in SECTIONS or section in LISTED:
        return {}
    return {field.name: field for field in msgspec.structs.fields(SECTIONS[section].type)}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return what somebody most likely meant."""
    word, known = word.lower(), list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.65)
    begun = [name for name in known if len(word) >= SHORTEST_BEGINNING and name.startswith(word)]
    return found[0] if found else next(iter(begun), None)


def nearest_key(section: str, key: str) -> str | None:
    """Return the dotted key that was most likely meant: of this section, else of that name in another, else alike."""
    name = section if section in SECTIONS else nearest(section, SECTIONS)
    if name and (alike := key if key in keys_of(name) else nearest(key, keys_of(name))):
        return f"{name}.{alike}"
    return next((f"{other}.{key}" for other in SECTIONS if key in keys_of(other)), None)


def check_shape(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[ShapeProblem]]:
    """Return the document without what is wrong in it, and what that is."""
    good, problems = dict[str, Any](), list[ShapeProblem]()
    for name, value in document.items():
        if name not in SECTIONS:
            problems.append(ShapeProblem(name, "is not a known setting", _unknown_section(name, value)))
        elif name in LISTED:
            good[name] = _check_listed(name, value, problems)
        elif not isinstance(value, dict):
            reason, _ = _misfit(value, SECTIONS[name].type)
            problems.append(ShapeProblem(name, reason, f"make it a table: [{name}]"))
        else:
            good[name] = _check_table(name, value, keys_of(name), problems)
    return good, problems


def _check_table(
    place: str,
    table: Mapping[str, Any],
    known: Mapping[str, msgspec.structs.FieldInfo],
    problems: list[ShapeProblem],
) -> dict[str, Any]:
    good = {}
    for key, value in table.items():
        if key not in known:
            meant = (
                nearest_key(place, key)
                if not any(known is one for one in LISTED_KEYS.values())
                else nearest(key, known)
            )
            fix = f"did you mean {meant}? Otherwise {ELSE_REMOVE}" if meant else ELSE_REMOVE
            problems.append(ShapeProblem(f"{place}.{key}", "is not a known setting", fix))
            continue
        reason, inside = _misfit(value, known[key].type)
        if reason:
            problems.append(ShapeProblem(f"{place}.{key}{inside}", reason, _cure(key, value, known[key].type, reason)))
        else:
            good[key] = value
    return good


def _check_listed(section: str, value: Any, problems: list[ShapeProblem]) -> list[Any]:
    """Check tables of which there are several."""
    begin = f"begin each {section[:-1]} with [[{section}]]"
    if not isinstance(value, list):
        reason, _ = _misfit(value, SECTIONS[section].type)
        problems.append(ShapeProblem(section, reason, begin))
        return []
    good, known = [], LISTED_KEYS[section]
    for number, one in enumerate(value):
        place, before = f"{section}[{number}]", len(problems)
        if not isinstance(one, dict):
            problems.append(ShapeProblem(place, _misfit(one, LISTED[section])[0], begin))
            continue
        found = _check_table(place, one, known, problems)
        for name, field in known.items():
            if field.required and name not in one:
                problems.append(ShapeProblem(place, f"Object missing required field `{name}`", f"give it a {name}"))
        if len(problems) == before:
            good.append(found)
    return good


def _misfit(value: Any, kind: Any) -> tuple[str, str]:
    """Return why the value is none of this type, and where inside it; twice "" when it is one."""
    try:
        msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        return reason.rstrip("."), place.rstrip("`")
    return "", ""


def _unknown_section(name: str, value: Any) -> str:
    if not isinstance(value, dict) and (meant := nearest_key("", name)):
        section, _, key = meant.partition(".")
        return f"write {key} under [{section}]"
    if meant := nearest(name, SECTIONS):
        return f"did you mean [{meant}]? Otherwise {ELSE_REMOVE}"
    return ELSE_REMOVE


def _cure(key: str, value: Any, kind: Any, reason: str) -> str:
    """Return what to type instead. A text is never shown again: it could be a secret in the wrong place."""
    wanted = (re.match("Expected `([a-z]+)`", reason) or ("", ""))[1]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if "regex" in reason:
        return QUOTED_NUMBER if "[0-9]{1,9}" in reason else COMMENT
    if wanted == "str" and number:
        return f'put it in quotes: {key} = "{value}"'
    if wanted == "str" and isinstance(value, list):
        return f'write each in quotes: {key} = ["..."]'
    if wanted == "str":
        return f'write text in quotes: {key} = "..."'
    if wanted == "bool":
        return f"write {key} = true or {key} = false, without quotes"
    if wanted == "int" and number and (least := re.search(r">= (\d+)", reason)):
        return f"write {least[1]} or more"
    if wanted == "int":
        bare = isinstance(value, str) and re.fullmatch("-?[0-9]{1,10}", value)
        return f"write it without quotes: {key} = {value}" if bare else "write a whole number, without quotes"
    if wanted == "float":
        return "write a number, without quotes"
    if wanted == "array" and ">" not in reason:
        return f'write a list: {key} = ["..."]'
    return _choices(value, kind) or COMMENT


def _choices(value: Any, kind: Any) -> str:
    choices = list(_literals(msgspec.inspect.type_info(kind)))
    if not choices:
        return ""
    wrong = [word for word in (value if isinstance(value, list) else [value]) if word not in choices]
    meant = nearest(str(wrong[0]), choices) if wrong else None
    return f"{f'did you mean {meant}? ' if meant else ''}It is one of {', '.join(choices)}"


def _literals(kind: msgspec.inspect.Type) -> Iterator[str]:
    match kind:
        case msgspec.inspect.LiteralType():
            yield from (str(value) for value in kind.values)
        case msgspec.inspect.VarTupleType():
            yield from _literals(kind.item_type)
        case _:
            return
