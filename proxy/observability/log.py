"""Structured logs: one JSON object a line on stderr. No bodies, no keys, no secrets.

Lines gather for at most `FLUSH_SECONDS` and leave in one write, so that a log line costs microseconds.
"""

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

import msgspec

from billing.storage.database import now_ms

FLUSH_SECONDS = 0.1
BUFFER_LINES = 1_000
KEY_REFUSED_SECONDS = 60


class RequestLog:
    """Writes access lines and money warnings."""

    def __init__(self, *, access: bool) -> None:
        """`access`: whether to write a line per request."""
        self._access = access
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode
        self._due: asyncio.TimerHandle | None = None
        self._key_refused_until = 0.0

    def request(self, facts: dict[str, str | int]) -> None:
        """Log one finished request."""
        if self._access:
            self._write({"event": "request", "at": now_ms(), **facts})

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

    def key_refused(self) -> None:
        """Log that OpenAI does not take our key, so nothing can be served: at most once a minute."""
        if time.monotonic() >= self._key_refused_until:
            self._key_refused_until = time.monotonic() + KEY_REFUSED_SECONDS
            message = "OpenAI refuses this service's own key (401): check OPENAI_API_KEY with `tollkeeper preflight`"
            self._write({"event": "upstream_key_refused", "at": now_ms(), "level": "error", "message": message})

    def flush(self) -> None:
        """Write what has gathered."""
        self._due = None
        if self._lines:
            data, self._lines = b"".join(self._lines), []
            try:
                os.write(sys.stderr.fileno(), data)
            except OSError:
                return  # a closed stderr must not stop the money

    def _write(self, line: dict[str, Any]) -> None:
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
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # the stack alone: an exception's text may quote a header or a body
            line["error"] = record.exc_info[0].__name__
            line["stack"] = "".join(traceback.format_tb(record.exc_info[2]))
        return msgspec.json.encode(line).decode()


def configure_logging(level: str) -> None:
    """Send everything that libraries log, and what Python itself would print, through the JSON formatter."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "alembic", "sqlalchemy.engine", "aiosqlite", "uvicorn.access", "stripe"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda kind, error, trace: root.critical("this process ends", exc_info=(kind, error, trace))
    sys.unraisablehook = lambda what: root.error("raised where nothing could catch it", exc_info=what.exc_value)
    threading.excepthook = lambda what: root.error("a thread ended", exc_info=what.exc_value)
