"""WebSockets of a customer: opened, read until an event, and the rows they were charged by."""

import json
import threading
from typing import Any

from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.support import web
from tests.support.served import Customer
from tests.support.servers import wait_until

CHAT = "gpt-4.1"


class SocketUpstream:
    """Refuses the handshake with `refusal`, else says `frames` when it is first spoken to."""

    def __init__(self) -> None:
        self.refusal: Response | None = None
        self.frames: list[dict[str, Any]] = []
        self.heads: list[Request] = []
        self.hangs_up = False
        """It closes in good order once it has said its frames."""
        self.heard = 0
        """Frames that it was sent."""
        self._server = serve(self._say, "127.0.0.1", 0, process_request=self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)

    def _answer(self, _connection: ServerConnection, request: Request) -> Response | None:
        self.heads.append(request)
        return self.refusal

    def _say(self, connection: ServerConnection) -> None:
        connection.recv()
        self.heard += 1
        for frame in self.frames:
            connection.send(json.dumps(frame))
        if self.hangs_up:
            return
        for _ in connection:
            self.heard += 1


def opened(customer: Customer, path: str, **named: Any) -> ClientConnection:
    url = customer.server.v1.replace("http://", "ws://") + path
    return connect(url, additional_headers=customer.headers, open_timeout=10, **named)


def until(socket: ClientConnection, *types: str) -> list[dict[str, Any]]:
    """Frames up to the first of these types."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] not in types:
        found.append(json.loads(socket.recv(timeout=15)))
    return found


def create(text: str = "hello", **fields: Any) -> str:
    return json.dumps({"type": "response.create", "model": CHAT, "input": text, "max_output_tokens": 50, **fields})


def rows(customer: Customer, number: int) -> list[dict[str, Any]]:
    """The newest usage rows, once there are so many."""

    def look() -> list[dict[str, Any]] | None:
        answer = web.get(f"{customer.server.url}/api/billing/usage?limit=20", headers=customer.headers, timeout=10)
        found: list[dict[str, Any]] = answer.json()["data"]
        return found if len(found) >= number else None

    listed: list[dict[str, Any]] = wait_until(look, 10, f"{number} rows are booked")
    return listed
