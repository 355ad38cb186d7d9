"""Reading usage out of the newer endpoints: Responses, images, audio, decisions; JSON answers and typed event streams.

Sans I/O.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

import msgspec

from billing.money.usage import MAX_TOKENS, Usage
from proxy.gateway.answers.meter import NO_REPORT, Report, StreamMeter, count_of, part_of
from proxy.gateway.answers.sse import event_data
from proxy.gateway.answers.texts import written_texts
from proxy.gateway.bodies.image_bounds import PARTIAL_TOKENS

EVENT_LIMIT = 67_108_864
"""Bytes of one event: images come whole in one."""
HEAD = 200
DELTA = re.compile(rb'"type"\s*:\s*"([a-z_.]+)\.delta"')
SEARCH_ACTION = "search"
SPEECH_TOKENS_PER_SECOND = 20
SPEECH_BYTES_PER_SECOND = 8_000
"""MP3 at 64 kbit/s: what a piece of speech is estimated by when its stream breaks off before its usage."""
CALL_ITEMS = {"web_search_call": "web_search", "file_search_call": "file_search"}


class EventKind(NamedTuple):
    """One family of typed events: which of them close the stream, and how their usage is read."""

    closing: frozenset[str]
    matters: re.Pattern[bytes]
    report: Callable[[dict[str, Any]], Report]


def kind(closing: tuple[str, ...], report: Callable[[dict[str, Any]], Report]) -> EventKind:
    """Event family; an `error` event matters in all of them."""
    names = b"|".join(re.escape(name.encode()) for name in (*closing, "error"))
    return EventKind(frozenset(closing), re.compile(rb'"type"\s*:\s*"(?:' + names + rb')"'), report)


class EventMeter(StreamMeter):
    """A stream of typed events: passes them on, keeps back the closing one until the charge is settled."""

    partial_limit = EVENT_LIMIT

    def __init__(self, family: EventKind, finals: int) -> None:
        """Wait for `finals` closing events (one an image)."""
        super().__init__(hide_usage=False)
        self._family = family
        self._left = finals
        self.interesting = family.matters

    def may_matter(self, data: bytes) -> bool:
        """See StreamMeter."""
        return self.interesting.search(data) is not None

    def read_event(self, event: bytes) -> Literal["", "tail", "hidden"]:
        """See StreamMeter."""
        payload = _object(event_data(event))
        name = payload.get("type")
        if name == "error":
            self.failed = True
            return ""
        if name not in self._family.closing:
            return ""
        self._left -= 1
        self._report = joined(self._report, self._family.report(payload))
        self.failed = self.failed or name == "response.failed"
        self.usage_event = event
        if self._left > 0:
            return ""
        self.done = True
        return "tail"

    def read_payload(self, payload: bytes) -> None:
        """See StreamMeter. Only text is taken: pictures and sound are counted by their pieces."""
        if not self._report.upstream_id and b'"response"' in payload[:HEAD]:
            response = _object(payload).get("response")
            if isinstance(response, dict):
                self._report = self._report._replace(upstream_id=_text(response, "id"), model=_text(response, "model"))
        if b"partial_image" in payload[:HEAD]:
            self._media_tokens += PARTIAL_TOKENS
            return
        found = DELTA.search(payload[:HEAD])
        if found is None:
            return
        if found[1] == b"speech.audio":
            self._media_tokens += -(-len(payload) * 3 * SPEECH_TOKENS_PER_SECOND // (4 * SPEECH_BYTES_PER_SECOND))
            return
        delta = _object(payload).get("delta")
        if isinstance(delta, str) and delta:
            self._texts.setdefault(0, []).append(delta)


def read_tokens(raw: Any) -> Usage | None:
    """Usage as Responses, images, transcription and realtime report it; None when it is missing, negative or
    contradicts itself.
    """
    if not isinstance(raw, dict):
        return None
    tokens_in, tokens_out = count_of(raw, "input_tokens"), count_of(raw, "output_tokens", 0)
    total = count_of(raw, "total_tokens", (tokens_in or 0) + (tokens_out or 0))
    if tokens_in is None or tokens_out is None or total is None or total < max(tokens_in, tokens_out):
        return None
    inside = _details(raw, "input_tokens_details", "input_token_details")
    made = _details(raw, "output_tokens_details", "output_token_details")
    cached = _details(inside, "cached_tokens_details") or _details(raw, "cached_tokens_details")
    writes = _details(inside, "cache_write_tokens_details")
    write_12h = part_of(writes, "ttl_12h_tokens")
    return Usage(
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cached_tokens=part_of(inside, "cached_tokens") or part_of(raw, "cached_tokens"),
        cache_write_30m_tokens=max(0, part_of(inside, "cache_write_tokens") - write_12h),
        cache_write_12h_tokens=write_12h,
        audio_input_tokens=part_of(inside, "audio_tokens"),
        image_input_tokens=part_of(inside, "image_tokens"),
        cached_audio_tokens=part_of(cached, "audio_tokens") or part_of(cached, "cached_audio_tokens"),
        cached_image_tokens=part_of(cached, "image_tokens") or part_of(cached, "cached_image_tokens"),
        audio_output_tokens=part_of(made, "audio_tokens"),
        image_output_tokens=part_of(made, "image_tokens"),
        reasoning_tokens=part_of(made, "reasoning_tokens"),
    ).normalised()


def response_report(event: dict[str, Any]) -> Report:
    """Report of an event that carries a whole `response`, or of a response itself."""
    response = event.get("response") if isinstance(event.get("response"), dict) else event
    if not isinstance(response, dict):
        return NO_REPORT
    usage = read_tokens(response.get("usage"))
    output = response.get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    used = _details(response, "tool_usage")
    more: tuple[tuple[str, Usage], ...] = ()
    image = read_tokens(used.get("image_gen"))
    if image is not None and (image.input_tokens or image.output_tokens):
        more = (("", _image_usage(image, used.get("image_gen"))),)
    if usage is not None and not (usage.input_tokens or usage.output_tokens) and written_texts(items):
        usage = None  # zeros beside what was plainly written are no report
    if usage is not None:
        usage = msgspec.structs.replace(usage, calls=_calls(items, used))
    return Report(
        usage,
        _text(response, "model"),
        response.get("service_tier") if isinstance(response.get("service_tier"), str) else None,
        _text(response, "id"),
        more=more,
        containers=tuple(sorted({_text(item, "container_id") for item in items} - {""})),
        items=tuple(_text(item, "id") for item in items if item.get("id")),
        status=_text(response, "status"),
    )


def _calls(items: list[dict[str, Any]], used: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Billable calls: searches as reported, else as counted; opening a page is free (docs/openai.md#hosted-tools)."""
    counted: Counter[str] = Counter()
    for item in items:
        name = CALL_ITEMS.get(_text(item, "type"))
        action = item.get("action")
        if name and not (
            name == "web_search" and isinstance(action, dict) and action.get("type") not in (None, SEARCH_ACTION)
        ):
            counted[name] += 1
    reported = _details(used, "web_search").get("num_requests")
    if type(reported) is int and reported >= 0:
        counted["web_search"] = reported
    return tuple(sorted((name, number) for name, number in counted.items() if number))


