"""Somebody's own program that events are sent to: keeps what it was sent, and answers as it is told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """What arrived, in its order: (path, signature, event)."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, str, dict[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.status = 204
        self.delay = 0.0
        self.url = ""

    def events(self, path: str = "") -> list[dict[str, Any]]:
        return [event for where, _, event in list(self.arrived) if not path or where == path]

    def ids(self, kind: str, path: str = "") -> list[str]:
        return [event["id"] for event in self.events(path) if event["kind"] == kind]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.bodies.append(body)
            receiver.arrived.append((self.path, self.headers["tollkeeper-signature"], json.loads(body)))
            time.sleep(receiver.delay)
            try:
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()
            except OSError:
                pass  # who asked was killed

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    thread.join()
