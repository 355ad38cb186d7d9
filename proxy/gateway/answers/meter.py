"""Reading usage out of answers, sans I/O. A cheap search decides whether a chunk is worth parsing.

`StreamMeter` passes whole events through unchanged; the one event it may hide is the usage chunk that we
asked for and the client did not. From the usage chunk (or [DONE]) on it keeps back the tail, so that the
charge can be settled before the client sees the end.
"""

import re
from typing import Any, Literal, NamedTuple

import msgspec

from billing.money.usage import MAX_TOKENS, Usage
from proxy.gateway.answers.sse import event_data, last_boundary, next_boundary, split_events
from proxy.gateway.answers.texts import written_texts

INTERESTING = re.compile(rb'"usage"\s*:\s*\{|^data:\s*\[DONE\]|^data:\s*\{\s*"error"\s*:', re.MULTILINE)
COMPACT_AT = 65_536
PARTIAL_LIMIT = 8_388_608


class Report(NamedTuple):
    """An answer about itself.

    `more` is what other models did, by name ("" = the one that the request named); `containers` and `items` are what it
    made in the upstream account; `status` is a response's own.
    """

    usage: Usage | None
    model: str
    service_tier: str | None
    upstream_id: str
    more: tuple[tuple[str, Usage], ...] = ()
    containers: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    status: str = ""


NO_REPORT = Report(None, "", None, "")


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    text: str | None = None
    index: int = 0


class _Answer(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: Any = None
    choices: list[_Choice] | None = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes) -> tuple[Report, bool, list[str]]:
    """(report, whether anything was produced, its texts) of a non-streaming answer; an unreadable one has no usage."""
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _lenient_report(body), True, []
    produced = answer.choices is None or any(_is_output(choice) for choice in answer.choices)
    texts = ["".join(choice_texts(choice, choice.message or {})) for choice in answer.choices or ()]
    return _report(answer), produced, texts


def read_usage(raw: Any) -> Usage | None:
    """OpenAI's usage object as a Usage; None when it is missing, negative, not integers, or contradicts itself."""
    if not isinstance(raw, dict):
        return None
    prompt, completion = count_of(raw, "prompt_tokens"), count_of(raw, "completion_tokens", 0)
    total = count_of(raw, "total_tokens", (prompt or 0) + (completion or 0))
    if prompt is None or completion is None or total is None or total < max(prompt, completion):
        return None
    if not prompt and not completion:
        return None  # no request is without input: some fakes and local servers send zeros beside a whole answer
    if raw.get("completion_tokens") is None and raw.get("total_tokens") != prompt:
        return None  # only an embedding has no completion, and it says that its total is its prompt
    inside = raw.get("prompt_tokens_details") or {}
    made = raw.get("completion_tokens_details") or {}
    if not isinstance(inside, dict) or not isinstance(made, dict):
        return None
    writes = inside.get("cache_write_tokens_details") or {}
    write_12h = part_of(writes, "ttl_12h_tokens") if isinstance(writes, dict) else 0
    usage = Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cached_tokens=part_of(inside, "cached_tokens"),
        cache_write_30m_tokens=max(0, part_of(inside, "cache_write_tokens") - write_12h),
        cache_write_12h_tokens=write_12h,
        audio_input_tokens=part_of(inside, "audio_tokens"),
        image_input_tokens=part_of(inside, "image_tokens"),
        audio_output_tokens=part_of(made, "audio_tokens"),
        reasoning_tokens=part_of(made, "reasoning_tokens"),
    )
    return usage if usage.is_consistent() else usage.normalised()


