"""JSON of a client, read: what it may be written like, and what is said of it where it cannot be read. Sans I/O.

Half of a surrogate pair (a text cut in the middle of an emoji) is no reason to refuse: it is read as U+FFFD, which is
as long, and goes upstream as it was sent. A whole number may be written 16, 16.0 or 1.6e1.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from proxy.web.rejections import Rejection, invalid

Whole = int | float | None
"""A field that holds a whole number: `whole_number` reads it."""
LARGEST = 2**53
"""Beyond it, JSON's numbers are not exact, and no field has a use for one."""
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""Ways of a parser to give up: what is no JSON, what is no UTF-8 and a number of thousands of digits, and nesting."""
MOST_TRIED = 10_000
"""Elements of a list that are looked at to say which one is wrong."""

_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\.", re.DOTALL
)
_HALF_LENGTH = len(rb"\ud83d")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STEPS = re.compile(r"\[\.\.\.\]|[^.\[]+")
_REASONS = {
    "trailing characters": "something follows the object",
    "trailing comma": "a comma with nothing behind it",
    "object keys must be strings": "a name that is not in double quotes",
    "invalid escape": "an escape that JSON does not have",
    "invalid character in unicode escape": "an escape that is not of four hexadecimal digits",
    "invalid number": "a number that is not written as in JSON",
    "invalid character": "a character that cannot stand there",
}
"""First words of a parser's complaint → ours."""
_KINDS = {
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


class JsonBody(NamedTuple):
    """Members of a body as they were sent; whether splicing after its first brace is enough; the body to decode."""

    members: dict[str, msgspec.Raw]
    verbatim: bool
    text: bytes


def top_level(body: bytes, known: frozenset[str]) -> JsonBody:
    """Take a body apart. Raises Rejection for no object, and for a member that is unknown or given twice."""
    members, text = split(body)
    unknown = members.keys() - known
    if unknown:
        name = min(unknown)
        raise invalid(f"Unrecognized request argument supplied: {name}. Remove it.", name, "unknown_parameter")
    compact = 1 + 4 * len(members) + sum(map(len, members)) + sum(map(len, members.values()))
    if compact != len(body) and len(body.strip()) != compact and not _stand_once(members, text):
        _refuse_duplicates(text)
    return JsonBody(members, bool(members), text)


def split(body: bytes) -> tuple[dict[str, msgspec.Raw], bytes]:
    """(members of an object as they were sent, the object to decode). Raises Rejection for no object.

    All of it is UTF-8: a parser that skips a member does not look, and upstream must not be the first to.
    """
    if not body.isascii() and (bad := _first_bad_byte(body)) is not None:
        raise _not_json("bytes that are not UTF-8", body, bad)
    try:
        return _members.decode(body), body
    except UNREADABLE as error:
        text = mended(body)
        if text is body:
            raise _unreadable(error, body) from None
        return _as_sent(_decoded(_members, text), text, body), text


def mended(body: bytes) -> bytes:
    """Body with every half of a surrogate pair as U+FFFD, at the same length; the same object where it has none."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    text = _ESCAPES.sub(lambda found: rb"\ufffd" if _is_half(found[0]) else found[0], body)
    return body if text == body else text


def _is_half(escape: bytes) -> bool:
    return len(escape) == _HALF_LENGTH


def _as_sent(members: dict[str, msgspec.Raw], text: bytes, body: bytes) -> dict[str, msgspec.Raw]:
    """Members cut out of the body as it was sent: `text` is as long, and differs in halves of pairs only."""
    position, found = 0, {}
    for name, raw in members.items():
        # a match too early would be another value that is the same but for such halves
        start = text.find(bytes(raw), position)
        position = start + len(raw) if start >= 0 else position
        found[name] = msgspec.Raw(body[start : start + len(raw)] if start >= 0 else bytes(raw))
    return found


def _stand_once(names: Iterable[str], body: bytes) -> bool:
    r"""Tell whether each name, of letters as all known ones are, is written once in all of a body: then none is given
    twice. Only with \u could one be written otherwise.
    """
    return b"\\u" not in body and all(body.count(b'"%b"' % name.encode()) == 1 for name in names)


def _refuse_duplicates(body: bytes) -> None:
    """Look closer when sizes do not add up to compact JSON: there are blanks, or members given twice."""
    pairs = loads(body, lambda found: found)
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid(f"The member `{twice}` is given twice: send it once.", twice, "duplicate_parameter")


def loads(body: bytes, pairs: Any) -> Any:
    """Read JSON whose objects are made by `pairs` out of their members. Raises Rejection."""
    try:
        return json.loads(body, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise _not_json(_REASONS["invalid character"], body, error.pos) from None
    except UNREADABLE as error:
        raise _unreadable(error, body) from None


def refuse_twins(body: bytes) -> Any:
    """Read JSON of which no object may have a member twice: two parsers could see two requests. Raises Rejection."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise invalid("A member of the request is given twice: send it once.", code="duplicate_parameter")
        return found

    return loads(body, once)


def has_twins(body: bytes) -> bool:
    """Tell whether an object in a readable body has a member twice."""
    try:
        refuse_twins(mended(body))
    except Rejection:
        return True
    return False


def decode(decoder: Any, body: bytes) -> Any:
    """Decode a body; msgspec's complaint becomes a sentence. Raises Rejection."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong(decoder, body, error) from None
    except UNREADABLE as error:
        text = mended(body)
        if text is body:
            raise _unreadable(error, body) from None
        return _decoded(decoder, text)


def _decoded(decoder: Any, text: bytes) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise _wrong(decoder, text, error) from None
    except UNREADABLE as error:
        raise _unreadable(error, text) from None


def whole_number(value: Any, name: str) -> int:
    """Take a whole number, however JSON writes it. Raises Rejection for any other value."""
    number = int(value) if type(value) is float and value.is_integer() else value
    if type(number) is not int:
        raise invalid(f"`{name}` must be a whole number.", name, "invalid_type")
    if abs(number) > LARGEST:
        raise invalid(f"`{name}` is too large a number.", name)
    return number


def optional_whole(value: Any, name: str) -> int | None:
    """As whole_number; None for none."""
    return None if value is None else whole_number(value, name)


# -- complaints ---------------------------------------------------------------------------------------


def _unreadable(error: Exception, body: bytes) -> Rejection:
    """Say why a body is not the JSON of an object."""
    if isinstance(error, RecursionError):
        return invalid("The request is nested too deeply.", code="invalid_json")
    if isinstance(error, UnicodeDecodeError):
        return _not_json("bytes that are not UTF-8", body, _first_bad_byte(body))
    if not isinstance(error, msgspec.DecodeError):
        return _not_json("a number that is too long", body)
    reason, _, place = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
    if isinstance(error, msgspec.ValidationError):
        return invalid("The request body must be a JSON object.", code="invalid_json")
    if not place:
        return invalid(
            f"The request body is not valid JSON: it ends after byte {len(body)}, before the object does. "
            "Send one JSON object.",
            code="invalid_json",
        )
    ours = next((ours for theirs, ours in _REASONS.items() if reason.startswith(theirs)), "an error")
    return _not_json(ours, body, int(place.rstrip(")")))


def _not_json(reason: str, body: bytes, byte: int | None = None) -> Rejection:
    line = body.count(b"\n", 0, byte) + 1
    where = "" if byte is None else f" near byte {byte}, in line {line}"
    return invalid(f"The request body is not valid JSON: {reason}{where}. Send one JSON object.", code="invalid_json")


def _first_bad_byte(body: bytes) -> int | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _wrong(decoder: Any, body: bytes, error: msgspec.ValidationError) -> Rejection:
    """Say which value is not what it must be, and what it must be."""
    reason, _, where = str(error).partition(" - at `$")
    try:
        path = _placed(decoder, body, where.rstrip("`"))
    except msgspec.ValidationError:  # a number that nobody can hold cannot be looked for either
        path = where.rstrip("`").removeprefix(".").replace("[...]", "")
    param = path.partition("[")[0].partition(".")[0]
    missing = re.search(r"required field `(\w+)`", reason)
    if missing:
        name = f"{path}.{missing[1]}" if path else missing[1]
        return invalid(f"Missing required parameter: {name!r}.", param or missing[1], "missing_required_parameter")
    named = repr(path) if path else "the body"
    return invalid(f"Invalid value for {named}: {_said(reason)}.", param or None, "invalid_type")


def _said(reason: str) -> str:
    """Put a complaint about a value in words."""
    found = re.fullmatch(r"Expected `([^`]+)`(?:, got `([^`]+)`)?", reason)
    if found is None:
        return "the number is too large" if "out of range" in reason else "it cannot be read"
    wanted = dict.fromkeys(_KINDS.get(kind, kind) for kind in found[1].split(" | ") if kind != "null")
    got = f", not {_KINDS.get(found[2], found[2])}" if found[2] else ""
    return f"expected {' or '.join(wanted)}{got}"


def _placed(decoder: Any, body: bytes, path: str) -> str:
    """Path with the places in lists, which msgspec leaves out: found by trying one element at a time."""
    steps = _STEPS.findall(path)
    if steps and steps[0] == "[...]":  # a body of any members
        return next((name for name, raw in _decoded(_members, body).items() if not _is_readable(raw)), "")
    if "[...]" not in path:
        return path.removeprefix(".")
    document = {steps[0]: msgspec.json.decode(_decoded(_members, body)[steps[0]])}
    shown, at = "", list[str | int]()
    for step in steps:
        if step != "[...]":
            shown, at = f"{shown}.{step}", [*at, step]
            continue
        items = _at(document, at)
        trials = (_with(document, at, [item]) for item in (items[:MOST_TRIED] if isinstance(items, list) else ()))
        index, document = next(
            ((index, trial) for index, trial in enumerate(trials) if _fails_at(decoder, trial, path)), (-1, document)
        )
        if index < 0:
            return path.removeprefix(".").replace("[...]", "")
        shown, at = f"{shown}[{index}]", [*at, 0]
    return shown.removeprefix(".")


def _at(value: Any, path: list[str | int]) -> Any:
    for step in path:
        value = value[step]
    return value


def _with(value: Any, path: list[str | int], inner: Any) -> Any:
    """Copy of a value with another one at a path."""
    if not path:
        return inner
    changed = value.copy()
    changed[path[0]] = _with(value[path[0]], path[1:], inner)
    return changed


def _fails_at(decoder: Any, value: Any, path: str) -> bool:
    try:
        decoder.decode(msgspec.json.encode(value))
    except msgspec.ValidationError as error:
        return str(error).endswith(f" - at `${path}`")
    return False


def _is_readable(raw: msgspec.Raw) -> bool:
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    return True
