"""GET /v1/realtime: a spoken conversation, in which every response reads all that was said before again.

The server may start a response by itself whenever it hears the user stop, so money is held before anything is sent that
could lead to one: the *standing* hold covers one response to the conversation as it is, and grows with it. A response
that begins takes the standing hold over; `response.done` settles it. Transcription of the user's speech is a charge of
its own, an item each (transcriptions.py). What the session is, and how long the conversation, is realtime_state.py's.
"""

import asyncio
import os
import re
from collections import deque
from itertools import count
from typing import Any, NamedTuple

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.pricing import PriceBook
from billing.money.usage_record import Outcome
from proxy.gateway.admission import admit
from proxy.gateway.answers.events import SPOKEN
from proxy.gateway.answers.reports import response_report, text_of
from proxy.gateway.bodies.inventory import REALTIME_CLIENT, named, offered
from proxy.gateway.bodies.json_body import whole_number
from proxy.gateway.bodies.parsed import FRAMING_TOKENS, Parsed
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.plan import Plan, make_plan, sold_model
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import ANOTHER_TRY, PAYMENT_REQUIRED, Begin, SocketExchange, hold_instead
from proxy.gateway.sockets.realtime_frames import UNNAMED, error_event, names_file, refuse_shared, response_id_of
from proxy.gateway.sockets.realtime_state import (
    AUDIO_TOKENS_PER_SECOND,
    ENDLESS,
    ConversationSize,
    SessionSettings,
    SessionState,
    milliseconds_of,
)
from proxy.gateway.sockets.relay import POLICY_VIOLATION, Finished, Frame
from proxy.gateway.sockets.transcriptions import HEARD_EVENTS, Transcriptions
from proxy.web.raw_request import query_pairs
from proxy.web.rejections import Rejection, forbidden, invalid, not_found

