"""WebSockets in: uvicorn's protocol, quiet where our own log has a line, and counted like any connection."""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class GuardedSocket(WebSocketsSansIOProtocol):
    """One client's WebSocket."""

    on_lost: Callable[[], None] | None = None
    """Called once when its connection is gone."""

    async def send(self, message: Any) -> None:
        """See ASGI. A refusal that is sent completes the handshake: uvicorn would log an error for every one."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
