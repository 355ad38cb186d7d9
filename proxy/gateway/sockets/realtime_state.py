"""A Realtime session, as far as its holds depend on it. Pure.

A session is what the server says it is: a client's `session.update` is a wish until `session.updated` confirms it, and
until then both are held for. A conversation grows by what is put into it, and is corrected by the usage of a response
that read all of it, never by another's.
"""

import math
from typing import Any, NamedTuple

import msgspec

from billing.money.usage import Usage
from proxy.gateway.bodies.media import BYTES_PER_TOKEN
from proxy.gateway.bodies.parsed import FRAMING_TOKENS

PCM_BYTES_PER_SECOND = 48_000
G711_BYTES_PER_SECOND = 8_000
PCM_FORMATS = ("audio/pcm", "pcm16")
ENDLESS = (None, "inf")
AUDIO_TOKENS_PER_SECOND = 10
IMAGE_TOKENS = 2_000


class SessionSettings(NamedTuple):
    """Members of a session that decide a price. `cap`: output tokens of a response; `transcriber`: "" for none."""

    cap: int
    transcriber: str = ""
    heard_bytes: int = PCM_BYTES_PER_SECOND
    spoken_bytes: int = PCM_BYTES_PER_SECOND
    """Bytes of a second of sound, of the user's and of the model's."""
    hint: int = 0
    """Bytes of what the transcriber is told beside the sound, which it reads with every item."""

    def updated(self, session: dict[str, Any], most: int) -> "SessionSettings":
        """Lay a session object over these settings; members that it does not have stay. `most`: the model's cap."""
        cap = session.get("max_output_tokens", session.get("max_response_output_tokens", self.cap))
        audio = session.get("audio")
        sides = audio if isinstance(audio, dict) else {}
        heard, spoken = sides.get("input"), sides.get("output")
        given = heard if isinstance(heard, dict) else session
        transcriber, hint = self.transcriber, self.hint
        for name in ("transcription", "input_audio_transcription"):
            if name in given:
                wanted = given[name]
                transcriber = str(wanted.get("model") or "")[:120] if isinstance(wanted, dict) else ""
                hint = len(msgspec.json.encode(wanted)) if wanted else 0
        return SessionSettings(
            math.ceil(cap) if type(cap) in (int, float) else most,
            transcriber,
            _bytes_per_second(given, "input_audio_format", self.heard_bytes),
            _bytes_per_second(
                spoken if isinstance(spoken, dict) else session, "output_audio_format", self.spoken_bytes
            ),
            hint,
        )


def _bytes_per_second(given: dict[str, Any], old_name: str, before: int) -> int:
    form = given.get("format", given.get(old_name))
    if form is None:
        return before
    kind = str(form.get("type") if isinstance(form, dict) else form)
    return PCM_BYTES_PER_SECOND if kind in PCM_FORMATS else G711_BYTES_PER_SECOND


class SessionState:
    """The settings in force, and those that were asked for and not answered yet, in order."""

    def __init__(self, settings: SessionSettings) -> None:
        """Nothing is asked for yet."""
        self.confirmed = settings
        self._asked: dict[str, SessionSettings] = {}

    @property
    def candidates(self) -> list[SessionSettings]:
        """Settings that may be in force at the server: all of them are held for."""
        return [self.confirmed, *self._asked.values()]

    @property
    def cap(self) -> int:
        """Highest output cap that may be in force."""
        return max(one.cap for one in self.candidates)

    @property
    def transcribers(self) -> frozenset[str]:
        """Models that may be transcribing."""
        return frozenset(one.transcriber for one in self.candidates) - {""}

    @property
    def hint(self) -> int:
        """Most that the transcriber may be told, in bytes."""
        return max(one.hint for one in self.candidates)

    @property
    def heard_bytes(self) -> int:
        """Fewest bytes that a second of the user's sound may have."""
        return min(one.heard_bytes for one in self.candidates)

    def ask(self, event_id: str, session: dict[str, Any], most: int) -> None:
        """Keep a wish of the client's until it is answered."""
        self._asked[event_id] = self.candidates[-1].updated(session, most)

    def confirm(self, session: dict[str, Any], most: int) -> None:
        """Take what the server says the session is; it answers wishes in order, and what it leaves out is as wished."""
        wished = self._asked.pop(next(iter(self._asked))) if self._asked else self.confirmed
        self.confirmed = wished.updated(session, most)

    def refuse(self, event_id: str) -> None:
        """Forget a wish that the server refused. An error that names none is about any event."""
        self._asked.pop(event_id, None)


def milliseconds_of(encoded: int, state: SessionState) -> int:
    """Most milliseconds of the user's sound in so many characters of base64."""
    return -(-encoded * 3 * 1_000 // (4 * state.heard_bytes))


class ConversationSize(NamedTuple):
    """Tokens of a conversation: text at most, as it likely is, and sound."""

    text: int = 0
    likely: int = 0
    audio: int = 0

    def plus(self, text: int, likely: int, audio: int) -> "ConversationSize":
        """Add an item."""
        return ConversationSize(self.text + text, self.likely + likely, self.audio + audio)

    def with_items(self, items: Any, length: int, state: "SessionState") -> "ConversationSize":
        """Add items that a frame of so many bytes carries: their pictures and sound are no text."""
        encoded = pictures = 0
        for item in items if isinstance(items, list) else ():
            content = item.get("content") if isinstance(item, dict) else None
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict):
                    encoded += len(part["audio"]) if isinstance(part.get("audio"), str) else 0
                    if isinstance(part.get("image_url"), str):
                        length -= len(part["image_url"])
                        pictures += IMAGE_TOKENS
        audio = -(-milliseconds_of(encoded, state) * AUDIO_TOKENS_PER_SECOND // 1_000)
        text = max(0, length - encoded)
        return self.plus(text + pictures + FRAMING_TOKENS, text // BYTES_PER_TOKEN + pictures, audio)

    def corrected(self, usage: Usage, read: "ConversationSize") -> "ConversationSize":
        """Size by the usage of a response that read all of it when it was of size `read`, and whatever came since.

        The next response reads what this one said as well.
        """
        sound = usage.audio_input_tokens + usage.audio_output_tokens
        text = usage.input_tokens + usage.output_tokens - sound
        since = max(0, self.text - read.text), max(0, self.likely - read.likely), max(0, self.audio - read.audio)
        return ConversationSize(text, text, sound).plus(*since)

    def with_output(self, usage: Usage) -> "ConversationSize":
        """Size with what a response said that did not read all of it."""
        text = usage.output_tokens - usage.audio_output_tokens
        return self.plus(text, text, usage.audio_output_tokens)
