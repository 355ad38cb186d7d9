"""Steering of one request: `[[sandbox {"status": 429}]]` anywhere in its texts.

The directive travels inside the request, so a thousand concurrent requests steer themselves
without any shared switch, and a proxy in between carries it unknowingly. It is looked up in the
decoded strings of the body, so JSON escapes do not matter; keys of several directives are merged.
Fields of forms (a prompt, say) and messages on WebSockets carry directives as well. On /v1/realtime
one in an item or in response.create steers the next response, one in session.update all of them.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from sandbox.openai.requests.errors import ApiError, error_object

_MARK = "[[sandbox"
_NOT_NEGATIVE = (
    "latency_ms",
    "chunk_interval_ms",
    "output_tokens",
    "reasoning_tokens",
    "retrieved_tokens",
    "queued_ms",
    "background_ms",
    "seconds",
)


class AfterChunks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Place in a stream; counted in SSE events sent, `[DONE]` excluded."""

    after_chunks: int
    mid_chunk: bool = False
    """Send half of the next event's bytes as well."""
    rst: bool = False


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Error of a response that fails."""

    code: str = "server_error"
    message: str = "The model failed to generate a response."
    usage: bool = False
    """Send usage all the same; normally it is null."""


Point = Literal["before_headers", "after_headers"] | AfterChunks


class Stop(msgspec.Struct, frozen=True):
    """A `silent` or `cut` directive in one form."""

    cut: bool
    """True closes the socket, False keeps it open and says no more."""
    at: Literal["before_headers", "after_headers"] | int
    """A number means: after that many events (JSON answers: half-way through the body)."""
    mid_chunk: bool = False
    rst: bool = False


class Directives(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All keys a directive may hold. None, or leaving the key out, means the normal behaviour."""

    status: int | None = None
    """Answer with this error status (400 to 599)."""
    error: str | dict[str, Any] | None = None
    """The whole error object, or the name of one in errors.json such as `429_quota`."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """Headers added to the answer; a name the answer has already is replaced."""
    body_raw: str | None = None
    """Exact body of the answer, of a 200 too where no status is named; text/html unless `headers` names a type."""
    latency_ms: float | None = None
    chunk_interval_ms: float | None = None
    output_tokens: int | None = None
    text: str | None = None
    """Exact output text."""
    refusal: str | None = None
    """The model refuses with this text."""
    reasoning_tokens: int | None = None
    usage: Any = msgspec.UNSET
    """Replaces the usage object as sent, whatever its type; null sends none at all."""
    usage_on: Literal["last", "finish", "every"] = "last"
    """Which events hold usage. Typed events: `finish` is the one before the last, which has null."""
    usage_details: dict[str, Any] = msgspec.field(default_factory=dict)
    """Merged into usage; detail names such as cached_tokens find their object by themselves."""
    service_tier: str | msgspec.UnsetType | None = msgspec.UNSET
    """Echoed tier; null leaves the key out."""
    model: str | None = None
    """Echoed model."""
    finish_reason: str | None = None
    silent: Point | None = None
    cut: Point | None = None
    rst: bool = False
    """`cut` ends with a TCP reset in place of an orderly close."""
    error_after_chunks: int | None = None
    """After that many events send `data: {"error": ...}` and end without [DONE]."""
    no_done: bool = False
    ignore_cap: bool = False
    close_after: bool = False
    """Close the connection after the answer although nothing announced it."""
    informational: bool = False
    """Send `103 Early Hints` first."""
    close_delimited: bool = False
    """Body until end of file: neither content-length nor chunked."""
    crlf_events: bool = False
    cr_events: bool = False
    """Lines of an event stream end in a bare CR."""
    content_encoding: Literal["gzip", "deflate"] | None = None
    """Encode the body though nobody asked for it."""
    split_bytes: int | None = None
    """Write the body in pieces of this many bytes, each a chunk and a write of its own."""
    replay: str | None = None
    """Send this file of the samples directory verbatim."""
    echo: bool = False
    """Output text = JSON of the request's headers and body as received."""
    calls: list[str | dict[str, Any]] = msgspec.field(default_factory=list)
    """Responses: hosted tools the model calls before it speaks, in order: web_search, open_page,
    find_in_page, file_search, code_interpreter, image_generation. An object names the tool as `type`
    and replaces fields of the output item. A call of a tool the request does not hold is not made."""
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """Calls of the client's own tools, one an answer, then it speaks: the first answer makes the first, the answer
    to one output of a tool the second. `{"name": .., "arguments": ..}` calls a function or a custom tool (JSON, or
    the text itself); Responses: `{"type": "shell_call", ..}` is that output item. A tool the request does not hold
    is not called."""
    retrieved_tokens: int | None = None
    """Input tokens each search call adds."""
    tool_usage: Any = msgspec.UNSET
    """Replaces `tool_usage` as sent; null leaves it out."""
    failed: bool | Failure = False
    """Responses: end with response.failed (status failed); Realtime: response.done of status failed."""
    queued_ms: float | None = None
    """Background responses: how long they stay queued."""
    background_ms: float | None = None
    sound_seconds: int = 3_600
    """How long speech of chat is kept; below 0 it is gone when it is told."""
    """Background responses: how long they are in progress after that."""
    later: dict[str, Any] = msgspec.field(default_factory=dict)
    """Directive for later requests on the response this one creates (GET, cancel, DELETE, input_items)."""
    seconds: float | None = None
    """Length of the uploaded audio."""
    svg_usage: Any = msgspec.UNSET
    """Replaces `svg_usage` of an SVG answer; null leaves it out."""
    transcription: dict[str, Any] = msgspec.field(default_factory=dict)
    """Realtime: directive for the transcription of committed audio."""
    cancel_after_chunks: int | None = None
    """Realtime: after that many events of the response it ends as cancelled (turn_detected)."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning, so that a test's slip is seen at once."""
        if self.status is not None and self.status // 100 not in {4, 5}:
            raise ValueError("status must lie between 400 and 599")
        if self.split_bytes is not None and self.split_bytes < 1:
            raise ValueError("split_bytes must be at least 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0")

    @property
    def stop(self) -> Stop | None:
        """The point at which the answer stops, if it does; `cut` wins over `silent`."""
        point = self.cut if self.cut is not None else self.silent
        if point is None:
            return None
        cut = self.cut is not None
        if isinstance(point, AfterChunks):
            return Stop(cut, point.after_chunks, point.mid_chunk, rst=point.rst or self.rst)
        return Stop(cut, point, rst=self.rst)