class StreamMeter:
    """One chat or completion stream: what to pass on, what it used, what it showed so far.

    Streams of other kinds override what matters in them (`interesting`, `may_matter`, `read_event`, `read_payload`).
    """

    interesting = INTERESTING
    partial_limit = PARTIAL_LIMIT
    content_type = b""
    """Content type for the client instead of the upstream's own; set where its form is another."""
    ends_in_events = True
    """True when a stream that breaks off can say so in an event of its own."""

    def __init__(self, *, hide_usage: bool) -> None:
        """`hide_usage`: the client did not ask for the usage chunk."""
        self._hide = hide_usage
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._partial_end = b""
        self._raw: list[bytes] = []
        self._raw_size = 0
        self._texts: dict[int, list[str]] = {}
        self._media_tokens = 0
        self._report = NO_REPORT
        self.tail: list[bytes] = []
        self.usage_event: bytes | None = None
        self.done = False
        self.failed = False
        self.finish_reasons: set[str] = set()

    def feed(self, data: bytes) -> bytes:
        """Take upstream bytes; return what may go to the client now."""
        if self._partial:
            if not last_boundary(self._partial_end + data) and self._partial_size < self.partial_limit:
                self._keep_partial(data)
                return b""
            data = self.rest() + data
        end = last_boundary(data)
        if len(data) - end > self.partial_limit:
            end = len(data)  # no usage chunk is that large
        if end != len(data):
            self._keep_partial(data[end:])
        whole = data[:end] if end != len(data) else data
        if not whole:
            return b""
        self._raw.append(whole)
        self._raw_size += len(whole)
        if self._raw_size > COMPACT_AT:
            self._read_raw()
        if not self.tail and not self.done and not self.may_matter(whole):
            return whole
        return self._feed_events(whole)

    def _keep_partial(self, data: bytes) -> None:
        self._partial.append(data)
        self._partial_size += len(data)
        self._partial_end = (self._partial_end + data[-3:])[-3:]

    def _feed_events(self, whole: bytes) -> bytes:
        """Only the events that may matter are cut out and read; everything between them passes in one piece."""
        passed: list[bytes] = []
        position = 0
        while match := self.interesting.search(whole, position):
            start = max(position, last_boundary(whole[: match.start()]))
            end = next_boundary(whole, match.start())
            (self.tail or passed).append(whole[position:start])
            event, position = whole[start:end], end
            kept_back = self.read_event(event)
            if kept_back != "hidden":
                (self.tail if kept_back or self.tail else passed).append(event)
        (self.tail or passed).append(whole[position:])
        return b"".join(passed)

    def end(self) -> None:
        """Take the upstream's clean end: an event that only lacks its blank line is whole all the same."""
        event = self.rest()
        payload = event_data(event).strip()
        if payload != b"[DONE]" and not (payload.startswith(b"{") and payload.endswith(b"}")):
            self._partial = [event] if event else []  # no event: it stays an unended rest
        else:
            self._raw.append(event)
            passed = self._feed_events(event)
            if passed:
                self.tail.append(passed)

    def may_matter(self, data: bytes) -> bool:
        """Cheap search: usage that is not null, [DONE], or an error.

        May be wrong one way: yes for what does not matter.
        """
        return data.count(b'"usage"') != data.count(b'"usage":null') or b"[DONE]" in data or b'"error"' in data

    def read_event(self, event: bytes) -> Literal["", "tail", "hidden"]:
        """Read one event that may matter; say whether it must wait for the settling, or never be shown."""
        payload = event_data(event)
        if payload.strip() == b"[DONE]":
            self.done = True
            return "tail"
        try:
            answer = _answer.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        if answer.error is not None:
            self.failed = True
            return ""
        if answer.usage is None:
            return ""
        found = _report(answer)
        self._report = found if found.usage is not None else found._replace(usage=self._report.usage)
        if answer.choices:
            return ""
        self.usage_event = event
        return "hidden" if self._hide else "tail"

    def rest(self) -> bytes:
        """Event that never ended, when the upstream stopped inside it."""
        partial, self._partial, self._partial_size, self._partial_end = b"".join(self._partial), [], 0, b""
        return partial

    def report(self) -> Report:
        """Usage and identity; without a usage chunk the identity of the first chunk that was shown."""
        if self._report.usage is None and not self._report.model:
            self._read_raw()
        return self._report

    def streamed(self) -> tuple[list[str], int]:
        """(texts the model has shown, tokens of sound or pictures), as far as upstream has sent them."""
        self._read_raw()
        return ["".join(parts) for parts in self._texts.values()], self._media_tokens

    def streamed_tokens_estimate(self) -> int:
        """Tokens shown so far without a tokenizer: OpenAI sends about one a piece. For checkpoints."""
        self._read_raw()
        return sum(len(parts) for parts in self._texts.values()) + self._media_tokens

    def may_end_in_error(self) -> bool:
        """Tell whether a closer look at finish reasons is worth it."""
        return "error" in self.finish_reasons or any(b'"finish_reason":"error"' in part for part in self._raw)

    @property
    def streamed_anything(self) -> bool:
        """True once any output reached us."""
        texts, media = self.streamed()
        return media > 0 or any(texts)

    def _read_raw(self) -> None:
        """Take the text out of the raw events kept so far, and let those go."""
        raw, self._raw, self._raw_size = b"".join(self._raw), [], 0
        for event in split_events(raw):
            payload = event_data(event)
            if payload.startswith(b"{"):
                self.read_payload(payload)

    def read_payload(self, payload: bytes) -> None:
        """Take what an event shows out of it."""
        try:
            answer = _answer.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if not self._report.model and answer.model:
            self._report = self._report._replace(
                model=answer.model, service_tier=answer.service_tier, upstream_id=answer.id or ""
            )
        for choice in answer.choices or ():
            self._read_choice(choice)

    def _read_choice(self, choice: _Choice) -> None:
        if choice.finish_reason:
            self.finish_reasons.add(choice.finish_reason)
        delta = choice.delta or {}
        audio = delta.get("audio")
        if isinstance(audio, dict) and audio.get("data"):
            self._media_tokens += 1
        self._texts.setdefault(choice.index, []).extend(choice_texts(choice, delta))


