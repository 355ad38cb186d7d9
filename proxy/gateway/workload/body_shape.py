"""Shape of a JSON body, judged before it is parsed: how much work reading it would be. Pure.

Reading JSON costs by its values, not by its bytes: 20 MB of `{}` take a hundred times longer than one text of 20 MB.
What stands outside of strings is found by leaping from quote to quote, which costs nothing a byte; a body of many texts
is split at its quotes instead, so the look costs a few passes of C code at most, whatever the bytes are. docs/adr/0052
says where the bounds come from.
"""

from itertools import accumulate

from proxy.web.rejections import Rejection, invalid

LARGE_BODY = 65_536
"""Bytes from which a body is looked at before it is parsed."""
MANY_CONTAINERS = 500
"""Objects and lists from which a smaller one is."""
MOST_CONTAINERS = 100_000
MOST_MEMBERS = 200_000
MOST_VALUES = 500_000
"""Objects and lists, members of objects, values of any kind: the largest context window has room for fewer."""
MOST_DEPTH = 500
"""Levels of nesting. A body with fewer containers cannot have more, so no parser of ours meets its own limit."""
MOST_QUOTES = 2 * (MOST_MEMBERS + MOST_VALUES)
FEW_TEXTS, FEW_ESCAPES = 4_000, 64
"""Strings of a body, and escapes of a string, that are leaped over one by one."""
ONLY_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
LEVELS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def is_heavy(body: bytes) -> bool:
    """Tell whether reading a body may be more than a moment's work."""
    return len(body) > LARGE_BODY or body.count(b"{") + body.count(b"[") > MANY_CONTAINERS


def check_shape(body: bytes) -> None:
    """Refuse JSON that holds more than a model could read. Raises Rejection; a body that is no JSON may pass."""
    outside = _outside_of_texts(body)
    containers = outside.count(b"{") + outside.count(b"[")
    if containers > MOST_CONTAINERS:
        raise _too_many("objects and lists", MOST_CONTAINERS)
    if outside.count(b":") > MOST_MEMBERS:
        raise _too_many("members", MOST_MEMBERS)
    if containers + outside.count(b",") > MOST_VALUES:
        raise _too_many("values", MOST_VALUES)
    if containers > MOST_DEPTH and _depth(outside) > MOST_DEPTH:
        raise invalid(f"The request is nested more than {MOST_DEPTH} levels deep.", code="invalid_json")


def _outside_of_texts(body: bytes) -> bytes:
    """Return what stands between the strings of a body. Raises Rejection for too many strings."""
    parts: list[bytes] = []
    at = 0
    for _ in range(FEW_TEXTS):
        start = body.find(b'"', at)
        if start < 0:
            return b"".join((*parts, body[at:]))
        end = _end_of_text(body, start + 1)
        if end < 0:
            break
        parts.append(body[at:start])
        at = end
    rest = body[at:]
    if b"\\" in rest:
        rest = rest.replace(b"\\\\", b"").replace(b'\\"', b"")
    if rest.count(b'"') > MOST_QUOTES:
        raise _too_many("texts", MOST_QUOTES // 2)
    return b"".join((*parts, *rest.split(b'"')[::2]))


def _end_of_text(body: bytes, start: int) -> int:
    """Position behind the string that begins at `start`; -1 where it is full of escapes, and no leap finds its end."""
    at = start
    for _ in range(FEW_ESCAPES):
        end = body.find(b'"', at)
        if end < 0:
            return len(body)
        before = body[max(start, end - FEW_ESCAPES) : end]
        escapes = len(before) - len(before.rstrip(b"\\"))
        if escapes == FEW_ESCAPES:
            return -1
        at = end + 1
        if escapes % 2 == 0:
            return at
    return -1


def _depth(outside: bytes) -> int:
    return max(accumulate(map(LEVELS.__getitem__, outside.translate(None, ONLY_BRACKETS))), default=0)


def _too_many(what: str, most: int) -> Rejection:
    message = f"The request body holds more than {most} {what}: no model reads as much. Send less, or several requests."
    return invalid(message, code="too_many_values")
