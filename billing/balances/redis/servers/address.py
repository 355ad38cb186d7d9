"""Address of a server of Redis, with TLS, password and database; and a question to one that we do not stay with."""

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from billing.money.errors import StoreUnavailable
from config.store_urls import RedisPlace


class CommandRefused(StoreUnavailable):
    """A server does not know a command, or does not let us use it."""


class NodeAddress(NamedTuple):
    """Address of one server, and all that a connection to it needs."""

    host: str
    port: int
    path: str
    """Of a socket of this machine; then host and port mean nothing."""
    tls: ssl.SSLContext | None
    credentials: tuple[str, ...]
    database: int

    def at(self, host: str, port: int) -> "NodeAddress":
        """Return the address of another server that is reached in the same way."""
        return self._replace(host=host, port=port)

    def __str__(self) -> str:
        """Name the server in a log."""
        return self.path or f"{self.host}:{self.port}"


def addresses_of(place: RedisPlace) -> list[NodeAddress]:
    """Return the servers that a URL names; of Sentinels' URL the primary, at any of their hosts.

    Raises OSError for files that cannot be read.
    """
    tls = tls_of(place.fields) if place.tls else None
    hosts = place.hosts or (("", 0),)
    credentials = credentials_of(place.user, place.password)
    return [NodeAddress(host, port, place.socket, tls, credentials, int(place.database or 0)) for host, port in hosts]


def credentials_of(user: str, password: str) -> tuple[str, ...]:
    """Return the arguments of AUTH; none without a password."""
    return (user, password) if user and password else ((password,) if password else ())


def tls_of(fields: Mapping[str, str]) -> ssl.SSLContext:
    """Return the TLS of a URL. Raises OSError for files that cannot be read."""
    context = ssl.create_default_context(cafile=fields.get("ssl_ca_certs"))
    context.check_hostname = fields.get("ssl_check_hostname") != "false" and fields.get("ssl_cert_reqs") != "none"
    if fields.get("ssl_cert_reqs") == "none":
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in fields:
        context.load_cert_chain(fields["ssl_certfile"], fields.get("ssl_keyfile"))
    return context


async def ask_once(
    address: NodeAddress, timeout_seconds: int | float, *commands: tuple[bytes | str | int, ...]
) -> list[Any]:
    """Return a server's answers to commands, over a connection of their own. Raises StoreUnavailable."""
    # imported here: a worker's own connection is ours, and few ask another server; it takes 9 MB
    from redis.asyncio.connection import UnixDomainSocketConnection
    from redis.exceptions import NoPermissionError, RedisError, ResponseError

    user, password = ("", *address.credentials)[-2:] if address.credentials else (None, None)
    named: dict[str, Any] = {
        "username": user or None,
        "password": password,
        "db": address.database,
        "socket_timeout": timeout_seconds,
        "protocol": 2,
        "driver_info": None,
    }
    connection = (
        UnixDomainSocketConnection(path=address.path, **named)
        if address.path
        else _kind_of_connection()(address.tls, host=address.host, port=address.port, **named)
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.connect()
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _answer(connection, address, (ResponseError, NoPermissionError)) for _ in commands]
    except (OSError, TimeoutError, RedisError) as error:
        raise StoreUnavailable("redis", f"{address}: {str(error) or type(error).__name__}") from None
    finally:
        await connection.disconnect(nowait=True)


@cache
def _kind_of_connection() -> Any:
    """Return redis-py's connection, by the TLS of an address where it has one."""
    from redis.asyncio.connection import Connection

    class AddressConnection(Connection):
        """Takes the TLS as it was made for everybody who connects there."""

        def __init__(self, tls: ssl.SSLContext | None, **named: Any) -> None:
            super().__init__(**named)
            self._tls = tls

        def _connection_arguments(self) -> Mapping[str, Any]:
            return {**super()._connection_arguments(), **({"ssl": self._tls} if self._tls else {})}

    return AddressConnection


async def _answer(connection: Any, address: NodeAddress, refusals: tuple[type[Exception], ...]) -> Any:
    """Read an answer. Raises CommandRefused for an error that is one of these and nothing else."""
    try:
        return await connection.read_response(disable_decoding=True)
    except refusals as error:
        words = str(error)
        refused = type(error) in refusals and not words.split(" ", maxsplit=1)[0].isupper()
        raise (CommandRefused if refused else StoreUnavailable)("redis", f"{address} answered {words}") from None
