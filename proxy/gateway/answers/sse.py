"""Server-sent events, sans I/O: cut a byte stream into whole events without changing a byte."""

import re

BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
DATA_LINE = re.compile(rb"^data:[ ]?(.*?)\r?$", re.MULTILINE)


def last_boundary(data: bytes) -> int:
    """Position at which the last whole event ends (0 = there is none yet)."""
    if data.endswith(b"\n\n"):
        return len(data)
    newline = data.rfind(b"\n\n")
    crlf = data.rfind(b"\r\n\r\n")
    return max(newline + 2 if newline >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


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
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    return b"\n".join(DATA_LINE.findall(event))
