"""Server-sent events, sans I/O: cut a byte stream into whole events without changing a byte.

A line ends in CR, LF or CRLF, an event in two of them, in any combination (HTML standard, 9.2.5). One expression says
so for everybody here.
"""

import re

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
BOUNDARY = re.compile(_LINE_END + _LINE_END)
DATA_LINE = re.compile(rb"(?:^|(?<=[\r\n]))(?:\xef\xbb\xbf)?data:[ ]?([^\r\n]*)")
COLON = rb"\s*(?:data:\s*)*:\s*(?:data:\s*)*"
"""Between a name and its value in an event's JSON, which may go on in another line of data at any blank."""
BEGINNINGS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""First bytes of an event stream, after blank lines and a byte order mark."""
BLANKS, MOST_BLANKS = b"\xef\xbb\xbf\r\n \t", 4_096
"""Bytes that may stand before what an answer is, and how many of them are waited through to know it."""


def last_boundary(data: bytes) -> int:
    """Position at which the last whole event ends (0 = there is none yet)."""
    if data.endswith(b"\n\n"):
        return len(data)
    if b"\r" not in data:
        return data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
    end = 0
    for match in BOUNDARY.finditer(data):
        end = match.end()
    return end


def next_boundary(data: bytes, start: int) -> int:
    """Position at which the event around `start` ends."""
    match = BOUNDARY.search(data, start)
    return match.end() if match else len(data)


def split_events(data: bytes) -> list[bytes]:
    """Whole events, each with its ending; joined they are `data` again."""
    events, start = [], 0
    for match in BOUNDARY.finditer(data):
        events.append(data[start : match.end()])
        start = match.end()
    if start < len(data):
        events.append(data[start:])
    return events


def event_data(event: bytes) -> bytes:
    """Payload of an event: its data lines joined by newlines."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    return b"\n".join(DATA_LINE.findall(event))


def begins_events(data: bytes) -> bool:
    """Tell whether these first bytes of an answer are an event stream's, whatever its headers say."""
    return data.lstrip(BLANKS).startswith(BEGINNINGS)


def may_begin_events(data: bytes) -> bool:
    """Tell whether these first bytes are too few to say: more of them may turn out to be an event stream's."""
    said = data.lstrip(BLANKS)
    return len(data) <= MOST_BLANKS and any(one.startswith(said) and one != said for one in BEGINNINGS)
