"""Structured logs: one JSON object a line on stderr. No bodies, no keys, no secrets.

Lines gather for at most `FLUSH_SECONDS` and leave in one write, so that a log line costs microseconds.
"""

import asyncio
import logging
import os
import re
import sys
import threading
import time
import traceback
from typing import Any

import msgspec

from billing.storage.database import now_ms

FLUSH_SECONDS = 0.1
BUFFER_LINES = 1_000
REFUSED_SECONDS = 60
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SOCKET_LINES = ('%s - "WebSocket %s"', "connection open", "connection closed", "connection rejected")
"""Beginnings of what uvicorn logs of a WebSocket past our own lines; the first holds the query, and secrets in it."""
ACCOUNT_WORDS = {
    "key": "OpenAI refuses this service's own key (401): check OPENAI_API_KEY with `tollkeeper preflight`",
    "quota": "OpenAI says that this service's own account has used up its quota or credits: top it up there",
    "billing": "OpenAI says that a billing or spend limit of this service's own account is reached: raise it there",
    "deactivated": "OpenAI says that this service's own account is deactivated: nothing is served until it is not",
    "organization": "OpenAI refuses this service's own organization or project: check the key's project, its limits",
    "region": "OpenAI does not serve the country that this service's requests come from",
    "address": "OpenAI does not accept the address that this service's requests come from: see its allow-list there",
    "access": "This service's own project may not use a model or feature that customers ask for: allow it at OpenAI,"
    " or take it out of billing.model_allowlist",
    "forbidden": "OpenAI answers requests with 403 and does not say that the customer is to blame",
    "rate_limit": "OpenAI's rate limit of this service's own account is reached: customers get its 429",
}
"""What the operator is told for each of metrics.ACCOUNT_REASONS."""


def printable(text: str) -> str:
    """Text without what would break a line, or speak to a terminal, where a log is shown: control characters as `?`."""
    return text if text.isprintable() else CONTROL.sub("?", text)


class AccessLine(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request to /v1. Tokens, amounts in millicredits, elapsed milliseconds; `at` Unix milliseconds."""

    event: str = "request"
    at: int
    request_id: str
    client_request_id: str
    trace_id: str
    account: str
    key: str
    method: str
    path: str
    endpoint: str
    model: str
    status: int
    outcome: str
    input_tokens: int
    output_tokens: int
    charged_millicredits: int
    held_millicredits: int
    first_byte_ms: int
    duration_ms: int
    upstream: str | msgspec.UnsetType = msgspec.UNSET
    """Told with `tries` where another than the default one served it, or not the first that was asked."""
    tries: str | msgspec.UnsetType = msgspec.UNSET
    cause: str | msgspec.UnsetType = msgspec.UNSET
    """Why the upstream could not be connected to."""


class RequestLog:
    """Writes access lines and money warnings."""

    def __init__(self, *, access: bool) -> None:
        """`access`: whether to write a line per request."""
        self._access = access
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode
        self._due: asyncio.TimerHandle | None = None
        self._refused_until: dict[str, float] = {}

    def request(self, line: AccessLine) -> None:
        """Log one finished request."""
        if self._access:
            self._write(line)

    def side_request(self, facts: dict[str, str | int]) -> None:
        """Log one finished request beside /v1: the side API, the pages, the admin API, webhooks."""
        if self._access:
            self._write({"event": "side_request", "at": now_ms(), **facts})

    def loss(self, request_id: str, account_id: str, millicredits: int) -> None:
        """Log that the upstream billed more than could be charged: always worth a person's look."""
        self._write(
            {
                "event": "platform_loss",
                "at": now_ms(),
                "request_id": request_id,
                "account": account_id,
                "millicredits": millicredits,
            }
        )

    def account_refused(self, reason: str, status: int, request_id: str) -> None:
        """Log that OpenAI complains of our own account, by one of metrics.ACCOUNT_REASONS: each at most once a minute.

        `status` 0: inside an answer.
        """
        if time.monotonic() < self._refused_until.get(reason, 0.0):
            return
        self._refused_until[reason] = time.monotonic() + REFUSED_SECONDS
        event, level = ("upstream_key_refused" if reason == "key" else "upstream_account_refused"), "error"
        if reason in ("forbidden", "rate_limit"):
            level = "warning"
        facts = {"reason": reason, "upstream_status": status, "request_id": request_id}
        self._write({"event": event, "at": now_ms(), "level": level, **facts, "message": ACCOUNT_WORDS[reason]})

    def no_answer(self, request_id: str, status: int, location: str) -> None:
        """Log an answer of the upstream's that is none: a redirect, or nothing. `location`: host and path it names."""
        message = "The upstream's answer is none: check upstream.base_url, its path most of all"
        facts = {"request_id": request_id, "upstream_status": status, "location": location}
        self._write({"event": "upstream_unexpected", "at": now_ms(), "level": "warning", **facts, "message": message})

    def flush(self) -> None:
        """Write what has gathered."""
        self._due = None
        if self._lines:
            data, self._lines = b"".join(self._lines), []
            try:
                os.write(sys.stderr.fileno(), data)
            except OSError:
                return  # a closed stderr must not stop the money

    def _write(self, line: dict[str, Any] | AccessLine) -> None:
        self._lines.append(self._encode(line) + b"\n")
        if len(self._lines) >= BUFFER_LINES:
            self.flush()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)


class JsonFormatter(logging.Formatter):
    """Standard library records as JSON lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        line = {
            "event": "log",
            "at": now_ms(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # the stack alone: an exception's text may quote a header or a body
            line["error"] = record.exc_info[0].__name__
            line["stack"] = "".join(traceback.format_tb(record.exc_info[2]))
        return msgspec.json.encode(line).decode()


class NoSocketLines(logging.Filter):
    """Drops what uvicorn logs of WebSockets: each has its line in the access log, without its query."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log a record."""
        return not str(record.msg).startswith(SOCKET_LINES)


def configure_logging(level: str) -> None:
    """Send everything that libraries log, and what Python itself would print, through the JSON formatter."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "alembic", "sqlalchemy.engine", "aiosqlite", "uvicorn.access", "stripe"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for spoken in ("uvicorn.error", "websockets"):  # at debug they log every frame and header, keys among them
        logging.getLogger(spoken).setLevel(max(root.level, logging.INFO))
    served = logging.getLogger("uvicorn.error")
    served.filters[:] = [NoSocketLines()]
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda kind, error, trace: root.critical("this process ends", exc_info=(kind, error, trace))
    sys.unraisablehook = lambda what: root.error("raised where nothing could catch it", exc_info=what.exc_value)
    threading.excepthook = lambda what: root.error("a thread ended", exc_info=what.exc_value)
