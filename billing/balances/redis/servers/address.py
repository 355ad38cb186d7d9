"""Address of a server of Redis, with TLS, password and database; and a question to one that we do not stay with."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import hiredis
from hiredis import ReplyError

from billing.money.errors import StoreUnavailable
from config.store_urls import RedisPlace

READ_BYTES = 65_536
REFUSALS = ("ERR ", "NOPERM")


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
    before: list[tuple[bytes | str | int, ...]] = [("AUTH", *address.credentials)] if address.credentials else []
    before += [("SELECT", address.database)] if address.database else []
    try:
        async with asyncio.timeout(timeout_seconds):
            answers = await _answers(address, (*before, *commands))
    except (OSError, TimeoutError, hiredis.HiredisError) as error:
        raise StoreUnavailable("redis", f"{address}: {str(error) or type(error).__name__}") from None
    for number, answer in enumerate(answers):
        if isinstance(answer, ReplyError):
            refused = number >= len(before) and str(answer).startswith(REFUSALS)
            raise (CommandRefused if refused else StoreUnavailable)("redis", f"{address} answered {answer}")
    return answers[len(before) :]


async def _answers(address: NodeAddress, commands: tuple[tuple[bytes | str | int, ...], ...]) -> list[Any]:
    parser, answers = hiredis.Reader(), list[Any]()
    if address.path:
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    try:
        writer.write(b"".join(hiredis.pack_command(command) for command in commands))  # type: ignore[arg-type]
        while len(answers) < len(commands):
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("closed the connection")
            parser.feed(data)
            while (answer := parser.gets()) is not False:
                answers.append(answer)
    finally:
        writer.transport.abort()
    return answers
