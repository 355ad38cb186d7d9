"""POST /v1/audio/transcriptions and /v1/audio/translations."""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sandbox.openai.chat.choices import Choice, chat_choices, logprobs
from sandbox.openai.exchange.answer import Answer, data_line
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.typed_events import TypedEvent, typed_stream
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import (
    ANY,
    ARRAY,
    FLAG,
    TEXT,
    Field,
    Fields,
    check_fields,
    from_form,
    missing,
)
from sandbox.openai.requests.forms import Upload
from sandbox.openai.tokens.count import PromptCount, count_text

AUDIO_TOKENS_PER_S: Final = 10
_BYTES_PER_S: Final = 16_000
"""Assumed for files without a readable header: 128 kbit/s."""
_MAX_BYTES: Final = 25 * 1024 * 1024
_UNCHUNKED_S: Final = 30
_ALL_FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
_FORMATS: Final = (
    ("whisper-1", _ALL_FORMATS),
    ("gpt-4o-transcribe-diarize", ("json", "text", "diarized_json")),
    ("", ("json", "text")),
)
"""Formats by the first prefix of the model that fits."""
_TRANSLATE: Final[Fields] = {
    "file": ANY,
    "model": TEXT,
    "prompt": TEXT,
    "response_format": TEXT,
    "temperature": Field("number", 0, 1),
}
_TRANSCRIBE: Final[Fields] = _TRANSLATE | {
    "language": TEXT,
    "languages": ARRAY,
    "keywords": ARRAY,
    "stream": FLAG,
    "include": ARRAY,
    "timestamp_granularities": ARRAY,
    "chunking_strategy": ANY,
    "known_speaker_names": ARRAY,
    "known_speaker_references": ARRAY,
}


_CHUNKING: Final[Fields] = {
    "type": Field("string", choices=("server_vad",), required=True),
    "prefix_padding_ms": Field("integer", 0),
    "silence_duration_ms": Field("integer", 0),
    "threshold": Field("number", 0, 1),
}


def wav_seconds(data: bytes) -> float | None:
    """Length of a WAV file by its header; None when there is none."""
    if not (data.startswith(b"RIFF") and data[8:12] == b"WAVE"):
        return None
    at, rate = 12, 0
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"fmt " and at + 20 <= len(data):
            (rate,) = struct.unpack("<I", data[at + 16 : at + 20])
        elif kind == b"data":
            # A streamed file says 0xFFFFFFFF.
            return min(size, len(data) - at - 8) / rate if rate else None
        at += 8 + size + size % 2
    return None


class _Transcript(msgspec.Struct, frozen=True):
    """A transcript before it meets a format."""

    call: Call
    choice: Choice
    seconds: float
    by_tokens: bool
    format: str
    bill: Bill

    @property
    def text(self) -> str:
        return self.choice.text

    @property
    def diarized(self) -> bool:
        return self.format == "diarized_json"

    def segment(self) -> dict[str, Any]:
        """Return the only speaker's only segment."""
        span = {"id": "seg_0", "start": 0.0, "end": round(self.seconds, 2)}
        return {"type": "transcript.text.segment", **span, "text": self.text, "speaker": "A"}


def transcribe(call: Call) -> Answer:
    """Answer with the words of the file."""
    heard = _hear(call, _TRANSCRIBE)
    answer = Answer(200, bill=heard.bill, model=call.directives.model or call.model)
    if call.body.get("stream") in {True, "true", "1"} and not call.model.startswith("whisper"):
        answer.events = typed_stream(heard.bill, _steps(heard), data_line)
        return answer
    heard.bill.add(Spent(heard.choice.visible if heard.by_tokens else 0))
    _render(heard, answer, "transcribe")
    return answer


def translate(call: Call) -> Answer:
    """Answer with the words of the file in English, without usage in any format."""
    if not call.model.startswith("whisper"):
        raise invalid(f"Invalid value: '{call.model}'. Supported values are: 'whisper-1'.", "model", "invalid_value")
    heard = _hear(call, _TRANSLATE)
    answer = Answer(200, bill=heard.bill, model=call.directives.model or call.model)
    _render(heard, answer, "translate")
    return answer


def _hear(call: Call, table: Fields) -> _Transcript:
    """Check the request and decide the transcript. Raises ApiError."""
    upload = _file(call)
    body = from_form(call.body, table)
    check_fields(body, table)
    chunking = body.get("chunking_strategy")
    if isinstance(chunking, dict):
        check_fields(from_form(chunking, _CHUNKING), _CHUNKING, inside="chunking_strategy.")
    elif chunking not in (None, "auto"):
        raise invalid(f"Invalid value: '{chunking}'.", "chunking_strategy", "invalid_value")
    wanted = body.get("response_format") or "json"
    allowed = next(formats for prefix, formats in _FORMATS if call.model.startswith(prefix))
    if wanted not in allowed:
        shown = " or ".join(f"'{name}'" for name in allowed)
        message = f"response_format '{wanted}' is not compatible with model '{call.model}'. Use {shown} instead."
        raise invalid(message, "response_format", "unsupported_value")
    seconds = call.directives.seconds
    if seconds is None:
        seconds = wav_seconds(upload.data)
    if seconds is None:
        seconds = len(upload.data) / _BYTES_PER_S
    diarizes = call.model.startswith("gpt-4o-transcribe-diarize")
    if diarizes and seconds > _UNCHUNKED_S and chunking is None:
        raise invalid(
            "chunking_strategy is required for diarization models", "chunking_strategy", "missing_required_parameter"
        )
    said = {"messages": [], "seed": zlib.crc32(upload.data)}
    if "logprobs" in (body.get("include") or ()):
        said |= {"logprobs": True}
    choice = chat_choices(msgspec.structs.replace(call, body=said))[0]
    by_tokens = call.model.startswith("gpt-4o")
    text = count_text(call.encoding, body.get("prompt") or "")
    prompt = PromptCount(text, audio=math.ceil(seconds * AUDIO_TOKENS_PER_S))
    bill = Bill("transcript" if by_tokens else "duration", prompt, call.directives, seconds=float(math.ceil(seconds)))
    return _Transcript(call, choice, seconds, by_tokens, wanted, bill)


