"""GET /v1/realtime: a spoken conversation, in which every response reads all that was said before again.

The server may start a response by itself whenever it hears the user stop, so money is held before anything is sent that
could lead to one: the *standing* hold covers one response to the conversation as it is, and grows with it. A response
that begins takes the standing hold over; `response.done` settles it. Transcription of the user's speech is billed at
its own model and charged with the next response.
"""

import re
from collections import deque
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.pricing import Model, PriceBook
from billing.money.usage import Usage
from billing.money.usage_record import Outcome
from proxy.gateway.admission import admit
from proxy.gateway.answers.events import audio_report, response_report
from proxy.gateway.answers.meter import NO_REPORT
from proxy.gateway.bodies.media import is_custom_voice
from proxy.gateway.bodies.parsed import FRAMING_TOKENS, Parsed
from proxy.gateway.endpoints import REALTIME
from proxy.gateway.plan import Plan, make_plan, sold_model
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import Begin, SocketExchange
from proxy.gateway.sockets.relay import POLICY_VIOLATION, Finished, Frame
from proxy.web.rejections import Rejection, forbidden, invalid, not_found

QUERY_MODEL = re.compile(r"^[A-Za-z0-9._:-]{1,120}$")
CLIENT_EVENTS = frozenset(
    "session.update input_audio_buffer.append input_audio_buffer.commit input_audio_buffer.clear "
    "output_audio_buffer.clear conversation.item.create conversation.item.truncate conversation.item.delete "
    "conversation.item.retrieve response.create response.cancel".split()
)
GROWING = frozenset(("input_audio_buffer.append", "conversation.item.create", "session.update"))
OUR_EVENT = "tollkeeper_output_cap"
AUDIO_TOKENS_PER_SECOND = 10
SPOKEN_TOKENS_PER_SECOND = 20
PCM_BYTES_PER_SECOND = 48_000
G711_BYTES_PER_SECOND = 8_000
PCM_FORMATS = ("audio/pcm", "pcm16")
HEADROOM_TOKENS = 2_000
"""Tokens that the standing hold covers beyond the conversation: it need not grow with every frame."""
IMAGE_TOKENS = 2_000
DEFAULT_OUTPUT_TOKENS = 4_096
TRANSCRIPTIONS = "/v1/audio/transcriptions"


