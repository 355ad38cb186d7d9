"""A client that owns its socket: it leaves when a test says so, and sees every byte and how a body ended."""

import http.client
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tests.support.servers import Account

LINGER_ZERO = struct.pack("ii", 1, 0)


@dataclass
class Ended:
    """A body as it arrived; `clean` = the transfer coding said that it was whole."""

    data: bytes
    clean: bool


class Wire:
    """One request on one connection. Use as a context manager: leaving it leaves the connection."""

    def __init__(
        self,
        account: Account,
        body: Mapping[str, Any] | bytes,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send the request at once; nothing is read yet."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._connection = http.client.HTTPConnection("127.0.0.1", account.server.port, timeout=30)
        self._connection.request(
            "POST",
            path,
            data,
            {"Content-Type": "application/json", "Authorization": f"Bearer {account.api_key}", **(headers or {})},
        )
        self._socket = self._connection.sock
        self._answer: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.leave()

    @property
    def answer(self) -> http.client.HTTPResponse:
        """Status and headers; waits for them."""
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer

    @property
    def request_id(self) -> str:
        return str(self.answer.headers["x-request-id"])

    def header(self, name: str) -> str | None:
        return self.answer.headers[name]

    def read_events(self, count: int) -> bytes:
        """Read until so many events are whole."""
        found = b""
        while found.count(b"\n\n") < count:
            part = self.answer.read1(65_536)
            assert part, f"the stream ended after {found!r}"
            found += part
        return found

    def read_all(self) -> Ended:
        """Everything up to the end, whichever way it ends."""
        found = b""
        try:
            while part := self.answer.read1(65_536):
                found += part
        except http.client.IncompleteRead as error:
            return Ended(found + error.partial, clean=False)
        except (ConnectionResetError, http.client.RemoteDisconnected):
            return Ended(found, clean=False)
        length = self.answer.headers["content-length"]
        return Ended(found, clean=length is None or int(length) == len(found))

    def leave(self, *, rst: bool = False) -> None:
        """Close the connection: orderly, or by a reset."""
        if rst and self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        if self._answer is not None:
            self._answer.close()
        self._connection.close()


def events_of(data: bytes) -> list[Any]:
    """The payloads of a stream: decoded JSON, or the text of what is none ([DONE])."""
    found: list[Any] = []
    for line in data.splitlines():
        if line.startswith(b"data: "):
            payload = line[6:].decode()
            found.append(json.loads(payload) if payload.startswith("{") else payload)
    return found


def text_of(data: bytes) -> str:
    """The text a client shows for a chat stream."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events_of(data)
        if isinstance(event, dict)
        for choice in event.get("choices") or ()
        if choice.get("delta")
    )
