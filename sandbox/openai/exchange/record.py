"""The simulator's own account of what it served, in memory and as JSON lines."""

import base64
import contextlib
import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sandbox.openai.exchange.answer import Answer, Event, Request
from sandbox.openai.exchange.bill import NO_TOOLS
from sandbox.openai.requests.errors import ApiError
from sandbox.openai.requests.forms import Uploads, is_form, read_form
from sandbox.openai.requests.json_text import read_json

Outcome = Literal["received", "headers_sent", "completed", "cut", "client_gone", "error"]
_TEXT_BYTES: Final = 20_000
_BODY_BYTES: Final = 64_000
_TRUE: Final = (True, "true", "True", "1")
"""`stream` as JSON has it and as forms have it."""
_BRIEF_DROPS: Final = ("requestHeaders", "requestBody", "requestBodyBase64", "textSent")


class Entry:
    """The record of one billable request; the numbers move while the answer is being sent."""

    def __init__(self, log: "Log", seq: int, request: Request, request_id: str) -> None:
        """Begin an entry; `request_id` is the x-request-id of the answer."""
        self._log = log
        self.seq, self.request, self.request_id = seq, request, request_id
        self.body: Any = None
        self.uploads: Uploads = {}
        self.form_error: ApiError | None = None
        """Error of a body that says it is a form and is none."""
        self.answer: Answer | None = None
        self.outcome: Outcome = "received"
        self.call_id: str | None = None
        """Id of the realtime call that this is an answer of."""
        self.status: int | None = None
        self.received_at = time.time()
        self.finished_at: float | None = None
        self.chunks_sent = 0
        self.usage_sent: Any = None
        self._usage: dict[str, Any] | None = None
        self._text: list[str] = []
        self._text_size = 0

    def opened(self, status: int) -> None:
        """Note an opened socket, which stays without an answer."""
        self.status, self.outcome = status, "headers_sent"
        self._log.write(self)

    def read_body(self) -> None:
        """Decode the request's body; what cannot be decoded is None."""
        request, content_type = self.request, self.request.headers.get("content-type", "")
        if is_form(content_type):
            try:
                self.body, self.uploads = read_form(content_type, request.body)
            except ApiError as error:
                self.form_error = error
            return
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.body = read_json(request.body)

    @property
    def finished(self) -> bool:
        """No more will happen to this request."""
        return self.finished_at is not None

    def sending(self, answer: Answer) -> None:
        """Note that the headers are on their way."""
        self.answer, self.outcome, self.status = answer, "headers_sent", answer.status

    def sent_event(self, event: Event) -> None:
        """Note that one event of a stream was handed to the socket."""
        if event.counted:
            self.chunks_sent += 1
        if event.text:
            self.sent_text(event.text)
        if event.usage is not msgspec.UNSET:
            self.usage_sent = event.usage
        if self.answer is not None and self.answer.bill is not None:
            self.answer.bill.add(event.spent)

    def sent_text(self, text: str) -> None:
        """Note output text that left; kept up to 20,000 characters."""
        if self._text_size < _TEXT_BYTES:
            self._text.append(text[: _TEXT_BYTES - self._text_size])
            self._text_size += len(text)

    def settle(self) -> None:
        """Note the cost of work that outlived the request and has ended."""
        if self.finished:
            self._log.write(self)

    def finish(self, outcome: Outcome) -> None:
        """Fix the bill and write the final line; later calls change nothing."""
        if self.finished:
            return
        self.outcome, self.finished_at = outcome, time.time()
        self._usage = self._charge()
        self._log.write(self)

    def _charge(self) -> dict[str, Any] | None:
        if self.answer is None:
            return None
        if self.answer.job is not None:
            return self.answer.job.charge()
        if self.answer.bill is None:
            return None
        return self.answer.bill.billed(complete=self.outcome == "completed")

    def to_json(self) -> dict[str, Any]:
        """Return the record as shown; times are Unix seconds."""
        request, answer = self.request, self.answer
        body = self.body if isinstance(self.body, dict) else {}
        job = answer.job if answer else None
        socket = request.headers.get("upgrade", "").lower() == "websocket"
        shown = self.uploads or len(request.body) <= _BODY_BYTES
        return {
            "seq": self.seq,
            "clientRequestId": request.headers.get("x-client-request-id"),
            "requestId": self.request_id,
            "method": request.method,
            "transport": "websocket" if socket else "http",
            "path": request.path,
            "query": request.query,
            "model": body.get("model") or (answer.model if answer else None) or None,
            "servedModel": (answer.model if answer else None) or None,
            "stream": socket or body.get("stream") in _TRUE,
            "receivedAt": self.received_at,
            "finishedAt": self.finished_at,
            "status": self.status,
            "outcome": self.outcome,
            "chunksSent": self.chunks_sent,
            "usage": self._usage if self.finished and job is None else self._charge(),
            "usageSent": self.usage_sent,
            "toolUsage": self._tool_use(),
            "extraUsage": answer.extra_usage if answer else None,
            "responseId": answer.response_id if answer else None,
            "callId": self.call_id,
            "jobStatus": job.status() if job else None,
            "textSent": "".join(self._text),
            "serviceTier": answer.service_tier if answer else None,
            "requestHeaders": request.headers,
            "requestBodyBytes": len(request.body),
            "requestBody": self.body if shown else None,
            "requestBodyBase64": base64.b64encode(request.body[:_BODY_BYTES]).decode("ascii"),
        }

    def _tool_use(self) -> dict[str, Any] | None:
        """Return the use of hosted tools, charged on top of `usage`; None without any."""
        answer = self.answer
        if answer is not None and answer.job is not None:
            return answer.job.tool_use()
        tools = answer.bill.tools if answer is not None and answer.bill is not None else NO_TOOLS
        return None if tools is NO_TOOLS else tools.to_record()


