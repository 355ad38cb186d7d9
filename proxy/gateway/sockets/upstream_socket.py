"""A WebSocket of ours to the upstream, with the operator's key."""

import ssl

import certifi
from websockets.asyncio.client import ClientConnection, connect

from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.pool import CONNECT_SECONDS

MAX_UPSTREAM_FRAME = 67_108_864


class _Connect(connect):
    """A handshake that goes where it is sent and nowhere else: our key is not shown to where a redirect points."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """See websockets: a redirect is a refusal."""
        return exc


async def connect_upstream(member: Member, target: str, request_id: str) -> ClientConnection:
    """Connect to `target`, a path and query below base_url; it counts among the upstream's connections until it ends.

    Raises UpstreamError (busy), OSError, TimeoutError, InvalidHandshake.
    """
    close = member.pool.open_socket()
    try:
        connection = await _dial(member, target, request_id)
    except BaseException:
        close()
        raise
    connection.connection_lost_waiter.add_done_callback(lambda _: close())
    return connection


async def _dial(member: Member, target: str, request_id: str) -> ClientConnection:
    settings, base = member.settings, member.place
    secure = base.scheme == "https"
    return await _Connect(
        f"{'wss' if secure else 'ws'}://{base.netloc}{base.path.rstrip('/')}{target}",
        ssl=ssl.create_default_context(cafile=settings.ca_file or certifi.where()) if secure else None,
        additional_headers={**member.headers(), "X-Client-Request-Id": request_id},
        user_agent_header="tollkeeper",
        open_timeout=CONNECT_SECONDS + settings.first_byte_timeout_seconds,
        max_size=MAX_UPSTREAM_FRAME,
        compression=None,
        proxy=None,
    )
