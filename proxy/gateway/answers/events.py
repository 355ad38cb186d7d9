"""Typed event streams: Responses, images, transcription, speech. Sans I/O."""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.meter import StreamMeter
from proxy.gateway.answers.report import Report
from proxy.gateway.answers.reports import (
    answer_texts,
    audio_report,
    billable_item,
    image_report,
    is_produced,
    items_report,
    joined,
    response_report,
    text_of,
    with_passed,
)
from proxy.gateway.answers.sse import COLON, event_data
from proxy.gateway.answers.texts import written_texts
from proxy.gateway.bodies.image_bounds import PARTIAL_TOKENS
from proxy.gateway.bodies.sound import sound_tokens

EVENT_LIMIT = 67_108_864
"""Bytes of one event: images come whole in one."""
HEAD = 200
"""Bytes at either end of an event in which its type stands, where a picture takes up the rest."""
BILLABLE_MARKS = (b"image_generation_call", b"web_search_call", b"file_search_call", b'"container_id"')
"""Of items whose bill is more than their tokens."""
ITEM_DONE, DONE = "response.output_item.done", ".done"
ENDS = ("response.completed", "response.incomplete", "response.failed")
PLACE = ("content_index", "summary_index")
"""Members that say which part of an item an event is about."""
WHOLE_TEXTS = ("text", "refusal", "arguments", "input", "code", "transcript")
"""Members in which an event tells the whole of what its pieces told, or of what was told in none."""
SPOKEN = ("response.output_audio.delta", "response.audio.delta")
"""Pieces of speech in base64: no text."""
ENCODED = re.compile(rb'"(?:partial_image_b64|b64_json|audio)"\s*:\s*"')


class EventKind(NamedTuple):
    """One family of typed events: which of them close the stream, and how their usage is read."""

    closing: frozenset[str]
    matters: re.Pattern[bytes]
    report: Callable[[dict[str, Any]], Report]


def kind(closing: tuple[str, ...], report: Callable[[dict[str, Any]], Report]) -> EventKind:
    """Event family; an `error` event matters in all of them."""
    names = b"|".join(re.escape(name.encode()) for name in (*closing, "error"))
    matters = re.compile(rb'"(?:type"' + COLON + rb'"(?:' + names + rb')"|error"' + COLON + rb"\{)")
    return EventKind(frozenset(closing), matters, report)


class EventMeter(StreamMeter):
    """A stream of typed events: passes them on, keeps back the closing one until the charge is settled."""

    partial_limit = EVENT_LIMIT
    says_why = False

    def __init__(self, family: EventKind, finals: int) -> None:
        """Wait for `finals` closing events (one an image)."""
        super().__init__(hide_usage=False)
        self._family = family
        self._left = finals
        self._passed = PassedEvents()
        self.interesting = family.matters

    def may_matter(self, data: bytes) -> bool:
        """See StreamMeter."""
        return self.interesting.search(data) is not None

    def read_event(self, event: bytes) -> Literal["", "tail", "hidden"]:
        """See StreamMeter."""
        payload = decode_object(event_data(event)) or {}
        name = payload.get("type")
        if name == "error" or (name is None and isinstance(payload.get("error"), dict)):
            self.failed = self._tells_error = True
            return ""
        if not isinstance(name, str):
            return ""
        if name not in self._family.closing:
            return ""
        if self.done:
            return "tail"  # the end is told once more
        self._left -= 1
        if any(mark in part for part in self._raw for mark in BILLABLE_MARKS):
            self._read_raw()
        payload = with_passed(payload, self._passed.items)
        self._report = joined(self._report, self._family.report(payload))
        response = payload.get("response")
        self._tells_error = name == "response.failed"
        self.failed = self.failed or self._tells_error
        produced = isinstance(response, dict) and is_produced(response)
        self._passed.closed = self._passed.closed or (name == "response.failed" and produced)
        self.usage_event = event
        if self._left > 0:
            return ""
        self.done = True
        return "tail"

    def report(self) -> Report:
        """See StreamMeter. Before its closing event a response is what its finished items say."""
        found = super().report()
        if self.usage_event is not None:
            return found
        self._read_raw()
        made = items_report(self._passed.items)
        found = found._replace(pictures=made.pictures, drawn=made.drawn)
        return found._replace(calls=made.calls, containers=made.containers, items=made.items)

    def streamed(self) -> tuple[list[str], int]:
        """See StreamMeter."""
        texts, media = super().streamed()
        return [*texts, "".join(self._passed.texts)], media

    def _passed_media(self) -> int:
        return super()._passed_media() + sound_tokens(self._passed.sound_bytes, self.sound_format)

    def streamed_tokens_estimate(self) -> int:
        """See StreamMeter."""
        return super().streamed_tokens_estimate() + len(self._passed.texts)

    @property
    def streamed_anything(self) -> bool:
        """See StreamMeter: a finished call or picture is output as well."""
        return super().streamed_anything or bool(self._passed.items) or self._passed.closed

    def read_passed(self, events: bytes) -> None:
        """See StreamMeter."""
        self.read_each(events)

    def read_payload(self, payload: bytes) -> None:
        """See StreamMeter. Pictures and sound are counted by their pieces."""
        found = ENCODED.search(payload)
        if found is not None and (b"partial_image" in payload[:HEAD] or b"partial_image" in payload[-HEAD:]):
            self._media_tokens += PARTIAL_TOKENS
        elif found is not None and b"speech.audio" in payload:
            self.sound_bytes += (len(payload) - found.end()) * 3 // 4
        elif (event := decode_object(payload)) is not None:
            response = event.get("response")
            if not self._report.upstream_id and isinstance(response, dict):
                self._report = self._report._replace(
                    upstream_id=text_of(response, "id"), model=text_of(response, "model")
                )
            self._passed.take(event)


