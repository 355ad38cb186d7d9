"""WebSocket /v1/realtime: a session with its conversation, billed anew on every turn."""

import math
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import tiktoken

from sandbox.openai.chat.choices import Choice, chat_choices, forced_tool
from sandbox.openai.exchange.answer import NO_DIRECTIVES, Answer
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Context
from sandbox.openai.exchange.channel import Channel, error_of, only_event, read_message
from sandbox.openai.exchange.typed_events import TypedEvent, typed_stream
from sandbox.openai.realtime.events import RealtimePlan, RealtimeStream, error_frame
from sandbox.openai.realtime.items import (
    Item,
    audio_seconds,
    count_frame,
    decode_audio,
    input_audio_tokens,
    read_item,
    sum_counts,
)
from sandbox.openai.requests.errors import ApiError, error_object, invalid, wrong_body
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.requests.json_text import as_integer
from sandbox.openai.steering.directives import Directives, found_keys, read_directives
from sandbox.openai.tokens.count import PromptCount, count_text, encoding_name

_PCM: Final = {"type": "audio/pcm", "rate": 24000}
_HEARD: Final = "Hi there."
_VAD_S: Final = 1.0
"""With turn detection the user's turn ends after that much audio."""
_MAX_OUTPUT: Final = 4096
_LIFE_S: Final = 3600
_VOICES: Final = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")