def image_report(event: dict[str, Any]) -> Report:
    """Report of an images answer, or of one image of a stream."""
    usage = read_tokens(event.get("usage"))
    author = event.get("svg_usage")
    more: tuple[tuple[str, Usage], ...] = ()
    if isinstance(author, dict) and (written := read_tokens({**author, "output_tokens_details": author})) is not None:
        more = ((_text(author, "model"), written),)
    return Report(None if usage is None else _image_usage(usage, event.get("usage")), "", None, "", more=more)


def _image_usage(usage: Usage, said: Any) -> Usage:
    """Count an image model's output as image, but for what it calls text. `said`: the usage as the answer has it."""
    details = said.get("output_tokens_details") if isinstance(said, dict) else None
    if isinstance(details, dict) and type(details.get("image_tokens")) is int:
        return usage  # 0 is said as well
    return msgspec.structs.replace(usage, image_output_tokens=usage.output_tokens)


def audio_report(event: dict[str, Any]) -> Report:
    """Report of a transcription, a translation or speech: tokens, or a duration."""
    usage = event.get("usage")
    tokens = read_tokens(usage)
    if tokens is not None:
        return Report(tokens, "", None, "")
    seconds = usage.get("seconds") if isinstance(usage, dict) else None
    milliseconds = _milliseconds(seconds)
    if milliseconds is None and (played := _milliseconds(event.get("duration"))) is not None:
        milliseconds = -(-played // 1_000) * 1_000  # billed by the second, rounded up, as transcriptions say themselves
    return NO_REPORT if milliseconds is None else Report(Usage(milliseconds=milliseconds), "", None, "")


def decision_report(answer: dict[str, Any]) -> Report:
    """Report of a decision: its output is free."""
    usage = read_tokens(answer.get("usage"))
    usage = None if usage is None else msgspec.structs.replace(usage, output_tokens=0, reasoning_tokens=0)
    return Report(usage, _text(answer, "model"), None, _text(answer, "id"))


def free_report(answer: dict[str, Any]) -> Report:
    """Report of an answer that costs nothing."""
    return Report(Usage(), _text(answer, "model"), None, _text(answer, "id"))


def reads(report: Callable[[dict[str, Any]], Report]) -> Callable[[bytes], tuple[Report, bool, list[str]]]:
    """Reader of whole answers: (report, whether anything was produced, its texts)."""

    def read(body: bytes) -> tuple[Report, bool, list[str]]:
        answer = _object(body)
        found = report(answer)
        produced = answer.get("status") != "failed" or bool(answer.get("output"))
        return found, produced, answer_texts(answer)

    return read


def answer_texts(answer: dict[str, Any]) -> list[str]:
    """Texts of a whole answer, for when its usage is missing."""
    found = [answer["text"]] if isinstance(answer.get("text"), str) else []
    return found + written_texts(answer["output"] if isinstance(answer.get("output"), list) else [])


def joined(one: Report, other: Report) -> Report:
    """Two reports of one answer: their usage added (one image each)."""
    if one.usage is None:
        return other._replace(model=other.model or one.model, upstream_id=other.upstream_id or one.upstream_id)
    if other.usage is None:
        return one
    return one._replace(usage=added(one.usage, other.usage), more=one.more + other.more)


def added(one: Usage, other: Usage) -> Usage:
    """Sum of two usages."""
    fields = {name: getattr(one, name) + getattr(other, name) for name in one.__struct_fields__ if name != "calls"}
    calls = Counter(dict(one.calls)) + Counter(dict(other.calls))
    return Usage(**fields, calls=tuple(sorted(calls.items())))


def _milliseconds(seconds: Any) -> int | None:
    """Seconds as JSON has them (9, 8.47, "8.470000267028809"), rounded up to the millisecond."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | str):
        return None
    try:
        value = (Decimal(str(seconds)) * 1_000).to_integral_value(ROUND_CEILING)
    except InvalidOperation:
        return None
    return int(value) if value.is_finite() and 0 <= value <= MAX_TOKENS else None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _details(raw: Mapping[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        value = raw.get(name)
        if isinstance(value, dict):
            return value
    return {}


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    return value[:120] if isinstance(value, str) else ""


RESPONSE_EVENTS = kind(("response.completed", "response.incomplete", "response.failed"), response_report)
IMAGE_EVENTS = kind(("image_generation.completed", "image_edit.completed"), image_report)
TRANSCRIPT_EVENTS = kind(("transcript.text.done",), audio_report)
SPEECH_EVENTS = kind(("speech.audio.done",), audio_report)
