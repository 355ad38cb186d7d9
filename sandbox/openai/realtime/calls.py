"""Calls: sessions that a browser speaks to over WebRTC, and a server listens to on a sideband."""

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import msgspec

from sandbox.openai.exchange.answer import Answer, Event, Request, json_answer
from sandbox.openai.exchange.bill import Spent
from sandbox.openai.exchange.channel import Channel
from sandbox.openai.exchange.record import Entry
from sandbox.openai.realtime.sdp import answer_to
from sandbox.openai.realtime.session import RealtimeSession, merged
from sandbox.openai.requests.errors import ApiError, error_object, invalid, status_error
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.steering.directives import Directives

CALLS_PATH: Final = "/v1/realtime/calls"
SIDEBAND_PATH: Final = "/v1/realtime"
_SOUND: Final = b'{"type":"response.output_audio.delta"'
_PLAYS: Final = "output_audio_buffer"


class Sideband(Protocol):
    """A server's socket to a call."""

    def write(self, data: bytes) -> None:
        """Hand frames to the socket."""

    def close(self, *, rst: bool = False) -> None:
        """Cut the socket."""

    def end(self) -> None:
        """Close the socket in order: the call has ended."""


class Line(Channel, Protocol):
    """Listeners of a call's session: every sideband, and the browser."""

    sidebands: set[Sideband]

    def hang_up(self) -> None:
        """End what is being said, and the sidebands."""


class CallSession(RealtimeSession):
    """A session over WebRTC: its sound goes another way, and no event carries it."""

    def __init__(self, channel: Channel, given: dict[str, Any]) -> None:
        """Take the session that the call is opened with."""
        super().__init__(channel)
        self._session = merged(self._session, given)

    def _on_output_clear(self, _event: dict[str, Any], _text: bytes) -> None:
        self._say(f"{_PLAYS}.cleared", {"response_id": ""})

    async def _deliver(self, answer: Answer, text: bytes, body: dict[str, Any]) -> None:
        if answer.events is not None:
            answer.events = self._without_sound(answer.events)
        await super()._deliver(answer, text, body)

    def _without_sound(self, events: Iterator[Event]) -> Iterator[Event]:
        """Leave the sound out, whose cost goes with the next event; say when it is played."""
        spent, playing = Spent(), False
        for event in events:
            if event.data.startswith(_SOUND):
                spent = Spent(
                    spent.tokens + event.spent.tokens,
                    spent.reasoning + event.spent.reasoning,
                    spent.audio + event.spent.audio,
                )
                if not playing:
                    playing = True
                    yield self._plays("started")
                continue
            both = Spent(
                spent.tokens + event.spent.tokens,
                spent.reasoning + event.spent.reasoning,
                spent.audio + event.spent.audio,
            )
            spent = Spent()
            yield msgspec.structs.replace(event, spent=both)
        if playing:
            yield self._plays("stopped")

    def _plays(self, what: str) -> Event:
        value = {"type": f"{_PLAYS}.{what}", "event_id": self._event_id(), "response_id": ""}
        return Event(msgspec.json.encode(value), counted=False)


class Call:
    """One call. `events`: how many its browser sent, which it can only once it is connected."""

    def __init__(self, call_id: str, line: Line, session: CallSession) -> None:
        """Take a session that has not started."""
        self.id, self.line, self.session = call_id, line, session
        self.ended = False
        self.events = 0

    def hang_up(self) -> None:
        """End it, once."""
        if not self.ended:
            self.ended = True
            self.line.hang_up()

    def shown(self) -> dict[str, Any]:
        """Return the call as the control paths show it."""
        return {
            "id": self.id,
            "running": not self.ended,
            "events": self.events,
            "sidebands": len(self.line.sidebands),
            "session": self.session.shown,
        }


