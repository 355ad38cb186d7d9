"""A call's holds and charges, out of what its sideband says.

The browser speaks to the session past us; what it does there we hear only once it is done. So the standing hold is not
for the conversation as it is, but for the most that the session's own limits allow (session_config.py), and stands
before the browser is connected. Whatever the server then says that the session is, is held for, undone, or ends the
call:

    session.updated    Limits that were raised are held for. Where money is short, ours are set again by an event on the
                       sideband, and a response that begins before they are is stopped.
    response.created   Takes the standing hold. One that begins beside another has a hold of its own, or is stopped.
    response.done      Settles it, and the next one is held for: where money is short, with lower limits, which are set.

Sound goes by another way, so what was spoken is estimated by its transcript, for a response whose usage never comes.
"""

import contextlib
import re
import time
from collections import OrderedDict, deque
from functools import partial
from typing import Any
from urllib.parse import urlencode

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from proxy.gateway.calls.session_config import CallConfig, CallLimits, limits_as_sent, shown_limits
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import PAYMENT_REQUIRED, Begin, SocketExchange, hold_instead
from proxy.gateway.sockets.realtime import HEADROOM_TOKENS, RealtimeSession, Reply
from proxy.gateway.sockets.realtime_frames import UNNAMED, refuse_shared, response_id_of
from proxy.gateway.sockets.realtime_state import (
    AUDIO_TOKENS_PER_SECOND,
    ConversationSize,
    SessionSettings,
    SessionState,
)
from proxy.gateway.sockets.relay import POLICY_VIOLATION, Finished, Frame
from proxy.gateway.sockets.transcriptions import BUFFER, HEARD_EVENTS
from proxy.web.rejections import Rejection, forbidden

SESSION_EVENTS = ("session.created", "session.updated")
ITEM_EVENTS = ("conversation.item.added", "conversation.item.created")
FOREIGN = ("mcp_", "response.mcp_")
"""First parts of the names of events about tools that run at OpenAI: none is sold here."""
TRANSCRIPT = "response.output_audio_transcript.delta"
SPOKEN_TOKENS_PER_CHARACTER = 1
"""At most 20 characters a second are spoken, and a second is 20 tokens."""
KNOWN_ITEMS = 2_000
MOST_UNDONE = 5
"""Times in a row that limits are set again before the call is given up."""


