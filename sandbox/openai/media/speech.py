"""POST /v1/audio/speech: deterministic bytes, or events with base64 of the same bytes."""

import base64
import struct
from collections.abc import Iterator
from typing import Any, Final

from sandbox.openai.exchange.answer import Answer, Event, data_line
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.typed_events import TypedEvent, typed_stream
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import ANY, TEXT, Field, Fields, check_fields, missing, one_of, wrong_type
from sandbox.openai.tokens.count import PromptCount, count_text

_FORMATS: Final = {
    "mp3": ("audio/mpeg", b"ID3\x04\x00\x00\x00\x00\x00\x00"),
    "opus": ("audio/opus", b"OggS\x00\x02\x00\x00"),
    "aac": ("audio/aac", b"\xff\xf1\x50\x80"),
    "flac": ("audio/flac", b"fLaC\x00\x00\x00\x22"),
    "wav": ("audio/wav", b""),
    "pcm": ("audio/pcm", b""),
}
"""Content type and first bytes."""
_FIELDS: Final[Fields] = {
    "model": TEXT,
    "input": Field("string", required=True, longest=4096),
    "voice": ANY,
    "instructions": TEXT,
    "response_format": one_of(*_FORMATS),
    "speed": Field("number"),
    "stream_format": one_of("sse", "audio"),
}
AUDIO_PER_TEXT: Final = 7
"""Audio tokens per text token."""
_BYTES_PER_TOKEN: Final = 64
_TOKENS_PER_CHUNK: Final = 20
_RATE: Final = 24_000
_SLOWEST: Final = 0.25
_FASTEST: Final = 4
_NOISE: Final = bytes(index * 7 % 251 for index in range(251)) * 7
"""Long enough for one chunk at any offset."""


def speech(call: Call) -> Answer:
    """Answer with the spoken input."""
    body, directives = call.body, call.directives
    _check(call)
    text = body["input"]
    prompt = PromptCount(count_text(call.encoding, text) + count_text(call.encoding, body.get("instructions") or ""))
    by_character = call.model.startswith("tts-1")
    bill = Bill("characters" if by_character else "speech", prompt, directives, characters=len(text))
    tokens = (
        AUDIO_PER_TEXT * count_text(call.encoding, text)
        if directives.output_tokens is None
        else directives.output_tokens
    )
    content_type, head = _FORMATS[body.get("response_format") or "mp3"]
    if content_type == "audio/wav":
        head = _wav_head(tokens * _BYTES_PER_TOKEN)
    answer = Answer(200, bill=bill, model=directives.model or call.model)
    chunks = _chunks(head, tokens)
    if body.get("stream_format") == "sse":
        answer.events = typed_stream(bill, _steps(chunks), data_line)
        return answer
    answer.content_type, answer.error_event = content_type, None
    answer.events = (Event(data, spent=Spent(count)) for data, count in chunks)
    return answer


def _check(call: Call) -> None:
    body = call.body
    check_fields(body, _FIELDS)
    if body.get("voice") is None:
        raise missing("voice")
    if not isinstance(body["voice"], str | dict):
        raise wrong_type("voice", "one of a string or an object", body["voice"])
    speed = body.get("speed")
    if speed is not None and not _SLOWEST <= speed <= _FASTEST:
        raise invalid("Invalid 'speed': expected a value between 0.25 and 4.0.", "speed", "invalid_value")
    if not body["input"]:
        raise invalid("Invalid 'input': empty string.", "input", "empty_string")
    if body.get("stream_format") == "sse" and call.model.startswith("tts-1"):
        raise invalid(
            f"stream_format 'sse' is not supported with the model '{call.model}'.", "stream_format", "unsupported_value"
        )


def _wav_head(size: int) -> bytes:
    """16 bit mono PCM at 24 kHz."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, _RATE, 2 * _RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)


def _chunks(head: bytes, tokens: int) -> Iterator[tuple[bytes, int]]:
    """Cut the file into chunks, with the audio tokens each one stands for."""
    start = 0
    while start < tokens or head:
        count = min(_TOKENS_PER_CHUNK, tokens - start)
        offset = start * _BYTES_PER_TOKEN % 251
        data = _NOISE[offset : offset + count * _BYTES_PER_TOKEN]
        yield head + data, count
        head, start = b"", start + count


def _steps(chunks: Iterator[tuple[bytes, int]]) -> Iterator[TypedEvent]:
    for data, count in chunks:
        audio: dict[str, Any] = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode("ascii")}
        yield TypedEvent(audio, spent=Spent(count))
    yield TypedEvent({"type": "speech.audio.done"}, final=True)
