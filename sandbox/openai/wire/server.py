"""The simulator as a server: listening, its URLs, and its end."""

import asyncio
import ssl
from typing import Any

from sandbox.openai.steering.settings import Settings
from sandbox.openai.wire.connection import Connection, Hub


class Server:
    """A running simulator."""

    def __init__(self, settings: Settings, hub: Hub, listener: asyncio.Server) -> None:
        """Use `start`."""
        self._settings, self._hub, self._listener = settings, hub, listener
        self.port: int = listener.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """Base URL for clients, with /v1."""
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        """Base URL of the control paths."""
        scheme = "https" if self._settings.tls_cert else "http"
        return f"{scheme}://{self._settings.host}:{self.port}"

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records in memory, oldest first (for tests in the same process)."""
        shown: list[dict[str, Any]] = self._hub.log.show(None, 0, brief=False)["records"]
        return shown

    async def close(self) -> None:
        """Drop all connections at once and stop listening."""
        self._listener.close()
        for connection in tuple(self._hub.connections):
            connection.close(rst=True)
        # Lost connections cancel their tasks, which then write their last record lines.
        for _ in range(100):
            if not self._hub.connections:
                break
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        self._hub.log.close()


async def start(settings: Settings) -> Server:
    """Listen and serve on the running loop until `Server.close`."""
    context = None
    if settings.tls_cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    hub = Hub(settings)
    if settings.preload:
        await hub.simulator.encoding("o200k_base")
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: Connection(hub), settings.host, settings.port, ssl=context, backlog=2048
    )
    return Server(settings, hub, listener)