class CallSession(RealtimeSession):
    """See relay.SocketSession; nothing comes from a client here. `outbox`: events of ours for the sideband."""

    def __init__(self, services: Services, key: ApiKey, config: CallConfig, begin: Begin) -> None:
        """Open a session that was checked; nothing is held yet. Raises Rejection."""
        super().__init__(services, key, urlencode({"model": config.model}).encode(), begin)
        self._capping = False
        self._config, self._limits = config, config.limits
        self._state = SessionState(SessionSettings(config.limits.cap).updated(config.session, self._most))
        self._held_limits: CallLimits | None = None
        self._agreed = config.limits
        """Limits that were held for last, as ours."""
        self._undone = 0
        self._snapshot = re.compile(re.escape(config.model) + r"-\d{4}-\d\d-\d\d")
        """A name that the server may show instead of the one it was asked for."""
        self._exceeded = False
        """True while the session's limits are higher than what could be held for."""
        self._playing = False
        self._refusal: Rejection | None = None
        """Why nothing is held for the next response, while the last one is still heard."""
        self._opened = time.monotonic()
        self._voiced: dict[str, tuple[int, int]] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.winding_up = False
        """True once the call is being ended: what runs is heard to its end, and nothing new may begin."""
        self.outbox: deque[bytes] = deque()

    @property
    def is_answering(self) -> bool:
        """True while a response runs."""
        return bool(self._running)

    def opened_with(self) -> dict[str, Any]:
        """Session to open the call with, within what is held for."""
        return self._config.with_limits(self._limits)

    # -- holds ------------------------------------------------------------------------------------

    async def stand(self) -> None:
        """Hold for the next response; where money is short, with lower limits. Raises Rejection."""
        before, agreed = self._limits, self._agreed
        await self._hold_for(before.ladder())
        if self._limits != before:
            self._set_limits()
            # lower than what we had: the conversation is not that long yet; lower than what its browser made of it
            self._exceeded = not before.within(agreed)

    def _worst(self) -> tuple[ConversationSize, int]:
        """See RealtimeSession: what the limits allow. Sound is dearest, so all of it might be."""
        return ConversationSize(self._limits.before, self._size.likely, self._limits.tokens), self._limits.cap

    async def _hold_for(self, ladder: list[CallLimits]) -> None:
        """Have a standing hold for the first of these that there is money for; they become the limits."""
        standing = self._standing
        if (
            standing is not None
            and standing.hold.is_open
            and self._held_limits is not None
            and ladder[0].within(self._held_limits)
            and standing.hold.terms == self._begin.terms
        ):
            self._limits = ladder[0]
            return
        for limits in ladder:
            self._limits = limits
            try:
                hold = partial(self._hold_worst, last=limits is ladder[-1])
                self._standing = await hold_instead(self._standing, self._begin, hold)
            except Rejection as rejection:
                self._standing = self._held_limits = None
                if limits is ladder[-1] or rejection.status != PAYMENT_REQUIRED:
                    raise
            else:
                self._held_limits = self._agreed = limits
                return

    async def _hold_worst(self, exchange: SocketExchange, wait: bool, *, last: bool) -> None:
        size, cap = self._worst()
        await self._hold(exchange, size.plus(HEADROOM_TOKENS, 0, 0), cap, wait=wait and last)

    def _set_limits(self) -> None:
        """Tell the server our limits."""
        session = {"type": "realtime", **limits_as_sent(self._limits, self._config.session)}
        self.outbox.append(msgspec.json.encode({"type": "session.update", "session": session}))

    # -- from the sideband ------------------------------------------------------------------------

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession; nothing is passed on."""
        name = frame.get("type")
        if not isinstance(name, str):
            return b""
        if self.winding_up:
            await self._last_events(name, frame, raw)
        elif name in SESSION_EVENTS:
            async with self._money:
                await self._take_session(frame)
        elif name.startswith(FOREIGN):
            raise self._finished(forbidden("Only function tools are available in calls.", "tool_not_allowed"))
        else:
            await self._take(name, frame, raw)
        return b""

    async def _take(self, name: str, frame: Frame, raw: bytes) -> None:
        if name in ITEM_EVENTS:
            self._count_item(frame.get("item"))
        if name.startswith(HEARD_EVENTS):
            await self._before_hearing(name, frame)
        await super().from_upstream(frame, raw)
        if name == BUFFER + "committed":
            self._count_speech(str(frame.get("item_id", "")))
        elif name == TRANSCRIPT:
            self._count_spoken(frame)
        elif name == "response.done":
            await self._stand_again()
        elif name.startswith("output_audio_buffer."):
            self._playing = name.endswith(".started")
            if not self._playing and self._refusal is not None:
                raise self._finished(self._refusal)

    async def _last_events(self, name: str, frame: Frame, raw: bytes) -> None:
        """Take what still comes of responses; one that has begun meanwhile is held for, and cancelled."""
        if name in SESSION_EVENTS:
            return
        if name.startswith(HEARD_EVENTS):
            await self._before_hearing(name, frame)
        await super().from_upstream(frame, raw)
        if name == TRANSCRIPT:
            self._count_spoken(frame)
        elif name == "response.created":
            self._cancel(response_id_of(frame))

    def wind_up(self) -> None:
        """Cancel what runs: the call is being ended. Whatever still comes is taken, and nothing is held for anew."""
        self.winding_up = True
        for response_id in self._running:
            self._cancel(response_id)

    def _cancel(self, response_id: str) -> None:
        event = {"type": "response.cancel", **({"response_id": response_id} if response_id else {})}
        self.outbox.append(msgspec.json.encode(event))

    async def _take_session(self, frame: Frame) -> None:
        """Hold for what the server says that the session is now."""
        session = frame.get("session")
        if not isinstance(session, dict):
            return
        try:
            self._check(session)
            new = shown_limits(session, self._limits, self._most, self._config.window)
            await self._take_limits(new)
        except Rejection as rejection:
            raise self._finished(rejection) from None

    def _check(self, session: dict[str, Any]) -> None:
        """Refuse what is not sold, and what is somebody else's. Raises Rejection."""
        if session.get("type", "realtime") != "realtime":
            raise forbidden("Only realtime sessions are offered here.", "session_not_allowed")
        shown = session.get("model")
        if shown not in (None, self._config.model) and not self._snapshot.fullmatch(str(shown)):
            raise forbidden("The model of a call cannot be changed.", "model_change_not_allowed")
        refuse_shared(session)
        self._state.confirm(session, self._most)
        for model in self._state.transcribers:
            self._heard.check(model)

    async def _take_limits(self, new: CallLimits) -> None:
        before, self._limits, self._exceeded = self._limits, new, False
        if self._running:
            return  # the next hold will be for these
        try:
            await self._hold_for([new])
            self._undone = 0
        except Rejection as rejection:
            self._undone += 1
            undoable = new.before <= before.before and self._undone <= MOST_UNDONE
            if rejection.status != PAYMENT_REQUIRED or not undoable:
                raise
            await self._hold_for(before.ladder())
            self._exceeded = True
            self._set_limits()

    async def _stand_again(self) -> None:
        """Hold for the next response; without money for it the call ends, once what is paid for was heard."""
        if self._running:
            return
        async with self._money:
            try:
                await self.stand()
            except Rejection as rejection:
                if not self._playing:
                    raise self._finished(rejection) from None
                self._refusal = rejection

    async def _begun(self, frame: Frame) -> None:
        try:
            await super()._begun(frame)
        except Finished:
            await self._begin_anyhow(frame)
            raise
        self._refusal = None
        name, response = response_id_of(frame), frame.get("response")
        apart = isinstance(response, dict) and "conversation_id" in response and response["conversation_id"] is None
        if apart and name in self._running:
            self._running[name] = self._running[name]._replace(reads=None, joins=False)
        if self._exceeded:
            raise Finished(POLICY_VIOLATION, "A response began beyond what could be held for.")

    async def _begin_anyhow(self, frame: Frame) -> None:
        """Have a response that cannot be held for in the books, if only by a token.

        What it used until it is cancelled is charged as far as there is money, and our loss beyond.
        """
        exchange = self._begin()
        with contextlib.suppress(Rejection):
            await self._hold(exchange, ConversationSize(), 1)
            exchange.response_id = response_id_of(frame) or UNNAMED
            self._running[exchange.response_id] = Reply(exchange, None, joins=False)
            await exchange.mark_sent(at_work=True)

    def _finished(self, rejection: Rejection) -> Finished:
        return Finished(POLICY_VIOLATION, rejection.code, self.error(rejection, {}))

    # -- estimates, for a response whose usage never comes -----------------------------------------

    def _count_item(self, item: Any) -> None:
        """Count an item that was put into the conversation; one that is being said is counted by its response."""
        if not isinstance(item, dict) or item.get("status") == "in_progress":
            return
        name = str(item.get("id", ""))[:120]
        if name in self._seen:
            return
        self._seen[name] = None
        if len(self._seen) > KNOWN_ITEMS:
            self._seen.popitem(last=False)
        self._size = self._size.with_items([item], len(msgspec.json.encode(item)), self._state)

    async def _before_hearing(self, name: str, frame: Frame) -> None:
        """Have heard as much as time has passed, or as the server says, and hold for its transcription."""
        item = str(frame.get("item_id", ""))[:120]
        if name == BUFFER + "speech_started":
            self._voiced[item] = (_whole(frame.get("audio_start_ms")), -1)
        elif name == BUFFER + "speech_stopped" and item in self._voiced:
            self._voiced[item] = (self._voiced[item][0], _whole(frame.get("audio_end_ms")))
        said = max((end for _, end in self._voiced.values()), default=0)
        elapsed = round((time.monotonic() - self._opened) * 1_000)
        self._heard.sent = max(self._heard.sent + 1, elapsed, said)  # something was heard, however short
        if name in (BUFFER + "speech_started", BUFFER + "committed"):
            async with self._money:
                try:
                    await self._heard.ensure(self._state.transcribers, self._state.hint)
                except Rejection as rejection:
                    raise self._finished(rejection) from None

    def _count_speech(self, item: str) -> None:
        """Count the user's speech, where the server said how long it was."""
        start, end = self._voiced.pop(item, (0, -1))
        if end > start:
            self._size = self._size.plus(0, 0, -(-(end - start) * AUDIO_TOKENS_PER_SECOND // 1_000))
        else:
            self._heard.charge_only_a_transcript(item)

    def _count_spoken(self, frame: Frame) -> None:
        reply, delta = self._reply_of(str(frame.get("response_id", ""))), frame.get("delta")
        if reply is not None and isinstance(delta, str):
            reply.exchange.media += len(delta) * SPOKEN_TOKENS_PER_CHARACTER

    # -- the end ----------------------------------------------------------------------------------

    async def end(self, outcome: Outcome) -> None:
        """See SocketSession."""
        await super().end(outcome)
        self._held_limits = None


def _whole(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0