class RealtimeSession:
    """See relay.SocketSession."""

    def __init__(self, services: Services, key: ApiKey, query: bytes, begin: Begin) -> None:
        """Open a session. Raises Rejection when the model is not sold, or the query holds what is not known here."""
        self._services, self._key, self._begin = services, key, begin
        given = dict(parse_qsl(query.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=8))
        if given.keys() - {"model"}:
            raise invalid(
                "Only `model` is taken from the query here.", min(given.keys() - {"model"})[:40], "unknown_parameter"
            )
        name = given.get("model", "")
        if not QUERY_MODEL.match(name):
            raise invalid(
                "Name the model in the query: ?model=gpt-realtime-2.1.", "model", "missing_required_parameter"
            )
        self._name = name
        most = self._sold(name, REALTIME.name, services.terms.prices).max_output_tokens
        self._cap = min(services.settings.holds.realtime_max_output_tokens, most or DEFAULT_OUTPUT_TOKENS)
        self._text = self._audio = 0
        self._bytes_per_second = PCM_BYTES_PER_SECOND
        self._transcriber = ""
        """The name of the model that transcribes, "" for none; its prices are those of the card held under."""
        self._standing: SocketExchange | None = None
        self._covers = 0
        self._asked: deque[SocketExchange] = deque()
        self._running: dict[str, SocketExchange] = {}
        self._heard: list[tuple[str, Usage]] = []
        self._capping = True

    def _sold(self, name: str, endpoint: str, prices: PriceBook) -> Model:
        return sold_model(name, endpoint, self._key, prices, self._services.settings.billing)

    def target(self) -> str:
        """See SocketSession."""
        services = self._services
        admit(services.settings, self._key.account_id, services.overloaded)
        return f"/realtime?model={self._name}"

    def opening(self) -> list[bytes]:
        """See SocketSession. An endless answer could not be held for: a session has a cap from its first moment."""
        session = {"type": "realtime", "max_output_tokens": self._cap}
        return [msgspec.json.encode({"type": "session.update", "event_id": OUR_EVENT, "session": session})]

    # -- from the client --------------------------------------------------------------------------

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name = frame["type"]
        if name not in CLIENT_EVENTS:
            raise invalid(f"Events of type {name[:60]!r} are not available here.", "type", "unsupported_event")
        if b'"file_id"' in raw:
            raise not_found("No such file. Send the picture itself.", "file_not_found")
        if name == "session.update":
            raw = self._update(frame)
        if name in GROWING:
            self._grow(frame, len(raw))
        try:
            if name == "response.create":
                return await self._create(frame, raw)
            if name in GROWING:
                await self._ensure()
        except Rejection as rejection:
            if rejection.status == 402:
                raise Finished(POLICY_VIOLATION, "insufficient_credits", self.error(rejection, frame)) from None
            raise
        return raw

    def _update(self, frame: Frame) -> bytes:
        """Session.update with our cap in it where it sets none. Raises Rejection for what has no price here."""
        session = frame.get("session")
        if not isinstance(session, dict):
            raise invalid("`session` must be an object.", "session", "invalid_type")
        if session.get("type", "realtime") != "realtime":
            raise forbidden("Only realtime sessions are offered here.", "session_not_allowed", "session.type")
        if session.get("model") not in (None, self._name):
            raise forbidden(
                "The model of a session cannot be changed: open another one.",
                "model_change_not_allowed",
                "session.model",
            )
        _refuse_shared(session)
        cap = session.get("max_output_tokens", session.get("max_response_output_tokens"))
        if cap in (None, "inf"):
            session["max_output_tokens"] = self._cap
        else:
            self._cap = self._checked_cap(cap)
        audio = session.get("audio")
        inside = audio.get("input") if isinstance(audio, dict) else None
        heard: dict[str, Any] = inside if isinstance(inside, dict) else session
        transcription = heard.get("transcription", heard.get("input_audio_transcription"))
        if isinstance(transcription, dict) and transcription.get("model"):
            name = str(transcription["model"])
            self._transcriber = self._sold(name, TRANSCRIPTIONS, self._services.terms.prices).name
        form = heard.get("format", heard.get("input_audio_format"))
        if form is not None:
            kind = str(form.get("type") if isinstance(form, dict) else form)
            self._bytes_per_second = PCM_BYTES_PER_SECOND if kind in PCM_FORMATS else G711_BYTES_PER_SECOND
        self._covers = 0  # what stands was held for the cap and transcriber of before
        return msgspec.json.encode(frame)

    def _checked_cap(self, cap: Any) -> int:
        prices = self._services.terms.prices
        most = self._sold(self._name, REALTIME.name, prices).max_output_tokens or 2**31
        if type(cap) is not int or not 1 <= cap <= most:
            raise invalid(f"`max_output_tokens` must be a whole number from 1 to {most}.", "max_output_tokens")
        return int(cap)

    def _grow(self, frame: Frame, size: int) -> None:
        """Count what this frame may add to the conversation."""
        sound = frame.get("audio")
        item = frame.get("item")
        encoded = len(sound) if isinstance(sound, str) else 0
        for part in item.get("content") or () if isinstance(item, dict) else ():
            if isinstance(part, dict):
                encoded += len(part["audio"]) if isinstance(part.get("audio"), str) else 0
                if isinstance(part.get("image_url"), str):
                    size -= len(part["image_url"])
                    self._text += IMAGE_TOKENS
        self._audio += -(-encoded * 3 * AUDIO_TOKENS_PER_SECOND // (4 * self._bytes_per_second))
        if frame["type"] != "input_audio_buffer.append":
            self._text += size - encoded + FRAMING_TOKENS

    async def _create(self, frame: Frame, raw: bytes) -> bytes:
        """Hold for the response asked for; the standing hold becomes it where it covers it."""
        response = frame.get("response") or {}
        if not isinstance(response, dict):
            raise invalid("`response` must be an object.", "response", "invalid_type")
        _refuse_shared(response)
        cap = response.get("max_output_tokens")
        changed = cap in (None, "inf") and "max_output_tokens" in response
        if changed:
            response["max_output_tokens"] = self._cap
        own = self._cap if cap in (None, "inf") else self._checked_cap(cap)
        if response.get("input") or response.get("instructions") or own != self._cap:
            exchange = self._begin()
            await self._hold(exchange, self._text + len(raw), self._audio, own)
        else:
            await self._ensure()
            exchange = self._take_standing()
        exchange.hold.checkpoint_sent()
        self._asked.append(exchange)
        return msgspec.json.encode(frame) if changed else raw

    # -- holds ------------------------------------------------------------------------------------

    def _plan(self, prices: PriceBook, text: int, audio: int, cap: int) -> Plan:
        """Plan the worst case of one response to so much text and audio, at these prices. Raises Rejection."""
        seconds = -(-audio // AUDIO_TOKENS_PER_SECOND) + 1
        parsed = Parsed(
            model=self._name,
            source=b"",
            stream=True,
            input_bytes_bound=text + FRAMING_TOKENS,
            audio_tokens=audio,
            explicit_cap=cap,
            cap_field="max_output_tokens",
            audio_output=True,
            milliseconds=seconds * 1_000,
        )
        plan = make_plan(REALTIME, parsed, self._key, prices, self._services.settings)
        if not self._transcriber:
            return plan
        heard = plan.bounds._replace(
            input_tokens=audio,
            audio_input_tokens=audio,
            output_tokens=audio,
            audio_output=False,
            milliseconds=seconds * 1_000,
        )
        bounds = plan.bounds._replace(more=((self._sold(self._transcriber, TRANSCRIPTIONS, prices), "default", heard),))
        return plan._replace(bounds=bounds, ceiling=prices.ceiling(plan.model, plan.tier, bounds))

    async def _ensure(self) -> None:
        """Have a standing hold that covers the conversation. Raises Rejection."""
        needed = self._text + self._audio
        standing = self._standing
        if standing is not None and needed <= self._covers and standing.hold.terms == self._services.terms:
            return
        exchange = self._begin()
        await self._hold(exchange, self._text + HEADROOM_TOKENS, self._audio + HEADROOM_TOKENS // 4, self._cap)
        before, self._standing, self._covers = self._standing, exchange, needed + HEADROOM_TOKENS // 4
        if before is not None:
            await before.hold.release()

    def _take_standing(self) -> SocketExchange:
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.begin()
        return standing or self._begin()

    async def _hold(self, exchange: SocketExchange, text: int, audio: int, cap: int) -> None:
        """Hold for one response to so much text and audio. Raises Rejection, after an account of it."""
        exchange.context.key = self._key
        try:
            await exchange.hold_for(self._plan(exchange.hold.terms.prices, text, audio, cap), self._key)
        except Rejection as rejection:
            await exchange.refuse(rejection)
            raise

    # -- from upstream ----------------------------------------------------------------------------

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name = frame.get("type")
        if self._capping and name == "session.updated":
            self._capping = False
            return b""  # the answer to our own event: the first one, since events are answered in order
        if self._capping and name == "error":
            raise Finished(POLICY_VIOLATION, "The session could not be given an output cap.", raw)
        if name == "response.created":
            await self._begun(frame)
        elif name == "response.done":
            await self._done(frame)
        elif name == "conversation.item.input_audio_transcription.completed":
            self._record_transcription(frame)
        elif isinstance(frame.get("delta"), str) and (exchange := self._running.get(str(frame.get("response_id")))):
            if name == "response.output_audio.delta":
                exchange.media += -(-len(frame["delta"]) * 3 * SPOKEN_TOKENS_PER_SECOND // (4 * self._bytes_per_second))
            else:
                exchange.texts.append(frame["delta"])
        elif name == "error" and self._asked and not self._running:
            await self._asked.popleft().abandon("upstream_error")
        return raw

    async def _begun(self, frame: Frame) -> None:
        response = frame.get("response")
        response_id = str(response.get("id", "")) if isinstance(response, dict) else ""
        exchange = self._asked.popleft() if self._asked else self._take_standing()
        if not exchange.hold.is_open:  # nothing stood ready: hold now, or end the session
            try:
                await self._hold(exchange, self._text, self._audio, self._cap)
            except Rejection as rejection:
                raise Finished(POLICY_VIOLATION, rejection.code, self.error(rejection, {})) from None
        exchange.response_id = response_id
        exchange.hold.checkpoint_sent()
        self._running[response_id] = exchange

    async def _done(self, frame: Frame) -> None:
        report = response_report(frame)
        exchange = self._running.get(report.upstream_id)
        if report.usage is not None:
            # the next response reads all of this again
            spoken = report.usage.audio_input_tokens + report.usage.audio_output_tokens
            self._audio = spoken
            self._text = report.usage.input_tokens + report.usage.output_tokens - spoken
            self._covers = 0
        if exchange is not None:
            try:
                await exchange.settle(report._replace(model="", items=(), more=tuple(self._heard)))
            finally:
                # interrupted before its charge was decided, `end` must find both; afterwards neither
                if not exchange.hold.is_open:
                    self._heard.clear()
                    self._running.pop(report.upstream_id, None)

    def _record_transcription(self, frame: Frame) -> None:
        report = audio_report(frame)
        if report.usage is not None and self._transcriber:
            self._heard.append((self._transcriber, report.usage))

    # -- the end ----------------------------------------------------------------------------------

    def error(self, rejection: Rejection, frame: Frame) -> bytes:
        """See SocketSession."""
        body = msgspec.json.decode(rejection.body())
        asked = frame.get("event_id")
        error = {**body["error"], "event_id": asked if isinstance(asked, str) else None}
        return msgspec.json.encode({"type": "error", "event_id": "event_" + rejection.code, "error": error})

    def waits(self, *, gone: bool) -> bool:
        """See SocketSession. A response that nobody hears is cut off: what was spoken is charged."""
        return not gone and bool(self._running)

    async def end(self, outcome: Outcome) -> None:
        """See SocketSession. Transcription that no response was charged with is charged by the standing hold."""
        for exchange in self._running.values():
            await exchange.abandon(outcome)
        for exchange in self._asked:
            await exchange.abandon(outcome)
        if self._standing is not None and self._heard:
            await self._standing.settle(NO_REPORT._replace(usage=Usage(), more=tuple(self._heard)), outcome)
        elif self._standing is not None:
            await self._standing.hold.release()
        self._running.clear()
        self._asked.clear()
        self._standing, self._heard = None, []


def _refuse_shared(given: dict[str, Any]) -> None:
    """Refuse what points into the shared account, or spends without a price."""
    if given.get("prompt"):
        raise not_found("No such prompt template.", "prompt_not_found")
    audio = given.get("audio")
    spoken = audio.get("output") if isinstance(audio, dict) else given
    if is_custom_voice(spoken.get("voice") if isinstance(spoken, dict) else None):
        raise not_found("No such voice. Use a built-in one.", "voice_not_found")
    for tool in given.get("tools") or ():
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise invalid("Only function tools are available in realtime sessions here.", "tools", "unsupported_tool")