class PassedEvents:
    """Output of one response that passed in its events, over HTTP or on a socket, for when its end does not."""

    __slots__ = ("_known", "_parts", "_said", "_whole", "closed", "items", "sound_bytes", "texts")

    def __init__(self) -> None:
        """Nothing has passed yet."""
        self.texts: list[str] = []
        self.items: list[dict[str, Any]] = []
        """Finished items that a bill depends on, without their content."""
        self.closed = False
        """True when it ended in an error all the same with output in it."""
        self.sound_bytes = 0
        self._said: set[Any] = set()
        self._known: set[str] = set()
        self._whole: set[int | None] = set()
        self._parts: set[tuple[int | str | None, ...]] = set()

    def __bool__(self) -> bool:
        """Tell whether anything passed."""
        return bool(self.texts or self.items or self.sound_bytes or self.closed)

    def take(self, event: dict[str, Any]) -> None:
        """Take one event: its piece of text, an item that is finished and was not told in pieces, or the end where
        nothing was told before it.
        """
        delta, index = event.get("delta"), event.get("output_index")
        index = index if isinstance(index, int) else None
        if isinstance(delta, str) and event.get("type") in SPOKEN:
            self.sound_bytes += len(delta) * 3 // 4
        elif isinstance(delta, str | dict):
            self._said.add(index)
            self.texts += written_texts(delta)
        kind, item = event.get("type"), event.get("item")
        if isinstance(kind, str) and kind.endswith(DONE) and index not in self._said:
            self._take_whole(event, index)
        if kind in ENDS and not self.texts:
            response = event.get("response")
            self.texts += answer_texts(response) if isinstance(response, dict) else []
        if kind != ITEM_DONE or not isinstance(item, dict):
            return
        if name := text_of(item, "id"):
            if name in self._known:
                return  # it is told once more
            self._known.add(name)
        if index not in self._said and index not in self._whole and all(index != one[0] for one in self._parts):
            self.texts += written_texts(item)
        if (billable := billable_item(item)) is not None:
            self.items.append(billable)

    def _take_whole(self, event: dict[str, Any], index: int | None) -> None:
        """Take a text, or a part, that is told whole and was not told in pieces."""
        told = [event[name] for name in WHOLE_TEXTS if isinstance(event.get(name), str) and event[name]]
        part, place = event.get("part"), (index, *(str(event.get(name)) for name in PLACE))
        if told:
            self._whole.add(index)
        elif isinstance(part, dict) and index not in self._whole and place not in self._parts:
            self._parts.add(place)
            told = written_texts(part)
        self.texts += told


RESPONSE_EVENTS = kind(ENDS, response_report)
IMAGE_EVENTS = kind(("image_generation.completed", "image_edit.completed"), image_report)
TRANSCRIPT_EVENTS = kind(("transcript.text.done",), audio_report)
SPEECH_EVENTS = kind(("speech.audio.done",), audio_report)