class RealtimeSession:
    """One socket: one session, one conversation, one response at a time."""

    def __init__(self, channel: Channel) -> None:
        """Take the model from the handshake."""
        self._channel = channel
        simulator = channel.simulator
        query = parse_qs(channel.request.query)
        model = query.get("model", [""])[0]
        self._kind = "transcription" if query.get("intent") == ["transcription"] else "realtime"
        self._session: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": simulator.new_id("sess"),
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "expires_at": int(time.time()) + _LIFE_S,
            "audio": {"input": {"format": _PCM, "transcription": None}, "output": {"format": _PCM, "voice": "marin"}},
        }
        if self._kind == "transcription":
            self._session = {
                "type": "transcription",
                "object": "realtime.transcription_session",
                "id": self._session["id"],
                "expires_at": self._session["expires_at"],
                "audio": {"input": {"format": _PCM, "transcription": None, "turn_detection": {"type": "server_vad"}}},
            }
        self._conversation_id = simulator.new_id("conv")
        self._items: list[Item] = []
        self._cached = 0
        """Number of leading items that the last response has read; nothing before them has changed since."""
        self._frame_cached = False
        """The last response has read the same instructions and tools."""
        self._buffer = bytearray()
        self._heard_ms = 0
        self._active: RealtimeStream | None = None
        self._standing: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}
        self._encoding: tiktoken.Encoding | None = None
        self._handlers: dict[str, Callable[[dict[str, Any], bytes], None]] = {
            "session.update": self._on_session_update,
            "conversation.item.create": self._on_item_create,
            "conversation.item.delete": self._on_item_delete,
            "conversation.item.retrieve": self._on_item_retrieve,
            "conversation.item.truncate": self._on_item_truncate,
            "input_audio_buffer.append": self._on_audio_append,
            "input_audio_buffer.clear": self._on_audio_clear,
            "input_audio_buffer.commit": self._on_audio_commit,
            "output_audio_buffer.clear": self._on_output_clear,
            "response.create": self._on_response_create,
            "response.cancel": self._on_response_cancel,
        }

    # -- the socket ------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse a handshake without a model."""
        query = parse_qs(self._channel.request.query)
        if "call_id" in query:
            raise ApiError(404, error_object("No session found for this call.", "invalid_request_error"))
        if self._kind == "realtime" and not self._model:
            raise missing("model")

    async def start(self) -> None:
        """Send the first event: here the server speaks first."""
        self._encoding = await self._channel.simulator.encoding(encoding_name(self._model))
        self._say("session.created", {"session": self._session})

    async def message(self, text: bytes) -> None:
        """Handle one event of the client."""
        cause = None
        try:
            event = read_message(text)
            cause = event.get("event_id")
            kind = event.get("type")
            if kind is None:
                raise invalid("The type field is missing.", None, "invalid_event")
            handler = self._handlers.get(str(kind))
            if handler is None or (self._kind == "transcription" and str(kind).startswith("response.")):
                raise invalid(f"Invalid value: '{kind}'.", "type", "invalid_value")
            handler(event, text)
        except ApiError as error:
            self._channel.send(error_frame(error.error, self._event_id(), cause))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            self._channel.send(error_frame(wrong_body(error), self._event_id(), cause))

    @property
    def shown(self) -> dict[str, Any]:
        """The session as it is now."""
        return self._session

    @property
    def _model(self) -> str:
        return str(self._session.get("model", ""))

    @property
    def _encoder(self) -> tiktoken.Encoding:
        if self._encoding is None:
            raise RuntimeError("the session has not started")
        return self._encoding

    def _input(self) -> dict[str, Any]:
        found: dict[str, Any] = self._session["audio"].get("input") or {}
        return found

    def _event_id(self) -> str:
        return self._channel.simulator.new_id("event")

    def _say(self, kind: str, fields: dict[str, Any]) -> None:
        self._channel.send({"type": kind, "event_id": self._event_id(), **fields})

    # -- session and conversation ----------------------------------------------------------------

    def _on_session_update(self, event: dict[str, Any], text: bytes) -> None:
        given = event.get("session")
        if not isinstance(given, dict):
            raise missing("session") if given is None else wrong_type("session", "an object", given)
        if given.get("type", self._kind) != self._kind:
            raise invalid(f"Invalid value: '{given['type']}'.", "session.type", "invalid_value")
        _check_voice(given)
        self._standing |= found_keys(text, event)
        self._session = merged(self._session, given)
        self._frame_cached, self._cached = False, 0
        self._say("session.updated", {"session": self._session})

    def _on_item_create(self, event: dict[str, Any], text: bytes) -> None:
        # A directive inside an item steers the next response.
        self._pending |= found_keys(text, event)
        item = read_item(
            event.get("item"),
            self._channel.simulator.new_id("item"),
            self._encoder,
            self._model,
            self._input().get("format"),
        )
        after = event.get("previous_item_id")
        at = len(self._items)
        if after == "root":
            at = 0
        elif after is not None:
            at = self._place(after, "previous_item_id") + 1
        self._cached = min(self._cached, at)
        self._items.insert(at, item)
        self._added(item, at)

    def _added(self, item: Item, at: int) -> None:
        previous = self._items[at - 1].id if at else None
        fields = {"previous_item_id": previous, "item": item.shown}
        self._say("conversation.item.added", fields)
        self._say("conversation.item.done", fields)

    def _place(self, item_id: Any, param: str) -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        raise invalid(f"Item with item_id '{item_id}' does not exist.", param, "item_not_found")

    def _on_item_delete(self, event: dict[str, Any], _text: bytes) -> None:
        at = self._place(event.get("item_id"), "item_id")
        self._cached = min(self._cached, at)
        del self._items[at]
        self._say("conversation.item.deleted", {"item_id": event["item_id"]})

    def _on_item_retrieve(self, event: dict[str, Any], _text: bytes) -> None:
        item = self._items[self._place(event.get("item_id"), "item_id")]
        self._say("conversation.item.retrieved", {"item": item.shown})

    def _on_item_truncate(self, event: dict[str, Any], _text: bytes) -> None:
        """Drop the audio beyond the mark, and the whole transcript with it: that has no times."""
        at = self._place(event.get("item_id"), "item_id")
        item, kept = self._items[at], as_integer(event.get("audio_end_ms"))
        if not isinstance(kept, int) or isinstance(kept, bool):
            raise missing("audio_end_ms") if kept is None else wrong_type("audio_end_ms", "an integer", kept)
        audio = min(item.count.audio, math.ceil(kept / 50))
        self._items[at] = msgspec.structs.replace(item, count=PromptCount(3, item.count.image, audio))
        self._cached = min(self._cached, at)
        fields = {"item_id": item.id, "content_index": event.get("content_index", 0), "audio_end_ms": kept}
        self._say("conversation.item.truncated", fields)

    # -- the user's audio ------------------------------------------------------------------------

    def _on_audio_append(self, event: dict[str, Any], text: bytes) -> None:
        self._buffer += decode_audio(event.get("audio"), "audio")
        detection = self._input().get("turn_detection")
        if isinstance(detection, dict) and self._seconds() >= _VAD_S:
            self._turn_ends(detection, text)

    def _seconds(self) -> float:
        return audio_seconds(len(self._buffer), self._input().get("format"))

    def _turn_ends(self, detection: dict[str, Any], text: bytes) -> None:
        """End the user's turn as the server's detection does, and answer unasked."""
        item_id = self._channel.simulator.new_id("item")
        self._say("input_audio_buffer.speech_started", {"audio_start_ms": self._heard_ms, "item_id": item_id})
        self._heard_ms += int(self._seconds() * 1000)
        if self._active is not None and detection.get("interrupt_response") is not False:
            self._active.cancelled = "turn_detected"
        self._say("input_audio_buffer.speech_stopped", {"audio_end_ms": self._heard_ms, "item_id": item_id})
        self._commit(item_id, text)
        speaks = self._kind == "realtime" and detection.get("create_response") is not False
        if speaks and self._active is None:
            self._respond({"type": "response.create"}, text)

    def _on_audio_clear(self, _event: dict[str, Any], _text: bytes) -> None:
        self._buffer.clear()
        self._say("input_audio_buffer.cleared", {})

    def _on_audio_commit(self, _event: dict[str, Any], text: bytes) -> None:
        if self._seconds() < 0.1:
            message = "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio."
            raise invalid(message, None, "input_audio_buffer_commit_empty")
        self._commit(self._channel.simulator.new_id("item"), text)

    def _commit(self, item_id: str, text: bytes) -> None:
        seconds = self._seconds()
        self._buffer.clear()
        content = [{"type": "input_audio", "transcript": None}]
        shown = {
            "id": item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": content,
        }
        item = Item(item_id, shown, PromptCount(4, audio=input_audio_tokens(seconds)))
        previous = self._items[-1].id if self._items else None
        self._items.append(item)
        self._say("input_audio_buffer.committed", {"previous_item_id": previous, "item_id": item_id})
        self._added(item, len(self._items) - 1)
        transcription = self._input().get("transcription")
        if isinstance(transcription, dict) and transcription.get("model"):
            self._transcribe(item_id, str(transcription["model"]), seconds, text)

    def _transcribe(self, item_id: str, model: str, seconds: float, text: bytes) -> None:
        """Send a transcript, whose usage is its own, at the price of its own model."""
        channel = self._channel
        standing = channel.simulator.live.directive | self._standing | self._pending
        directives = msgspec.convert(standing.get("transcription") or {}, Directives)
        by_tokens = model.startswith("gpt-4o")
        said = directives.text if directives.text is not None else _HEARD
        told = str((self._input().get("transcription") or {}).get("prompt") or "")
        prompt = PromptCount(count_text(self._encoder, told) if told else 0, audio=input_audio_tokens(seconds))
        bill = Bill("heard" if by_tokens else "duration", prompt, directives, seconds=float(math.ceil(seconds)))
        at = {"item_id": item_id, "content_index": 0}
        head = "conversation.item.input_audio_transcription"
        spent = Spent(count_text(self._encoder, said) if by_tokens else 0)
        delta = {"type": f"{head}.delta", "event_id": self._event_id(), **at, "delta": said}
        done = {"type": f"{head}.completed", "event_id": self._event_id(), **at, "transcript": said}
        steps = [TypedEvent(delta, said, spent), TypedEvent(done, final=True)]
        answer = Answer(
            200, events=typed_stream(bill, steps, msgspec.json.encode), bill=bill, model=model, directives=directives
        )
        entry = channel.open_entry(text, {"type": "input_audio_buffer.commit", "model": model, "item_id": item_id})
        channel.spawn(channel.deliver(answer, entry))

    # -- responses -------------------------------------------------------------------------------

    def _on_response_create(self, event: dict[str, Any], text: bytes) -> None:
        if self._active is not None:
            message = "Conversation already has an active response in progress."
            raise invalid(message, None, "conversation_already_has_active_response")
        self._respond(event, text)

    def _on_response_cancel(self, _event: dict[str, Any], _text: bytes) -> None:
        if self._active is None:
            raise invalid("Cancellation failed: no active response found", None, "response_cancel_not_active")
        self._active.cancelled = "client_cancelled"

    def _on_output_clear(self, _event: dict[str, Any], _text: bytes) -> None:
        raise invalid("output_audio_buffer.clear is only available over WebRTC.", "type", "invalid_value")

    def _respond(self, event: dict[str, Any], text: bytes) -> None:
        """Begin a response; errors of its options become events."""
        channel = self._channel
        standing = channel.simulator.live.directive | self._standing | self._pending
        self._pending = {}
        directives = read_directives(text, event, standing) or NO_DIRECTIVES
        options = event.get("response") or {}
        if not isinstance(options, dict):
            raise wrong_type("response", "an object", options)
        failure = channel.simulator.failure(directives)
        entry_body = event | {"model": self._model}
        if failure is not None:
            entry = channel.open_entry(text, entry_body)
            answer = only_event(failure, error_frame(error_of(failure), self._event_id(), event.get("event_id")))
            answer.directives = directives
            channel.spawn(channel.deliver(answer, entry))
            return
        stream, answer = self._speak(options, directives)
        self._active = stream
        channel.spawn(self._deliver(answer, text, entry_body))

    async def _deliver(self, answer: Answer, text: bytes, body: dict[str, Any]) -> None:
        entry = self._channel.open_entry(text, body)
        try:
            await self._channel.deliver(answer, entry)
        finally:
            self._active = None

    def _speak(self, options: dict[str, Any], directives: Directives) -> tuple[RealtimeStream, Answer]:
        """Decide a whole response. Raises ApiError."""
        simulator = self._channel.simulator
        merged = self._session | options
        inside = options.get("conversation") != "none"
        given = options.get("input")
        if given is None:
            self._truncate(merged.get("truncation"))
        items = self._items if given is None else [self._given_item(item) for item in given]
        frame = count_frame(self._encoder, self._model, merged)
        prompt = sum_counts([frame, *(item.count for item in items)])
        cached = PromptCount()
        if given is None and self._frame_cached:
            cached = sum_counts([frame, *(item.count for item in self._items[: self._cached])])
        choice = self._choice(merged, directives)
        bill = Bill("realtime", prompt, directives, cached=cached)
        if given is None:
            # Own instructions replace those of the session for this one response.
            self._cached, self._frame_cached = len(self._items), not {"instructions", "tools"} & options.keys()
        plan = RealtimePlan(
            id=simulator.new_id("resp"),
            item_id=simulator.new_id("item"),
            call_id=simulator.new_id("call"),
            conversation_id=self._conversation_id if inside else None,
            modalities=list(merged.get("output_modalities") or ["audio"]),
            max_output_tokens=merged.get("max_output_tokens", "inf"),
            metadata=options.get("metadata"),
            previous_item_id=self._items[-1].id if self._items else None,
            choice=choice,
            directives=directives,
        )
        stream = RealtimeStream(plan, bill, self._event_id, self._keep if inside else lambda _item, _bill: None)
        answer = Answer(
            200, events=stream.events(), bill=bill, model=directives.model or self._model, directives=directives
        )
        answer.error_event, answer.response_id = stream.error_event, plan.id
        if directives.replay is not None:
            simulator.replay(answer, self._encoder, directives, frames=True)
        return stream, answer

    def _truncate(self, truncation: Any) -> None:
        """Drop the oldest items of a conversation that is beyond its limit, as far as the truncation says."""
        limits = truncation.get("token_limits") if isinstance(truncation, dict) else None
        limit = limits.get("post_instructions") if isinstance(limits, dict) else None
        if not isinstance(limit, int) or self._tokens() <= limit:
            return
        kept = limit * float(truncation.get("retention_ratio", 1.0))
        while self._items and self._tokens() > kept:
            del self._items[0]
        self._cached = 0

    def _tokens(self) -> int:
        count = sum_counts([item.count for item in self._items])
        return count.text + count.image + count.audio

    def _given_item(self, item: Any) -> Item:
        """Return an item of out-of-band input: whole, or a reference to one of the conversation."""
        if isinstance(item, dict) and item.get("type") == "item_reference":
            return self._items[self._place(item.get("id"), "response.input")]
        return read_item(
            item, self._channel.simulator.new_id("item"), self._encoder, self._model, self._input().get("format")
        )

    def _choice(self, merged: dict[str, Any], directives: Directives) -> Choice:
        cap = as_integer(merged.get("max_output_tokens", "inf"))
        if cap != "inf" and (not isinstance(cap, int) or isinstance(cap, bool) or not 1 <= cap <= _MAX_OUTPUT):
            message = f"Invalid 'max_output_tokens': expected an integer between 1 and {_MAX_OUTPUT} or 'inf'."
            raise invalid(message, "max_output_tokens", "invalid_value")
        choice = merged.get("tool_choice")
        body: dict[str, Any] = {
            "messages": [item.shown.get("content") for item in self._items],
            "max_tokens": None if cap == "inf" else cap,
            "tools": [{"type": "function", "function": tool} for tool in merged.get("tools") or ()],
            "tool_choice": {"function": choice} if isinstance(choice, dict) else choice,
            "modalities": merged.get("output_modalities"),
        }
        # Audio and tools exclude each other in a chat, not here.
        if forced_tool(body) is not None:
            body["modalities"] = None
        context = Context(self._encoder, self._model, body, directives, self._channel.simulator.live, "")
        return chat_choices(context)[0]

    def _keep(self, item: dict[str, Any], bill: Bill) -> None:
        """Add the answer to the conversation: its text and its audio are read on later turns."""
        count = PromptCount(4 + bill.tokens - bill.audio, audio=bill.audio)
        self._items.append(Item(str(item["id"]), item, count))


def _check_voice(session: dict[str, Any]) -> None:
    """Refuse a voice that does not exist; nothing of the update is taken then. Raises ApiError."""
    audio = session.get("audio")
    output = audio.get("output") if isinstance(audio, dict) else None
    voice = output.get("voice") if isinstance(output, dict) else None
    if isinstance(voice, str) and voice not in _VOICES:
        raise invalid(
            f"Invalid value: '{voice}'. Supported values are: {', '.join(_VOICES)}.", "voice", "invalid_value"
        )


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Lay the new fields over the old ones, objects field by field."""
    result = dict(old)
    for name, value in new.items():
        present = result.get(name)
        result[name] = merged(present, value) if isinstance(present, dict) and isinstance(value, dict) else value
    return result
