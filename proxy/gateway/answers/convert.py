"""Turning the answer that we asked for into the one that the client asked for. Sans I/O.

Some forms of an answer say nothing of what they used: plain text, subtitles, raw audio. For those the upstream is asked
for the form that does, and the client gets what the other form holds.
"""

import base64
import binascii
import json
from decimal import Decimal
from typing import Any, Literal

import msgspec

from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.events import SPEECH_EVENTS, EventMeter
from proxy.gateway.answers.sse import event_data, split_events
from proxy.gateway.bodies.media import EVENTS

EVENTS_TYPE = b"text/event-stream; charset=utf-8"
TEXT_TYPE = b"text/plain; charset=utf-8"
AUDIO_TYPES = {
    "mp3": b"audio/mpeg",
    "opus": b"audio/opus",
    "aac": b"audio/aac",
    "flac": b"audio/flac",
    "wav": b"audio/wav",
    "pcm": b"audio/pcm",
}
AUDIO_PREFIX = "audio:"


def converted(form: str, body: bytes) -> tuple[bytes, bytes] | None:
    """(content type, body) in the client's form; None for an answer that we did not ask for, which passes as it is."""
    answer = decode_object(body)
    if answer is None or not isinstance(answer.get("text"), str):
        return None
    text = answer["text"]
    if form == EVENTS:
        return EVENTS_TYPE, _transcript_events(text, answer)
    if form == "json":
        return b"application/json", json.dumps({"text": text}).encode()
    if form == "text":
        return TEXT_TYPE, f"{text}\n".encode("utf-8", "replace")
    found = answer.get("segments")
    segments = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if not segments:
        segments = [{"start": 0, "end": answer.get("duration", 0), "text": text}] if text else []
    return TEXT_TYPE, (_srt(segments) if form == "srt" else _vtt(segments)).encode("utf-8", "replace")


def _transcript_events(text: str, answer: dict[str, Any]) -> bytes:
    """Events of a transcription stream, all at once."""
    done: dict[str, Any] = {name: answer[name] for name in ("logprobs", "usage") if name in answer}
    events: tuple[dict[str, Any], ...] = (
        {"type": "transcript.text.delta", "delta": text},
        {"type": "transcript.text.done", "text": text, **done},
    )
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def _srt(segments: list[dict[str, Any]]) -> str:
    return "".join(
        f"{number}\n{_span(segment, ',')}\n{_words(segment)}\n\n" for number, segment in enumerate(segments, 1)
    )


def _vtt(segments: list[dict[str, Any]]) -> str:
    return "WEBVTT\n\n" + "".join(f"{_span(segment, '.')}\n{_words(segment)}\n\n" for segment in segments)


def _words(segment: dict[str, Any]) -> str:
    # an arrow inside a caption would end it
    return str(segment.get("text", "")).strip().replace("-->", "->")


def _span(segment: dict[str, Any], mark: str) -> str:
    return f"{_clock(segment.get('start', 0), mark)} --> {_clock(segment.get('end', 0), mark)}"


def _clock(seconds: Any, mark: str) -> str:
    try:
        milliseconds = max(0, int((Decimal(str(seconds)) * 1_000).to_integral_value()))
    except (ArithmeticError, ValueError):
        milliseconds = 0
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1_000:02}{mark}{rest % 1_000:03}"


class SpeechMeter(EventMeter):
    """A speech event stream that the client gets as the plain audio it asked for."""

    ends_in_events = False

    def __init__(self, form: str) -> None:
        """`form`: the audio format that the client asked for."""
        super().__init__(SPEECH_EVENTS, 1)
        self.content_type = AUDIO_TYPES[form]

    def feed(self, data: bytes) -> bytes:
        """Take events; return the audio in them."""
        return b"".join(_audio(event) for event in split_events(super().feed(data)))

    def read_event(self, event: bytes) -> Literal["", "tail", "hidden"]:
        """See StreamMeter: the closing event is not audio."""
        verdict = super().read_event(event)
        return "hidden" if verdict == "tail" else verdict

    def rest(self) -> bytes:
        """See StreamMeter: a broken event is not audio.

        The tail that EventMeter kept back behind the closing event is not either.
        """
        if self.done:
            super().rest()
            return b""
        return super().rest()


class AudioMeter(EventMeter):
    """Plain audio of a model that is billed by the character: nothing in it to read."""

    ends_in_events = False

    def __init__(self) -> None:
        """No events at all."""
        super().__init__(SPEECH_EVENTS, 1)

    def feed(self, data: bytes) -> bytes:
        """Pass it on."""
        self._media_tokens = 1  # something was shown; how much does not change what it costs
        return data

    def end(self) -> None:
        """Take the upstream's clean end: that is all there is to an answer."""
        self.done = True


def _audio(event: bytes) -> bytes:
    payload = event_data(event)
    try:
        found = msgspec.json.decode(payload)
        encoded = found.get("audio") if isinstance(found, dict) else None
        return base64.b64decode(f"{encoded}==") if isinstance(encoded, str) else b""  # some leave the padding out
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error):
        return b""