QUERY_MODEL = re.compile(r"^[A-Za-z0-9._:-]{1,120}$")
CLIENT_EVENTS = offered(REALTIME_CLIENT)
GROWING = named(REALTIME_CLIENT, "bounds") - {"response.create"}
OWN_READING = ("input", "instructions", "tools")
"""Members of a response that it reads instead of the session's."""
KNOWN_EVENTS = 1_000
DONE = "response.done"
OUR_EVENT = "tollkeeper_output_cap"
SPOKEN_TOKENS_PER_SECOND = 20
HEADROOM_TOKENS = 2_000
"""Tokens that the standing hold covers beyond the conversation: it need not grow with every frame."""
HEADROOM = (HEADROOM_TOKENS, 0, HEADROOM_TOKENS // 4)
DEFAULT_OUTPUT_TOKENS = 4_096


class Reply(NamedTuple):
    """A response, and the size of the conversation that it reads; None for one that does not read all of it.

    `joins`: what it says becomes part of the conversation; `event_id`: ours, of the event that asked for it.
    """

    exchange: SocketExchange
    reads: ConversationSize | None
    joins: bool = True
    event_id: str = ""


def query_of(query: bytes) -> dict[str, str]:
    """Members of a socket's query. Raises Rejection."""
    return dict(query_pairs(query))


class RealtimeSession:
    """See relay.SocketSession."""

    speaks_first = True

    def __init__(self, services: Services, key: ApiKey, query: bytes, begin: Begin) -> None:
        """Open a session. Raises Rejection when the model is not sold, or the query holds what is not known here."""
        self._services, self._key, self._begin = services, key, begin
        given = query_of(query)
        if given.keys() - {"model"}:
            raise invalid(
                "Only `model`, or `intent=transcription`, is taken from the query here.",
                min(given.keys() - {"model"})[:40],
                "unknown_parameter",
            )
        name = given.get("model", "")
        if not QUERY_MODEL.match(name):
            raise invalid(
                "Name the model in the query: ?model=gpt-realtime-2.1.", "model", "missing_required_parameter"
            )
        self._name = name
        sold = sold_model(name, REALTIME.name, key, begin.terms.prices, services.settings.billing, services.today())
        self._most = sold.max_output_tokens or DEFAULT_OUTPUT_TOKENS
        self._first_cap = min(services.settings.holds.realtime_max_output_tokens, self._most)
        # our own event is the first that the server gets; if it refuses it, the session ends
        self._state = SessionState(SessionSettings(self._first_cap))
        self._state.ask(OUR_EVENT, {"max_output_tokens": self._first_cap}, self._most)
        self._size = ConversationSize()
        self._standing: SocketExchange | None = None
        self._covered: tuple[int, int] = (0, 0)
        self._asked: deque[Reply] = deque()
        self._running: dict[str, Reply] = {}
        self._ended: deque[str] = deque(maxlen=KNOWN_EVENTS)
        self._heard = Transcriptions(services, key, begin)
        self._money = asyncio.Lock()
        """Both directions hold: what one of them replaces the other must not have taken meanwhile."""
        self._capping = True
        self._in_doubt = False
        """An error named no event: what waits first may have been refused."""
        self._mark, self._numbers = f"tollkeeper_{os.urandom(8).hex()}_", count()
        self._clients_ids: dict[str, Any] = {}
        """Our event ids, which nobody else gives → those that the client gave, if any."""

    def target(self) -> str:
        """See SocketSession."""
        services = self._services
        admit(services.settings, self._key.home_id, services.overloaded)
        return f"/realtime?model={self._name}"

    def least(self) -> int:
        """See SocketSession: a standing hold for the shortest answer that a client can ask for."""
        return self._plan(self._begin.terms.prices, ConversationSize().plus(*HEADROOM), 1).ceiling.amount

    def opening(self) -> list[bytes]:
        """See SocketSession. An endless answer could not be held for: a session has a cap from its first moment."""
        session = {"type": "realtime", "max_output_tokens": self._first_cap}
        return [msgspec.json.encode({"type": "session.update", "event_id": OUR_EVENT, "session": session})]

    # -- from the client --------------------------------------------------------------------------

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name = frame["type"]
        if name not in CLIENT_EVENTS:
            raise invalid(f"Events of type {name[:60]!r} are not available here.", "type", "unsupported_event")
        if names_file(frame):
            raise not_found("No such file. Send the picture itself.", "file_not_found")
        if name not in GROWING and name != "response.create":
            return raw
        async with self._money:
            return await self._held_for(frame, raw)

    async def _held_for(self, frame: Frame, raw: bytes) -> bytes:
        """Hold for what this frame may lead to; what goes upstream. Raises Rejection: then nothing of it counts."""
        name, asked = frame["type"], frame.get("event_id")
        size, sent = self._size, self._heard.sent
        try:
            if name == "response.create":
                return await self._create(frame, raw)
            if name == "session.update":
                raw = self._update(frame)
            self._grow(frame, len(raw))
            await self._ensure()
            await self._heard.ensure(self._state.transcribers, self._state.hint)
        except Rejection as rejection:
            self._size, self._heard.sent = size, sent
            if (own := frame.get("event_id")) != asked:
                self._state.refuse(str(own))
                frame["event_id"] = asked
            if rejection.status == PAYMENT_REQUIRED:
                raise Finished(POLICY_VIOLATION, "insufficient_credits", self.error(rejection, frame)) from None
            raise
        return raw

    def _update(self, frame: Frame) -> bytes:
        """Session.update with our cap in it where it sets none. Raises Rejection for what has no price here."""
        session = frame.get("session")
        if not isinstance(session, dict):
            raise invalid("`session` must be an object.", "session", "invalid_type")
        if session.get("type", "realtime") != "realtime":
            raise forbidden(
                "This is a realtime session: open another one with ?intent=transcription.",
                "session_not_allowed",
                "session.type",
            )
        if session.get("model") not in (None, self._name):
            raise forbidden(
                "The model of a session cannot be changed: open another one.",
                "model_change_not_allowed",
                "session.model",
            )
        refuse_shared(session)
        cap = session.get("max_output_tokens", session.get("max_response_output_tokens"))
        if cap in ENDLESS:
            session["max_output_tokens"] = self._state.candidates[-1].cap
        else:
            self._check_cap(cap)
        wanted = self._state.candidates[-1].updated(session, self._most)
        if wanted.transcriber:
            self._heard.check(wanted.transcriber)
        self._state.ask(self._named(frame), session, self._most)
        return msgspec.json.encode(frame)

    def _named(self, frame: Frame) -> str:
        """Give a client's event an id of ours, so that a refusal says for sure which one it is about."""
        own = f"{self._mark}{next(self._numbers)}"
        self._clients_ids[own] = frame.get("event_id")
        if len(self._clients_ids) > KNOWN_EVENTS:
            self._clients_ids.pop(next(iter(self._clients_ids)))
        frame["event_id"] = own
        return own

    def _check_cap(self, cap: Any) -> int:
        number = whole_number(cap, "max_output_tokens")
        if not 1 <= number <= self._most:
            raise invalid(f"`max_output_tokens` must be a whole number from 1 to {self._most}.", "max_output_tokens")
        return number

    def _grow(self, frame: Frame, size: int) -> None:
        """Count what this frame may add to the conversation."""
        sound = frame.get("audio")
        if frame["type"] == "input_audio_buffer.append":
            milliseconds = milliseconds_of(len(sound) if isinstance(sound, str) else 0, self._state)
            self._heard.sent += milliseconds
            self._size = self._size.plus(0, 0, -(-milliseconds * AUDIO_TOKENS_PER_SECOND // 1_000))
        else:
            self._size = self._size.with_items([frame.get("item")], size, self._state)

    async def _create(self, frame: Frame, raw: bytes) -> bytes:
        """Hold for the response asked for; the standing hold becomes it where it covers it."""
        response = frame.get("response") or {}
        if not isinstance(response, dict):
            raise invalid("`response` must be an object.", "response", "invalid_type")
        refuse_shared(response)
        cap = response.get("max_output_tokens")
        if cap in ENDLESS and "max_output_tokens" in response:
            response["max_output_tokens"] = self._state.cap
        own = self._state.cap if cap in ENDLESS else self._check_cap(cap)
        if own != self._state.cap or any(response.get(name) for name in OWN_READING):
            exchange = self._begin()
            await self._hold(exchange, self._size.with_items(response.get("input"), len(raw), self._state), own)
        else:
            await self._ensure()
            exchange = self._take_standing()
        await exchange.mark_sent(at_work=False)
        joins = response.get("conversation") != "none"
        reads = self._size if joins and not any(name in response for name in OWN_READING) else None
        self._asked.append(Reply(exchange, reads, joins, self._named(frame)))
        return msgspec.json.encode(frame)

    # -- holds ------------------------------------------------------------------------------------

    def _plan(self, prices: PriceBook, size: ConversationSize, cap: int) -> Plan:
        """Plan the worst case of one response to a conversation, at these prices. Raises Rejection."""
        parsed = Parsed(
            model=self._name,
            source=b"",
            stream=True,
            input_bytes_bound=size.text + FRAMING_TOKENS,
            audio_tokens=size.audio,
            estimated_input=size.likely + size.audio,
            estimated_audio=size.audio,
            explicit_cap=cap,
            cap_field="max_output_tokens",
            audio_output=True,
        )
        services = self._services
        return make_plan(REALTIME, parsed, self._key, prices, services.settings, today=services.today())

    def _worst(self) -> tuple[ConversationSize, int]:
        """Most that the next response reads, and its output cap."""
        return self._size, self._state.cap

    async def _ensure(self) -> None:
        """Have a standing hold that covers the conversation. Raises Rejection."""
        size, cap = self._worst()
        needed, standing = size.text + size.audio, self._standing
        covered, covered_cap = self._covered
        if (
            standing is not None
            and standing.hold.is_open
            and (needed <= covered and cap <= covered_cap)
            and standing.hold.terms == self._begin.terms
        ):
            return
        size = size.plus(*HEADROOM)

        async def hold(exchange: SocketExchange, wait: bool) -> None:
            await self._hold(exchange, size, cap, wait=wait)

        self._standing = await hold_instead(standing, self._begin, hold)
        self._covered = (needed + HEADROOM_TOKENS // 4, cap)

    def _take_standing(self) -> SocketExchange:
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.begin()
        return standing or self._begin()

    async def _hold(self, exchange: SocketExchange, size: ConversationSize, cap: int, *, wait: bool = True) -> None:
        """Hold for one response to a conversation. Raises Rejection, after an account of it."""
        exchange.context.key = self._key
        try:
            await exchange.hold_for(self._plan(exchange.hold.terms.prices, size, cap), self._key, wait=wait)
        except Rejection as rejection:
            if wait or rejection.status not in ANOTHER_TRY:  # else it is tried again without what stands
                await exchange.refuse(rejection)
            raise

    # -- from upstream ----------------------------------------------------------------------------

    async def sending(self) -> None:
        """See SocketSession. What is owed was noted as it was read: nothing here waits for a connection."""

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name = frame.get("type")
        if name == "session.updated":
            session = frame.get("session")
            self._state.confirm(session if isinstance(session, dict) else {}, self._most)
            # the answer to our own event is the first one, since events are answered in order
            shown, self._capping = b"" if self._capping else raw, False
            return shown
        if name == "error":
            return await self._failed(frame, raw)
        if name == "response.created":
            async with self._money:
                await self._begun(frame)
        elif name == DONE:
            await self._done(frame)
        elif isinstance(name, str) and name.startswith(HEARD_EVENTS):
            async with self._money:
                await self._listen(name, frame)
        elif (reply := await self._saying(name, text_of(frame, "response_id"))) is not None:
            exchange = reply.exchange
            if name in SPOKEN and isinstance(frame.get("delta"), str):
                spoken = self._state.confirmed.spoken_bytes
                exchange.media += -(-len(frame["delta"]) * 3 * SPOKEN_TOKENS_PER_SECOND // (4 * spoken))
            else:
                exchange.passed.take(frame)
        return raw

    async def _failed(self, frame: Frame, raw: bytes) -> bytes:
        """Take an error: it ends a response only when it names the event that asked for it."""
        error = frame.get("error")
        about = error.get("event_id") if isinstance(error, dict) else None
        if self._capping and about in (None, OUR_EVENT):
            raise Finished(POLICY_VIOLATION, "The session could not be given an output cap.", raw)
        if not isinstance(about, str) or about not in self._clients_ids or not isinstance(error, dict):
            self._in_doubt = self._in_doubt or (about is None and bool(self._asked))
            return raw
        self._state.refuse(about)
        for reply in [one for one in self._asked if one.event_id == about]:
            self._asked.remove(reply)
            await reply.exchange.abandon("upstream_error")
        return msgspec.json.encode({**frame, "error": {**error, "event_id": self._clients_ids[about]}})

    async def _listen(self, name: str, frame: Frame) -> None:
        """Take an event about the user's sound."""
        try:
            await self._heard.take(name, frame, self._state.confirmed)
        except Rejection as rejection:
            raise Finished(POLICY_VIOLATION, rejection.code, self.error(rejection, {})) from None

    async def _begun(self, frame: Frame) -> None:
        if response_id_of(frame) in self._running:
            return  # it said something before it was announced
        reply = self._next_reply()
        exchange = reply.exchange
        try:
            if not exchange.hold.is_open:  # nothing stood ready: hold now, or end the session
                await self._hold(exchange, *self._worst())
            exchange.response_id = response_id_of(frame) or f"{UNNAMED}{next(self._numbers)}"
            self._expect_input(reply)
            self._running[exchange.response_id] = reply
            await exchange.mark_sent(at_work=True)
        except Rejection as rejection:
            raise Finished(POLICY_VIOLATION, rejection.code, self.error(rejection, {})) from None

    def _expect_input(self, reply: Reply) -> None:
        size = reply.reads or self._size
        reply.exchange.expect_input(size.likely + size.audio, size.audio)

    def _next_reply(self) -> Reply:
        """Take the response that begins: the first that was asked for; in doubt, the one with the largest hold."""
        if not self._asked:
            return Reply(self._take_standing(), self._size)
        if not self._in_doubt:
            return self._asked.popleft()
        reply = max(self._asked, key=lambda one: one.exchange.hold.amount)
        self._asked.remove(reply)
        return reply

    def _reply_of(self, response_id: str) -> Reply | None:
        """Find the running response of that id, or the only one for an event that names none that runs."""
        found = self._running.get(response_id)
        if found is not None or len(self._running) != 1:
            return found
        ((name, only),) = self._running.items()
        return only if not response_id or name.startswith(UNNAMED) else None

    async def _saying(self, event: Any, response_id: str) -> Reply | None:
        """Find the response that an event is of. One that says something and was never announced begins with it."""
        reply = self._reply_of(response_id)
        told = isinstance(event, str) and event.startswith("response.")
        named = bool(response_id) and response_id not in self._ended
        if reply is None and told and (named or (not response_id and event == DONE and self._asked)):
            async with self._money:
                await self._begun({"response": {"id": response_id}})
            reply = self._reply_of(response_id)
        return reply

    async def _done(self, frame: Frame) -> None:
        report = response_report(frame)
        reply = await self._saying(DONE if report.usage is not None else "", response_id_of(frame))
        if reply is None:
            return
        usage, exchange = report.usage, reply.exchange
        if usage is not None and usage.input_tokens and reply.joins:
            if reply.reads is not None:
                self._size = self._size.corrected(usage, reply.reads)
            else:
                self._size = self._size.with_output(usage)
            self._covered = (0, 0)
        try:
            await exchange.settle(report._replace(model="", items=()))
        finally:
            # interrupted before its charge was decided, `end` must find it; afterwards not
            if not exchange.hold.is_open:
                self._running.pop(exchange.response_id, None)
                self._ended.append(exchange.response_id)

    # -- the end ----------------------------------------------------------------------------------

    def error(self, rejection: Rejection, frame: Frame) -> bytes:
        """See SocketSession."""
        return error_event(rejection, frame)

    def waits(self, *, gone: bool) -> bool:
        """See SocketSession. A response that nobody hears is cut off: what was spoken is charged."""
        return not gone and bool(self._running)

    async def end(self, outcome: Outcome) -> None:
        """See SocketSession."""
        if at_work := not self._running and bool(self._asked):
            self._expect_input(self._asked[0])
        for place, reply in enumerate((*self._running.values(), *self._asked)):
            await reply.exchange.abandon(outcome, at_work=at_work and not place)
        await self._heard.end(outcome)
        if self._standing is not None:
            await self._standing.hold.release()
        self._running.clear()
        self._asked.clear()
        self._standing = None
