"""Limits of clients' connections, and what they hold now, of one process."""

import logging

from config.settings import Listen
from proxy.server.transport.turns import Turns
from proxy.web.connections import ConnectionCaps, Connections

log = logging.getLogger("tollkeeper.connections")


class HttpLimits:
    """Limits of one connection. Sizes in bytes, times in seconds."""

    __slots__ = (
        "body_bytes",
        "body_seconds",
        "buffered",
        "buffered_bytes",
        "connections",
        "header_bytes",
        "header_seconds",
        "stall_seconds",
        "turns",
        "upload_bytes",
    )

    def __init__(self, listen: Listen, stall_seconds: float) -> None:
        """`stall_seconds`: how long a client may read nothing of its answer."""
        caps = ConnectionCaps(listen.max_connections, listen.max_connections_per_address, listen.trusted_proxies)
        self.connections, self.header_bytes = Connections(caps, _tell_of_address), listen.max_header_bytes
        self.header_seconds, self.body_seconds = listen.header_timeout_seconds, listen.body_timeout_seconds
        self.body_bytes, self.upload_bytes, self.buffered_bytes = (
            listen.max_body_bytes,
            listen.max_upload_bytes,
            listen.max_buffered_bytes,
        )
        self.stall_seconds = stall_seconds
        self.turns = Turns()
        self.buffered = 0
        """Bytes of large bodies that this process holds now."""


def _tell_of_address(address: str) -> None:
    log.warning(
        "%s has listen.max_connections_per_address connections open, and gets no more; if that is a proxy of yours, "
        "name its network in listen.trusted_proxies",
        address,
    )
