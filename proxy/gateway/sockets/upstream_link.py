"""The upstream's side of one socket: connected to when the first frame needs it, told once."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidStatus

from proxy.gateway.access_log import EndedRequest, report_account, report_no_answer, report_upstream_error
from proxy.gateway.answers.upstream_errors import read_failure, shaped_rejection
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin
from proxy.gateway.sockets.upstream_socket import connect_upstream
from proxy.gateway.upstream.connection import Head
from proxy.gateway.upstream.interruption import UpstreamError, connect_cause
from proxy.gateway.upstream.judgement import failure_in, judge
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Try
from proxy.web.rejections import Rejection, bad_gateway, unavailable


class UpstreamLink:
    """A connection that may not be there yet. It ends with `stack`."""

    def __init__(
        self,
        services: Services,
        begin: Begin,
        target: Callable[[], str],
        opening: Callable[[], Sequence[bytes]],
        handshake: EndedRequest,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        """`begin`: of the socket, with the upstreams to ask; `target` and `opening`: see relay.SocketSession;
        `handshake`: as its line in the log tells of it.
        """
        self._services, self._begin, self._target, self._opening = services, begin, target, opening
        self._handshake, self._stack = handshake, stack
        self.opened: asyncio.Future[ClientConnection] = asyncio.get_running_loop().create_future()

    @property
    def connected(self) -> bool:
        """Tell whether there is a connection."""
        return self.opened.done()

    async def connect(self) -> None:
        """Connect to the first upstream that takes it, and send the session's own first frames.

        Raises Rejection: a refused handshake, without our account's identity.
        """
        connection = await self._connect_first()
        await self._stack.enter_async_context(connection)
        for own in self._opening():
            await connection.send(own.decode())
        self.opened.set_result(connection)

    async def _connect_first(self) -> ClientConnection:
        """Connect to one after the other, but for who may cost more than is held. Raises Rejection."""
        begin, tries, last = self._begin, list[Try](), None
        for member in begin.members:
            if not begin.let_serve(member, tries):
                continue
            began = time.monotonic()
            try:
                connection = await self._connect_to(member)
            except _Refused as refused:
                last = refused.rejection
                if not refused.reason:
                    break
                tries.append(Try(member.name, refused.reason, round((time.monotonic() - began) * 1_000)))
            else:
                begin.move(member)
                return connection
        raise last or unavailable("This cannot be served right now. Try again shortly.", "upstream_unavailable")

    async def _connect_to(self, member: Member) -> ClientConnection:
        """Connect, and take note of how it went. Raises _Refused."""
        metrics = self._services.metrics
        try:
            connection = await connect_upstream(member, self._target(), self._handshake.request_id)
        except InvalidStatus as error:
            refused = self._refused(member, error)
        except UpstreamError as error:
            message = "Too many connections to the upstream are open right now. Try again shortly."
            refused = _Refused(unavailable(message, "upstream_busy"), error.reason)
        except (OSError, TimeoutError, InvalidHandshake) as error:
            unreached = UpstreamError("connect", sent=False, cause=connect_cause(error))
            report_upstream_error(self._services, self._handshake, unreached)
            member.circuit.failed("connect", asyncio.get_running_loop().time())
            message = "The upstream could not be reached. Nothing was charged; try again."
            refused = _Refused(bad_gateway(message, "upstream_connect"), "connect")
        else:
            member.circuit.served()
            member.begin()
            self._stack.callback(member.end)
            metrics.count(metrics.upstreams.requests, member.name)
            return connection
        if refused.reason:
            metrics.upstreams.count_failed(metrics.count, member.name, refused.reason, 0)
        raise refused from None

    async def send(self, frame: bytes) -> None:
        """Send a text frame. Only once connected."""
        await self.opened.result().send(frame.decode())

    def _refused(self, member: Member, error: InvalidStatus) -> "_Refused":
        """Make a handshake that the upstream refused an answer of ours, with its words as over HTTP."""
        services, response = self._services, error.response
        status = response.status_code
        headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.raw_items()]
        if not 400 <= status < 600:
            report_no_answer(services, self._handshake.request_id, status, headers)
            message = "The upstream did not open this connection. Nothing was charged."
            return _Refused(bad_gateway(message, "upstream_unexpected"), "no_answer")
        body = bytes(response.body or b"")
        reason = failure_in(status, body, services.redactor)
        judge(member, Head(status, headers), reason, "", asyncio.get_running_loop().time())
        own, account = read_failure(status, body, services.redactor.redact_identity)
        report_account(services, account, status, self._handshake.request_id)
        return _Refused(own or shaped_rejection(status, services.redactor.redact_identity(body)), reason)


class _Refused(Exception):
    """An upstream that did not open the connection: what its client is told, and why, "" where it is the session."""

    def __init__(self, rejection: Rejection, reason: str) -> None:
        super().__init__(reason)
        self.rejection, self.reason = rejection, reason
