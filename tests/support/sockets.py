"""WebSockets of a customer: opened, read until an event, and the rows they were charged by."""

import json
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support import web
from tests.support.served import Customer
from tests.support.servers import wait_until

CHAT = "gpt-4.1"


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
