"""An answer onto the wire, with every way in which a real upstream may fail to deliver it."""

import asyncio
import functools
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Literal, Protocol

import msgspec
from websockets.frames import Frame, Opcode

from sandbox.openai.exchange.answer import Answer, Event, Request
from sandbox.openai.exchange.record import Entry
from sandbox.openai.requests.errors import status_error
from sandbox.openai.steering.directives import Directives, Stop

Framing = Literal["length", "chunked", "eof", "frames"]
"""`frames`: each event is one WebSocket text message, and there is no head."""
_FLUSH_BYTES: Final = 16_384
_RST_GRACE_S: Final = 0.02
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_EARLY_HINTS: Final = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload; as=style\r\n\r\n"
# The account and edge headers are canaries: a proxy that passes them on gives its account away.
_UPSTREAM_HEADERS: Final = (
    ("openai-version", "2020-10-01"),
    ("openai-organization", "org-sandboxcanary"),
    ("openai-project", "proj_sandboxcanary"),
    ("x-ratelimit-limit-requests", "30000"),
    ("x-ratelimit-limit-tokens", "150000000"),
    ("x-ratelimit-remaining-requests", "29999"),
    ("x-ratelimit-remaining-tokens", "149999000"),
    ("x-ratelimit-reset-requests", "2ms"),
    ("x-ratelimit-reset-tokens", "0s"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("x-content-type-options", "nosniff"),
    ("cf-cache-status", "DYNAMIC"),
    ("set-cookie", "__cf_bm=canary; path=/; HttpOnly; Secure"),
    ("cf-ray", "8canary00000-FRA"),
    ("alt-svc", 'h3=":443"; ma=86400'),
    ("server", "cloudflare"),
)
UPSTREAM_HEAD: Final = "".join(f"{name}: {value}\r\n" for name, value in _UPSTREAM_HEADERS)


class Wire(Protocol):
    """Connection as delivery sees it."""

    def write(self, data: bytes) -> None:
        """Hand bytes to the socket."""

    async def drain(self) -> None:
        """Wait until the peer has read enough for more to make sense."""

    def close(self, *, rst: bool = False) -> None:
        """End the connection: orderly after the bytes written, or by reset."""

    async def hold(self) -> None:
        """Wait until the peer is gone; returns only by cancellation."""


class Stopped(Exception):
    """Cut of an answer; the connection is closed."""


class Delivery:
    """One answer on one connection."""

    def __init__(
        self,
        wire: Wire,
        request: Request,
        answer: Answer,
        entry: Entry | None,
        request_id: str,
        *,
        frames: bool = False,
    ) -> None:
        """Take an answer; `entry` is None for requests that are not billable, and `frames` means a WebSocket."""
        self._wire, self._answer, self._entry = wire, answer, entry
        self._directives: Directives = answer.directives
        self._stop: Stop | None = answer.directives.stop
        self._framing: Framing = "length" if answer.events is None else "chunked"
        if answer.directives.close_delimited or (request.http10 and answer.events is not None):
            self._framing = "eof"
        if frames:
            self._framing = "frames"
        self._request, self._request_id = request, request_id
        self._coder = None if frames else _coder(answer.directives.content_encoding)
        if self._coder is not None and answer.events is None:
            answer.body = self._coder.compress(answer.body) + self._coder.flush()
            self._coder = None
        self._buffer: list[bytes] = []
        self._size = 0

    async def run(self, latency_s: float, interval_s: float, received: float) -> bool:
        """Send the answer; returns whether the connection may serve another request.

        `received` is a perf_counter() value. Raises Stopped when a directive cut the answer.
        """
        if latency_s > 0:
            await asyncio.sleep(latency_s)
        await self._stop_at("before_headers")
        closing = not self._request.keep_alive or self._framing == "eof"
        if self._framing != "frames":
            if self._directives.informational:
                self._wire.write(_EARLY_HINTS)
            self._put(self._head(closing=closing, elapsed_s=time.perf_counter() - received))
        if self._entry is not None:
            self._entry.sending(self._answer)
        if self._stop is not None:
            self._flush()
            await self._stop_at("after_headers")
        if self._answer.events is None:
            await self._send_body()
        else:
            await self._send_events(self._answer.events, interval_s)
        return not closing and not self._directives.close_after

    def _head(self, *, closing: bool, elapsed_s: float) -> bytes:
        answer = self._answer
        content_type = answer.content_type or (_JSON if answer.events is None else _EVENTS)
        framing = {
            "length": f"content-length: {len(answer.body)}\r\n",
            "chunked": "transfer-encoding: chunked\r\n",
            "eof": "",
            "frames": "",
        }[self._framing]
        connection = "close" if closing else "keep-alive"
        coding = self._directives.content_encoding
        extra = ({"content-encoding": coding} if coding else {}) | self._directives.headers
        head = (
            f"HTTP/1.1 {answer.status} {_reason(answer.status)}\r\n"
            f"date: {_http_date(int(time.time()))}\r\n"
            f"content-type: {content_type}\r\n{framing}connection: {connection}\r\n"
            f"x-request-id: {self._request_id}\r\n"
            f"openai-processing-ms: {int(elapsed_s * 1000)}\r\n{UPSTREAM_HEAD}"
        )
        if extra:
            head = _with_headers(head, extra)
        return head.encode("latin-1", "replace") + b"\r\n"

    async def _send_body(self) -> None:
        answer, stop, piece = self._answer, self._stop, self._directives.split_bytes
        body = b"" if self._request.method == "HEAD" else answer.body
        if stop is not None:
            # A JSON body has no chunks to count: it stops half-way.
            self._put(body[: len(body) // 2])
            self._flush()
            await self._halt(stop)
        if piece is None:
            self._put(body)
        else:
            await self._dribble(body[:-1], piece)
            self._put(body[-1:])
        self._finish(text=answer.text)

    async def _send_events(self, events: Iterable[Event], interval_s: float) -> None:
        fail_at, stop = self._directives.error_after_chunks, self._stop
        sent = 0
        for event in events:
            if event.pause_s > 0:
                self._flush()
                await asyncio.sleep(event.pause_s)
                continue
            if stop is not None and stop.at == sent and event.counted:
                if stop.mid_chunk:
                    half = self._framed(event.data)
                    self._put(half[: len(half) // 2])
                self._flush()
                await self._halt(stop)
            if fail_at is not None and sent >= fail_at:
                break
            if interval_s > 0 and sent and event.counted:
                self._flush()
                await asyncio.sleep(interval_s)
            await self._send_event(event)
            sent += event.counted
        if stop is not None:
            # The stream is shorter than the directive thought: stop all the same, where it ends.
            self._flush()
            await self._halt(stop)
        if fail_at is not None:
            await self._fail(sent)
        else:
            self._finish()

    async def _fail(self, sent: int) -> None:
        """End with an error event; raises Stopped where a stream has no such thing."""
        wanted, make = self._directives.error, self._answer.error_event
        if make is None:
            self._flush()
            await self._halt(Stop(cut=True, at=0), "error")
            return
        error = wanted if isinstance(wanted, dict) else status_error(500)
        await self._send_event(Event(make(error, sent), counted=False))
        self._finish(outcome="error")

    async def _send_event(self, event: Event) -> None:
        data = event.data
        if self._directives.crlf_events and data.endswith(b"\n\n"):
            data = data[:-2] + b"\r\n\r\n"
        if self._directives.cr_events:
            data = data.replace(b"\n", b"\r")
        if self._coder is not None:
            data = self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH)
        piece = self._directives.split_bytes
        if self._entry is not None:
            self._entry.sent_event(event)
        if piece is not None:
            await self._dribble(data, piece)
            return
        self._put(self._framed(data))
        if self._size >= _FLUSH_BYTES:
            self._flush()
            await self._wire.drain()
            # Writes of one long stream must not keep a thousand others waiting.
            await asyncio.sleep(0)

    async def _dribble(self, data: bytes, piece: int) -> None:
        if self._framing == "frames":
            # One message in fragments; nothing of another message may come between them.
            self._put(b"".join(text_frames(data, piece)))
            return
        for start in range(0, len(data), piece):
            self._put(self._framed(data[start : start + piece]))
            self._flush()
            await self._wire.drain()
            await asyncio.sleep(0)

    def _framed(self, data: bytes) -> bytes:
        if self._framing == "chunked":
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._framing == "frames":
            return b"".join(text_frames(data, len(data) or 1))
        return data

    def _put(self, data: bytes) -> None:
        self._buffer.append(data)
        self._size += len(data)

    def _flush(self) -> None:
        if self._buffer:
            self._wire.write(b"".join(self._buffer))
            self._buffer.clear()
            self._size = 0

    def _finish(self, text: str = "", outcome: Literal["completed", "error"] = "completed") -> None:
        """Close the record, then let the last bytes go: who has read them may read the record."""
        entry = self._entry
        if entry is not None:
            if text:
                entry.sent_text(text)
            if self._answer.usage is not msgspec.UNSET:
                entry.usage_sent = self._answer.usage
            entry.finish("error" if self._answer.status >= 400 else outcome)
        if self._coder is not None:
            self._put(self._framed(self._coder.flush()))
        if self._framing == "chunked":
            self._put(b"0\r\n\r\n")
        self._flush()

    async def _stop_at(self, place: Literal["before_headers", "after_headers"]) -> None:
        if self._stop is not None and self._stop.at == place:
            await self._halt(self._stop)

    async def _halt(self, stop: Stop, outcome: Literal["cut", "error"] = "cut") -> None:
        """Stop here for good: raises Stopped after a cut, waits for the peer when silent."""
        if not stop.cut:
            await self._wire.hold()
        if self._entry is not None:
            if self._entry.answer is None:
                self._entry.answer = self._answer
            self._entry.finish(outcome)
        if stop.rst:
            # A reset overtakes unread data; let the peer read what counts as sent.
            await asyncio.sleep(_RST_GRACE_S)
        self._wire.close(rst=stop.rst)
        raise Stopped


def text_frames(data: bytes, piece: int) -> Iterator[bytes]:
    """Cut a WebSocket text message into fragments of that many bytes."""
    for start in range(0, len(data), piece):
        kind = Opcode.CONT if start else Opcode.TEXT
        yield Frame(kind, data[start : start + piece], start + piece >= len(data)).serialize(mask=False)


def _coder(coding: Literal["gzip", "deflate"] | None) -> "zlib._Compress | None":
    """Make what encodes a body: gzip with its own head, deflate as RFC 9110 8.4.1.2 says it, in a zlib frame."""
    return None if coding is None else zlib.compressobj(wbits=31 if coding == "gzip" else 15)


@functools.lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    """Format the date header; it costs more than the rest of the head, so once a second."""
    return formatdate(second, usegmt=True)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _with_headers(head: str, extra: Mapping[str, str]) -> str:
    names = tuple(f"{name.lower()}:" for name in extra)
    kept = [line for line in head.split("\r\n") if line and not line.lower().startswith(names)]
    return "".join(f"{line}\r\n" for line in (*kept, *(f"{name}: {value}" for name, value in extra.items())))