class Log:
    """All entries, of which the file gets a line at reception and one at the end; the last one counts."""

    def __init__(self, path: Path | None, keep: int) -> None:
        """Open the file; `keep` entries stay in memory."""
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._seq = _last_seq(path) if path else 0
        # Unbuffered O_APPEND writes survive a kill -9; the file shows a key, hence the mode.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags, 0o600) if path else None
        if self._file is not None and path is not None and _is_torn(path):
            os.write(self._file, b"\n")

    def open_entry(self, request: Request, request_id: str) -> Entry:
        """Take in a new request."""
        self._seq += 1
        entry = Entry(self, self._seq, request, request_id)
        self._entries.append(entry)
        return entry

    def write(self, entry: Entry) -> None:
        """Append the entry's present state to the file, if there is one."""
        if self._file is not None:
            line = memoryview(msgspec.json.encode(entry.to_json()) + b"\n")
            while line:
                line = line[os.write(self._file, line) :]

    def show(self, client_request_id: str | None, since: int, *, brief: bool) -> dict[str, Any]:
        """Return the entries with seq above `since`, oldest first."""
        records = []
        for entry in self._entries:
            wanted = entry.request.headers.get("x-client-request-id") == client_request_id
            if entry.seq > since and (client_request_id is None or wanted):
                shown = entry.to_json()
                for name in _BRIEF_DROPS if brief else ():
                    del shown[name]
                records.append(shown)
        return {"records": records, "lastSeq": self._seq}

    def clear(self) -> int:
        """Forget the entries in memory; the file stays, and seq goes on. Returns how many."""
        count = len(self._entries)
        self._entries.clear()
        return count

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_torn(path: Path) -> bool:
    """Tell whether a kill left a last line without its end, to which the next one must not stick."""
    content = path.read_bytes()
    return bool(content) and not content.endswith(b"\n")


def _last_seq(path: Path) -> int:
    """Return the highest seq in an older file, so that a restarted simulator does not reuse numbers."""
    highest = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            # A kill may have torn the last line.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                highest = max(highest, int(json.loads(line)["seq"]))
    return highest