def _file(call: Call) -> Upload:
    if not call.form:
        raise invalid("Expected a multipart/form-data request.", "file", "invalid_type")
    files = call.uploads.get("file")
    if not files:
        raise missing("file")
    if not files[0].data:
        raise invalid("Audio file might be corrupted or unsupported", "file", "invalid_value")
    if len(files[0].data) > _MAX_BYTES:
        raise invalid(f"Maximum content size limit ({_MAX_BYTES}) exceeded", "file", None)
    return files[0]


def _steps(heard: _Transcript) -> Iterator[TypedEvent]:
    extra = {"segment_id": "seg_0"} if heard.diarized else {}
    for piece in heard.choice.pieces:
        fields: dict[str, Any] = {"type": "transcript.text.delta", "delta": piece.text, **extra}
        if heard.choice.logprobs >= 0:
            fields["logprobs"] = _probabilities(heard, [piece])
        yield TypedEvent(fields, piece.text, Spent(piece.tokens if heard.by_tokens else 0))
    if heard.diarized:
        yield TypedEvent(heard.segment())
    done: dict[str, Any] = {"type": "transcript.text.done", "text": heard.text}
    if heard.choice.logprobs >= 0:
        done["logprobs"] = _probabilities(heard, heard.choice.pieces)
    if heard.call.model.startswith("gpt-transcribe"):
        done["languages"] = [{"code": "en"}]
    # The event's type knows usage of models billed by tokens only.
    overridden = heard.call.directives.usage is not msgspec.UNSET
    yield TypedEvent(done, final=heard.by_tokens or overridden)


def _probabilities(heard: _Transcript, pieces: list[Any]) -> list[dict[str, Any]]:
    rows = logprobs(heard.choice, pieces)["content"]
    return [{key: row[key] for key in ("token", "logprob", "bytes")} for row in rows]


def _render(heard: _Transcript, answer: Answer, task: str) -> None:
    """Fill the body in the format asked for."""
    wanted, seconds = heard.format, heard.seconds
    answer.text = heard.text
    if wanted in _PLAIN:
        answer.content_type = "text/plain; charset=utf-8"
        answer.body = _PLAIN[wanted](heard.text, seconds).encode()
        return
    fields: dict[str, Any] = {"text": heard.text}
    if wanted == "verbose_json":
        fields = {"task": task, "language": "english", "duration": round(seconds, 2), "text": heard.text}
        fields |= _verbose(heard)
    elif heard.diarized:
        fields = {"task": task, "duration": round(seconds, 2), "text": heard.text, "segments": [heard.segment()]}
    elif heard.choice.logprobs >= 0:
        fields["logprobs"] = _probabilities(heard, heard.choice.pieces)
    if heard.call.model.startswith("gpt-transcribe"):
        fields["languages"] = [{"code": "en"}]
    if task == "transcribe":
        answer.usage = heard.bill.sent()
        if answer.usage is not None:
            fields["usage"] = answer.usage
    answer.body = msgspec.json.encode(fields)


def _verbose(heard: _Transcript) -> dict[str, Any]:
    end = round(heard.seconds, 2)
    span: dict[str, Any] = {"id": 0, "seek": 0, "start": 0.0, "end": end, "text": heard.text, "tokens": [50364]}
    odds = {"temperature": 0.0, "avg_logprob": -0.2, "compression_ratio": 1.0, "no_speech_prob": 0.01}
    found: dict[str, Any] = {"segments": [span | odds]}
    wanted = heard.call.body.get("timestamp_granularities[]") or heard.call.body.get("timestamp_granularities") or ()
    if "word" in wanted:
        found["words"] = [{"word": word, "start": 0.0, "end": end} for word in heard.text.split()]
    return found


def _clock(seconds: float, mark: str) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{int(seconds * 1000) % 1000:03}"


def _srt(text: str, seconds: float) -> str:
    return f"1\n{_clock(0, ',')} --> {_clock(seconds, ',')}\n{text}\n\n"


def _vtt(text: str, seconds: float) -> str:
    return f"WEBVTT\n\n{_clock(0, '.')} --> {_clock(seconds, '.')}\n{text}\n\n"


_PLAIN: Final = {"text": lambda text, _seconds: f"{text}\n", "srt": _srt, "vtt": _vtt}
