"""Somebody else's server where ours, OpenAI's or Stripe's should be: answers everything with the same, and may be in another time."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any


class Stranger(http.server.ThreadingHTTPServer):
    """Answers by path, else 200 with {}."""

    daemon_threads = True

    def __init__(self, answers: dict[str, tuple[int, Any]], headers: dict[str, str], seconds_ahead: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.headers, self.seconds_ahead = answers, headers, seconds_ahead

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Stranger

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        status, body = self.server.answers.get(self.path.partition("?")[0], (200, {}))
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **self.server.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_OPTIONS = _answer

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + self.server.seconds_ahead, usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def stranger(
    answers: dict[str, tuple[int, Any]] | None = None, *, seconds_ahead: float = 0, **headers: str
) -> Iterator[str]:
    """Its URL."""
    server = Stranger(answers or {}, {name.replace("_", "-"): value for name, value in headers.items()}, seconds_ahead)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.url
    server.shutdown()
    server.server_close()
