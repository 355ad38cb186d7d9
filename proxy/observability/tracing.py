"""Distributed traces. A client's W3C Trace Context goes on to OpenAI and its trace id into our log line.

Only a well-formed context passes (https://www.w3.org/TR/trace-context/, version 00), since it goes to another
company in our name. With `log.opentelemetry` each request is also a span: see `otel.py`.
"""

import re
from typing import Protocol

from proxy.observability.log import AccessLine

TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-[\x21-\x7e]{0,200})?"
)
TRACESTATE = re.compile(rb"[\x20-\x7e\t]{1,512}")
PARENT_LINE, STATE_LINE = b"Traceparent: %s\r\n", b"Tracestate: %s\r\n"

Headers = list[tuple[bytes, bytes]]


class Trace:
    """The trace that one request belongs to, if any."""

    __slots__ = ("lines", "trace_id")

    def __init__(self, parent: str = "", state: str = "") -> None:
        """`parent` and `state` as they go upstream; `parent` "" = no trace."""
        self.trace_id = parent[3:35]
        self.lines = PARENT_LINE % parent.encode() if parent else b""
        """Complete header lines for the request to OpenAI."""
        if parent and state:
            self.lines += STATE_LINE % state.encode()

    def end(self, line: AccessLine) -> None:
        """End it, as the request was answered."""


UNTRACED = Trace()


class Tracing(Protocol):
    """Beginning and end of traces."""

    def begin(self, headers: Headers) -> Trace:
        """Begin the trace of a request with these headers (lower-case names)."""
        ...

    def close(self) -> None:
        """Hand over what is not yet handed over."""
        ...


class PassOn:
    """Nothing of our own in the trace: what the client sent goes on."""

    def begin(self, headers: Headers) -> Trace:
        """Take the client's trace on."""
        parent, state = context_of(headers)
        return Trace(parent, state) if parent else UNTRACED

    def close(self) -> None:
        """Do nothing: there is nothing to hand over."""


def context_of(headers: Headers) -> tuple[str, str]:
    """(traceparent, tracestate) of a request; ("", "") where there is none, or not exactly one well-formed one.

    A context of a later version is taken down to version 00, as the standard asks of those who know only that.
    """
    if b"traceparent" not in dict(headers):
        return "", ""
    parents = [value for name, value in headers if name == b"traceparent"]
    if len(parents) != 1 or (found := TRACEPARENT.fullmatch(parents[0])) is None:
        return "", ""
    state = b",".join(value for name, value in headers if name == b"tracestate")
    return "00-" + found[1].decode(), state.decode() if TRACESTATE.fullmatch(state) else ""
