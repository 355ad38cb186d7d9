"""One call, from its creation to its end.

    standing    Money for the first response is held.
    created     It exists at OpenAI; its SDP answer is with us, so the browser cannot connect.
    recorded    SQL knows whose it is, with a lease: whatever becomes of this process, somebody hangs it up.
    attached    The sideband is open. Only now the browser gets its answer.
    metered     Every event is a matter of the session's (call_session.py), until the sideband ends, money ends, the
                owner hangs up, the key is revoked, or this process stops.
    ended       What is being said is cancelled and heard to its usage, for a moment; then the call is hung up, recorded
                as ended, and what is still held is settled by the exit rule.

Whatever fails before `attached` hangs up what was created and releases.
"""

import asyncio
import contextlib
import logging
import time

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from billing.ledger.accounts import ApiKey
from billing.ledger.objects.realtime_calls import RealtimeCalls
from billing.money.errors import StoreUnavailable
from billing.money.usage_record import Outcome
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.calls.call_session import CallSession
from proxy.gateway.calls.session_config import CallConfig
from proxy.gateway.calls.upstream_calls import attach, create_call, hang_up
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.request import GatewayRequest
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, Handshake
from proxy.gateway.sockets.relay import GOING_AWAY, NORMAL, Finished
from proxy.gateway.upstream.interruption import Interruption
from proxy.gateway.upstream.member import Member
from proxy.web.rejections import bad_gateway, unavailable

log = logging.getLogger("tollkeeper.calls")

LONGEST_SECONDS = 3_900.0
"""OpenAI ends a session after an hour; a little later it is ended for sure."""
SILENT_SECONDS = 900.0
"""A call of which nothing is heard for so long is left by its browser: OpenAI does not always say so."""
LAST_WORDS_SECONDS = 1.5
QUIET_SECONDS = 0.25
"""Without an event nothing is on its way any more."""


class Call:
    """See Live in services.py: it lives as long as it may hold money."""

    def __init__(self, request: GatewayRequest, store: RealtimeCalls, key: ApiKey, digest: str, member: Member) -> None:
        """`digest`: what the key is checked again by, while the call runs; `member`: the upstream that it runs at."""
        self.services: Services = request.services
        self.key, self.digest, self.request_id = key, digest, request.request_id
        self.call_id, self.member = "", member
        self.interruption = Interruption()
        self._request, self._store = request, store
        self._session: CallSession | None = None
        self._sideband: ClientConnection | None = None
        self._recorded = False
        self._reader: asyncio.Task[None] | None = None
        self._stopping = self._receiving = False
        self.interruption.attach(self.stop)

    async def open(self, config: CallConfig, sdp: bytes, lease_ms: int) -> bytes:
        """Hold, create, record, attach; return the SDP answer. Raises Rejection, CallNotTaken, CallRefused,
        UpstreamError; then nothing of it is left.
        """
        services, request = self.services, self._request
        services.live.add(self)
        try:
            opened = Handshake(request.path, request.headers, REALTIME.name, self, self.member, self.key.account_id)
            session = self._session = CallSession(services, self.key, config, Begin(services, opened))
            await session.stand()
            session.outbox.clear()  # the call is opened with these limits
            created = await create_call(request, self.member, session.opened_with(), sdp)
            self.call_id = created.call_id
            await self._record(lease_ms)
            self._sideband = await attach(services, self.member, self.call_id, self.request_id)
            request.interruption.muted = False
            request.interruption.check()  # a client that has left has no use for it
        except BaseException:
            await self._end("upstream_error")
            raise
        return created.sdp

    async def _record(self, lease_ms: int) -> None:
        try:
            self._recorded = await self._store.begin(self.call_id, self.key.account_id, lease_ms, self.member.recorded)
        except StoreUnavailable:
            message = "The call cannot be recorded right now, so it was not connected. Nothing was charged; try again."
            raise unavailable(message, "store_unavailable") from None
        if not self._recorded:
            self.call_id = ""  # of somebody else's call
            raise bad_gateway("The upstream named a call twice. Nothing was charged; try again.", "upstream_error")

    # -- while it runs ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Meter the call to its end. Never raises but for cancellation."""
        outcome: Outcome = "client_gone"
        reader = self._reader = asyncio.create_task(self._read())
        try:
            await asyncio.wait((reader,), timeout=LONGEST_SECONDS)
            if self.interruption.reason == "shutdown":
                outcome = "shutdown"
            elif reader.done() and not reader.cancelled():
                outcome = self._ending(reader.exception())
        finally:
            self.stop()
            await asyncio.gather(reader, return_exceptions=True)
            await self._end(outcome)

    def _ending(self, error: BaseException | None) -> Outcome:
        if error is None or isinstance(error, TimeoutError):
            return "client_gone"
        if isinstance(error, Finished):
            log.warning("call %s is hung up: %s", self.call_id, error.reason)
            return "client_gone"
        if isinstance(error, ConnectionClosed):
            log.warning("the sideband of call %s broke off: it is hung up", self.call_id)
            return "upstream_cut"
        log.error("the metering of call %s failed", self.call_id, exc_info=error)
        return "shutdown"  # not the upstream's

    async def _read(self) -> None:
        """Take what the sideband says, until it ends or we do. Raises Finished, ConnectionClosed, TimeoutError."""
        while not self._stopping:
            self._receiving = True
            try:
                await self._receive(SILENT_SECONDS)
            except ConnectionClosed as closed:
                if closed.rcvd is not None and closed.rcvd.code in (NORMAL, GOING_AWAY):
                    return  # the call has ended
                raise

    async def _receive(self, seconds: float) -> None:
        """Wait so long for an event, take it, and say what there is to say."""
        session, sideband = self._parts()
        async with asyncio.timeout(seconds):
            message = await sideband.recv()
        self._receiving = False  # from here on it is taken as a whole, whoever wants an end
        raw = message.encode() if isinstance(message, str) else message
        await session.from_upstream(decode_object(raw) or {}, raw)
        await self._say(session, sideband)

    async def _say(self, session: CallSession, sideband: ClientConnection) -> None:
        while session.outbox:
            await sideband.send(session.outbox.popleft().decode())

    def _parts(self) -> tuple[CallSession, ClientConnection]:
        if self._session is None or self._sideband is None:
            raise RuntimeError("the call is not attached")
        return self._session, self._sideband

    # -- the end ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """End it: its owner hangs up, may not have it any more, or this process stops."""
        self._stopping = True
        if self._receiving and self._reader is not None:
            self._reader.cancel()

    async def _end(self, outcome: Outcome) -> None:
        """Hang up, then settle what is held. Whatever fails here is left to who looks for calls without a lease."""
        session, sideband = self._session, self._sideband
        try:
            if session is not None and sideband is not None:
                await self._hear_last_words(session, sideband)
        finally:
            try:
                await self._hang_up()
            finally:
                if session is not None:
                    await session.end(outcome)
                self.services.live.discard(self)
                if sideband is not None:
                    await sideband.close()

    async def _hang_up(self) -> None:
        if self.call_id and await hang_up(self.member, self.call_id) and self._recorded:
            with contextlib.suppress(StoreUnavailable):
                await self._store.end(self.call_id)

    async def _hear_last_words(self, session: CallSession, sideband: ClientConnection) -> None:
        """Stop what is being said, and take its usage, and whatever is already on its way."""
        session.wind_up()
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        with contextlib.suppress(ConnectionClosed, TimeoutError, Finished):
            await self._say(session, sideband)
            while (left := deadline - time.monotonic()) > 0:
                await self._receive(left if session.is_answering else min(left, QUIET_SECONDS))