def with_cost(event: bytes, cost_credits: int | float) -> bytes:
    """Usage chunk with `cost_credits` as the last member of its usage object."""
    found = list(re.finditer(rb'"usage"\s*:\s*\{', event))
    if not found:
        return event
    start = found[-1]  # a tool's schema, echoed before it, may have a property of that name
    depth = 0
    for position in range(start.end() - 1, len(event)):
        depth += (event[position] == ord("{")) - (event[position] == ord("}"))
        if depth == 0:
            return event[:position] + b',"cost_credits":' + msgspec.json.encode(cost_credits) + event[position:]
    return event


def _report(answer: _Answer) -> Report:
    return Report(read_usage(answer.usage), answer.model or "", answer.service_tier, answer.id or "")


def _lenient_report(body: bytes) -> Report:
    """Usage of an answer whose other parts are not as we know them."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NO_REPORT
    if not isinstance(raw, dict):
        return NO_REPORT
    model, tier, upstream_id = raw.get("model"), raw.get("service_tier"), raw.get("id")
    return Report(
        read_usage(raw.get("usage")),
        model if isinstance(model, str) else "",
        tier if isinstance(tier, str) else None,
        upstream_id if isinstance(upstream_id, str) else "",
    )


def choice_texts(choice: _Choice, said: dict[str, Any]) -> list[str]:
    """Pieces of text in a choice; `said` is its message or delta."""
    content = said.get("content")
    if type(content) is str and len(said) == 1 and not choice.text:
        return [content] if content else []  # nearly every chunk of a stream
    return [*([choice.text] if choice.text else []), *written_texts(said)]


def _is_output(choice: _Choice) -> bool:
    """Tell whether a choice holds output, or ended for another reason than an error."""
    message = choice.message or {}
    passed = choice_texts(choice, message) or message.get("tool_calls") or message.get("audio")
    return bool(passed) or choice.finish_reason not in (None, "error")


def count_of(raw: dict[str, Any], name: str, default: int | None = None) -> int | None:
    """Count that is a whole number within bounds; None when it is not."""
    value = raw.get(name, default)
    if value is None and default is not None:
        value = default
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def part_of(raw: dict[str, Any], name: str) -> int:
    """Part of a count; 0 when it is missing or makes no sense."""
    value = raw.get(name)
    return value if type(value) is int and value > 0 else 0