def _strings(value: Any) -> Iterator[str]:
    """Yield every string inside a decoded JSON value, in order; not recursive: depth is the client's."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending.extend(reversed(item.values()))
        elif isinstance(item, list):
            pending.extend(reversed(item))


def _parse(text: str) -> Iterator[dict[str, Any]]:
    start = text.find(_MARK)
    decoder = json.JSONDecoder()
    while start >= 0:
        rest = text[start + len(_MARK) :].lstrip()
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError as error:
            raise _bad(str(error)) from None
        if not isinstance(value, dict) or not rest[end:].lstrip().startswith("]]"):
            raise _bad('expected [[sandbox {"key": value}]]')
        yield value
        start = text.find(_MARK, start + len(_MARK))


def _bad(reason: str) -> ApiError:
    """Refuse a broken directive: it is the tester's slip, and the answer must not be mistaken for another."""
    error = error_object(f"sandbox directive: {reason}", "sandbox_error", code="bad_directive")
    return ApiError(400, error)


def found_keys(raw: bytes, body: Any) -> dict[str, Any]:
    """Return the keys of all directives in one request. Raises ApiError when one cannot be understood."""
    merged: dict[str, Any] = {}
    # The scan of all strings costs more than the rest of a small request, so skip it when hopeless.
    if b"sandbox" not in raw:
        return merged
    for text in _strings(body):
        if _MARK in text:
            for found in _parse(text):
                merged.update(found)
    try:
        msgspec.convert(merged, Directives)
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from None
    return merged


def read_directives(raw: bytes, body: Any, standing: dict[str, Any]) -> Directives | None:
    """Lay the directives of one request over the `standing` ones; None when there are none.

    Raises ApiError when a directive cannot be understood.
    """
    merged = standing | found_keys(raw, body)
    return msgspec.convert(merged, Directives) if merged else None
