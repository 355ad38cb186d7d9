"""GET /v1/realtime?intent=transcription: sound that is written down and never answered.

Each item of sound is a charge of its own at its transcriber (transcriptions.py). Sound is taken once a transcriber is
known, wished for or the server's own: before that nothing could be held for it. A response would read the conversation,
which nothing is held for: none is asked for, and one that begins all the same ends the socket.
"""

import asyncio
import os
from itertools import count
from typing import Any

import msgspec

from billing.ledger.accounts import ApiKey
from billing.money.usage_record import Outcome
from proxy.gateway.admission import admit
from proxy.gateway.services import Services
from proxy.gateway.sockets.exchange import PAYMENT_REQUIRED, Begin
from proxy.gateway.sockets.realtime_frames import error_event, names_file, refuse_shared
from proxy.gateway.sockets.realtime_state import SessionSettings, SessionState, milliseconds_of
from proxy.gateway.sockets.relay import POLICY_VIOLATION, Finished, Frame
from proxy.gateway.sockets.transcriptions import HEARD_EVENTS, Transcriptions
from proxy.web.rejections import Rejection, forbidden, invalid, not_found

KIND = "transcription"
UPDATE, APPEND = "session.update", "input_audio_buffer.append"
CLIENT_EVENTS = frozenset((UPDATE, APPEND, "input_audio_buffer.commit", "input_audio_buffer.clear"))
NAME_A_MODEL = "Name the model first: a session.update with `audio.input.transcription.model`."


class TranscriptionSession:
    """See relay.SocketSession."""

    speaks_first = True

    def __init__(self, services: Services, key: ApiKey, begin: Begin) -> None:
        """Nothing is heard yet."""
        self._services, self._key = services, key
        self._state = SessionState(SessionSettings(0))
        self._heard = Transcriptions(services, key, begin)
        self._mark, self._numbers = f"tollkeeper_{os.urandom(8).hex()}_", count()
        self._clients_ids: dict[str, Any] = {}
        """Our ids of updates that are not answered yet → those that the client gave, if any."""
        self._money = asyncio.Lock()
        """Both directions hold: what one of them replaces the other must not have taken meanwhile."""

    def target(self) -> str:
        """See SocketSession."""
        admit(self._services.settings, self._key.home_id, self._services.overloaded)
        return f"/realtime?intent={KIND}"

    def least(self) -> int:
        """See SocketSession. Which model will hear it is not known yet; none hears for nothing."""
        return 1

    def opening(self) -> list[bytes]:
        """See SocketSession."""
        return []

    async def from_client(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name = frame["type"]
        if name not in CLIENT_EVENTS:
            raise invalid(
                f"Events of type {name[:60]!r} are not available in a transcription session.",
                "type",
                "unsupported_event",
            )
        if names_file(frame):
            raise not_found("No such file.", "file_not_found")
        if name not in (UPDATE, APPEND):
            return raw
        async with self._money:
            return await self._held_for(frame, raw)

    async def _held_for(self, frame: Frame, raw: bytes) -> bytes:
        """Hold for the sound sent so far; what goes upstream. Raises Rejection: then nothing of the frame counts."""
        sent, asked = self._heard.sent, frame.get("event_id")
        try:
            if frame["type"] == UPDATE:
                raw = self._update(frame)
            elif not self._state.transcribers:
                raise invalid(NAME_A_MODEL, "session.audio.input.transcription", "missing_required_parameter")
            else:
                sound = frame.get("audio")
                self._heard.sent += milliseconds_of(len(sound) if isinstance(sound, str) else 0, self._state)
            await self._heard.ensure(self._state.transcribers, self._state.hint)
        except Rejection as rejection:
            self._heard.sent = sent
            if (own := frame.get("event_id")) != asked:
                self._forget(str(own))
                frame["event_id"] = asked
            if rejection.status == PAYMENT_REQUIRED:
                raise Finished(POLICY_VIOLATION, "insufficient_credits", self.error(rejection, frame)) from None
            raise
        return raw

    def _update(self, frame: Frame) -> bytes:
        """Session.update under an id of ours. Raises Rejection for what has no price here."""
        session = frame.get("session")
        if not isinstance(session, dict):
            raise invalid("`session` must be an object.", "session", "invalid_type")
        if session.get("type", KIND) != KIND:
            raise forbidden("This is a transcription session.", "session_not_allowed", "session.type")
        refuse_shared(session)
        wanted = self._state.candidates[-1].updated(session, 0)
        if wanted.transcriber:
            self._heard.check(wanted.transcriber)
        own = f"{self._mark}{next(self._numbers)}"
        self._clients_ids[own] = frame.get("event_id")
        frame["event_id"] = own
        self._state.ask(own, session, 0)
        return msgspec.json.encode(frame)

    def _forget(self, event_id: str) -> Any:
        """Forget an update that was refused; return the id that its client gave it."""
        self._state.refuse(event_id)
        return self._clients_ids.pop(event_id, None)

    async def sending(self) -> None:
        """See SocketSession. What is owed was noted as it was read: nothing here waits for a connection."""

    async def from_upstream(self, frame: Frame, raw: bytes) -> bytes:
        """See SocketSession."""
        name, session = frame.get("type"), frame.get("session")
        if name == "response.created":
            raise Finished(POLICY_VIOLATION, "A response began that nothing is held for.")
        if name == "session.created":
            # its own transcriber, if it has one: sound is held for at its price from the first second on
            self._state.confirmed = self._state.confirmed.updated(session if isinstance(session, dict) else {}, 0)
        elif name == "session.updated":
            self._state.confirm(session if isinstance(session, dict) else {}, 0)
            if self._clients_ids:
                self._clients_ids.pop(next(iter(self._clients_ids)))  # updates are answered in order
        elif name == "error":
            return self._failed(frame, raw)
        elif isinstance(name, str) and name.startswith(HEARD_EVENTS):
            async with self._money:
                await self._listen(name, frame)
        return raw

    async def _listen(self, name: str, frame: Frame) -> None:
        """Take an event about the sound."""
        try:
            await self._heard.take(name, frame, self._state.confirmed)
        except Rejection as rejection:
            raise Finished(POLICY_VIOLATION, rejection.code, self.error(rejection, {})) from None

    def _failed(self, frame: Frame, raw: bytes) -> bytes:
        """Take an error: an update that it names is refused, and shown by the id that its client gave."""
        error = frame.get("error")
        about = error.get("event_id") if isinstance(error, dict) else None
        if not isinstance(error, dict) or not isinstance(about, str) or about not in self._clients_ids:
            return raw
        return msgspec.json.encode({**frame, "error": {**error, "event_id": self._forget(about)}})

    def error(self, rejection: Rejection, frame: Frame) -> bytes:
        """See SocketSession."""
        return error_event(rejection, frame)

    def waits(self, *, gone: bool) -> bool:  # noqa: ARG002 - the protocol's
        """See SocketSession. Sound whose transcript nobody waits for is charged by its length."""
        return False

    async def end(self, outcome: Outcome) -> None:
        """See SocketSession."""
        await self._heard.end(outcome)