class Calls:
    """All calls of the simulator."""

    def __init__(self, open_line: Callable[[Request, str], Line]) -> None:
        """`open_line` makes the line of a call, by the request that created it and its id."""
        self._open_line = open_line
        self._calls: dict[str, Call] = {}

    async def answer(self, request: Request, entry: Entry) -> Answer:
        """Answer a POST under /v1/realtime/calls. Raises ApiError."""
        name, _, verb = request.path.removeprefix(CALLS_PATH).strip("/").partition("/")
        if request.method == "POST" and not name:
            return await self._create(request, entry)
        if request.method != "POST" or verb != "hangup":
            raise ApiError(404, error_object(f"Invalid URL ({request.method} {request.path})", "invalid_request_error"))
        self.running(name).hang_up()
        return Answer(200)

    async def _create(self, request: Request, entry: Entry) -> Answer:
        sdp, given = _offer(request, entry)
        if not sdp.startswith("v=0") or "m=audio" not in sdp:
            raise invalid("Invalid SDP offer.", "sdp", "invalid_offer")
        if given.get("type", "realtime") != "realtime":
            raise invalid(f"Invalid value: '{given['type']}'.", "session.type", "invalid_value")
        model = given.get("model") or parse_qs(request.query).get("model", [""])[0]
        if not model:
            raise missing("model")
        opened = msgspec.structs.replace(request, method="GET", path=SIDEBAND_PATH, query=f"model={model}")
        call_id = f"rtc_{len(self._calls):04d}_{entry.request_id[-12:]}"
        line = self._open_line(opened, call_id)
        call = Call(call_id, line, CallSession(line, {"type": "realtime", **given, "model": model}))
        await call.session.start()
        self._calls[call_id] = call
        answer = Answer(201, answer_to(sdp).encode(), content_type="application/sdp", response_id=call_id)
        answer.directives = Directives(headers={"location": f"{CALLS_PATH}/{call_id}"})
        return answer

    def running(self, call_id: str) -> Call:
        """Return the call that runs under that id. Raises ApiError."""
        call = self._calls.get(call_id)
        if call is None or call.ended:
            shown = error_object("No session found for the provided call_id.", "invalid_request_error")
            raise ApiError(404, shown | {"code": "call_id_not_found"})
        return call

    def forget(self, sideband: Sideband) -> None:
        """Say nothing more to a sideband that is gone."""
        for call in self._calls.values():
            call.line.sidebands.discard(sideband)

    def shown(self) -> list[dict[str, Any]]:
        """Return every call, oldest first."""
        return [call.shown() for call in self._calls.values()]

    def play(self, call_id: str, body: bytes) -> Answer:
        """Be the browser of a call: send events on its data channel, or leave. Raises ApiError."""
        call = self.running(call_id)
        try:
            events = msgspec.json.decode(body, type=list[dict[str, Any]])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ApiError(400, error_object(str(error), "sandbox_error")) from None
        call.events += len(events)
        for event in events:
            call.line.spawn(call.session.message(msgspec.json.encode(event)))
        return json_answer(call.shown())

    def leave(self, call_id: str) -> Answer:
        """Close the browser of a call. Raises ApiError."""
        call = self.running(call_id)
        call.hang_up()
        return json_answer(call.shown())


class SidebandSession:
    """A server's socket to a call: it hears what the browser hears, and may say what it may say."""

    def __init__(self, channel: Channel, sideband: Sideband, calls: Calls) -> None:
        """Take the id of the call from the handshake."""
        self._channel, self._sideband, self._calls = channel, sideband, calls
        self._id = parse_qs(channel.request.query).get("call_id", [""])[0]

    def check(self) -> None:
        """Refuse a handshake for a call that does not run, or as the settings ask."""
        status = self._channel.simulator.live.sideband_status
        if status:
            raise ApiError(status, status_error(status))
        self._calls.running(self._id)

    async def start(self) -> None:
        """Listen from now on; nothing is said of what was before."""
        self._calls.running(self._id).line.sidebands.add(self._sideband)

    async def message(self, text: bytes) -> None:
        """Handle one event of the server."""
        await self._calls.running(self._id).session.message(text)


def _offer(request: Request, entry: Entry) -> tuple[str, dict[str, Any]]:
    """Return (the SDP offer, the session), sent raw or as a form. Raises ApiError."""
    if entry.form_error is not None:
        raise entry.form_error
    kind = request.headers.get("content-type", "")
    if kind.startswith("application/sdp"):
        return request.body.decode("utf-8", "replace"), {}
    form = entry.body if isinstance(entry.body, dict) else {}
    if not kind.startswith("multipart/form-data") or not isinstance(form.get("sdp"), str):
        raise missing("sdp")
    try:
        session = msgspec.json.decode(form.get("session") or "{}")
    except msgspec.DecodeError:
        session = None
    if not isinstance(session, dict):
        raise wrong_type("session", "an object", session)
    return form["sdp"], session
