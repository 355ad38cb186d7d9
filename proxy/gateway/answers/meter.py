"""Reading usage out of answers, sans I/O. A cheap search decides whether a chunk is worth parsing.

`StreamMeter` passes whole events through unchanged; the one event it may hide is the usage chunk that we
asked for and the client did not. From the usage chunk (or [DONE]) on it keeps back the tail, so that the
charge can be settled before the client sees the end.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.report import FAILED, NO_ANSWER, NO_REPORT, Report, WholeAnswer, unreadable
from proxy.gateway.answers.sse import BLANKS, COLON, event_data, last_boundary, next_boundary, split_events
from proxy.gateway.answers.texts import written_texts
from proxy.gateway.answers.upstream_errors import masked_body, masked_event
from proxy.gateway.answers.usage import read_usage, splits_writes
from proxy.gateway.bodies.sound import DEFAULT_FORMAT, sound_tokens

INTERESTING = re.compile(rb'"usage"%b\{|data:\s*\[DONE\]|"error"%b[{"]' % (COLON, COLON))
"""Without anchors, which would cost five times as much: what stands inside a text is read once more and passed."""
DATA, END = b"data: ", b"\n\n"
BETWEEN, DONE = END + DATA, b"data: [DONE]\n\n"
FAR_FUTURE = 2**33
"""Unix seconds that no time of an answer's reaches."""
COMPACT_AT = 65_536
PARTIAL_LIMIT = 8_388_608


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
    data: msgspec.Raw = msgspec.Raw()


_answer = msgspec.json.Decoder(_Answer)
_answers = msgspec.json.Decoder(list[_Answer])


def read_answer(body: bytes) -> WholeAnswer:
    """Read a whole chat completion, legacy completion or embedding."""
    answer = _decoded(body)
    if answer is None:
        return unreadable(body)
    if answer.choices is None and (answer.error is not None or not (answer.usage or bytes(answer.data) not in NOTHING)):
        return WholeAnswer(NO_REPORT, [], produced=False, refusal=FAILED if answer.error is not None else NO_ANSWER)
    choices = answer.choices or ()
    said = [(choice, choice.message or {}) for choice in choices]
    texts = [choice_texts(choice, message) for choice, message in said]
    sound = sum(sound_bytes(message) for _, message in said)
    produced = answer.choices is None or any(
        found or message.get("tool_calls") or message.get("audio") or choice.finish_reason not in (None, "error")
        for (choice, message), found in zip(said, texts, strict=True)
    )
    report = _report(answer)
    if kept := [sound_of(message) for _, message in said if "audio" in message]:
        report = report._replace(sounds=tuple(one for one in kept if one[0]))
    return WholeAnswer(report, ["".join(found) for found in texts], sound, produced)


def sound_bytes(said: dict[str, Any]) -> int:
    """Bytes of speech in a message or delta."""
    audio = said.get("audio")
    data = audio.get("data") if isinstance(audio, dict) else None
    return len(data) * 3 // 4 if isinstance(data, str) else 0


def sound_of(said: dict[str, Any]) -> tuple[str, int]:
    """(id of the speech in a message or delta, Unix second at which it is gone); "" and 0 where it does not say."""
    audio = said.get("audio")
    if not isinstance(audio, dict):
        return "", 0
    gone = audio.get("expires_at")
    return (_text_of(audio, "id") or "")[:120], gone if type(gone) is int and 0 <= gone < FAR_FUTURE else 0


class StreamMeter:
    """One chat or completion stream: what to pass on, what it used, what it showed so far.

    Streams of other kinds override what matters in them (`interesting`, `may_matter`, `read_event`, `read_payload`).
    """

    interesting = INTERESTING
    partial_limit = PARTIAL_LIMIT
    content_type = b""
    """Content type for the client instead of the upstream's own; set where its form is another."""
    ends_in_events = says_why = True
    """Tell whether a stream that breaks off can say so in an event of its own, and whether each says why it stopped."""

    def __init__(self, *, hide_usage: bool) -> None:
        """`hide_usage`: the client did not ask for the usage chunk."""
        self._hide = hide_usage
        self.reader: Callable[[bytes], WholeAnswer] = read_answer
        self.sound_bytes = 0
        self.sound_format = DEFAULT_FORMAT
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._partial_end = b""
        self._raw: list[bytes] = []
        self._raw_size = 0
        self._after_cr = self._hid_last = False
        self._texts: defaultdict[int, list[str]] = defaultdict(list)
        self._media_tokens = 0
        self._sounds: dict[int, tuple[str, int]] = {}
        self._report = NO_REPORT
        self.tail: list[bytes] = []
        self.usage_event: bytes | None = None
        self.done = False
        self.failed = self.inside_event = self.usage_is_early = False
        """`inside_event`: what was passed on last does not end where an event does; `usage_is_early`: what it used was
        said beside output, and more may have followed."""
        self.account = ""
        """What the stream says is wrong with our own account, in words that were not shown."""
        self._tells_error = False
        self.finish_reasons: set[str] = set()

    def feed(self, data: bytes) -> bytes:
        """Take upstream bytes; return what may go to the client now."""
        if self._after_cr and data:
            if data.startswith(b"\n"):
                return self._end_of_cr() + self.feed(data[1:])
            self._after_cr = self.inside_event = False  # it was a whole line end
        if self._partial or not data.endswith(END):
            data = self._whole_events(data)
            if not data:
                return b""
        else:  # nearly every piece
            self._after_cr = self.inside_event = False
        self._hid_last = False
        self._raw.append(data)
        self._raw_size += len(data)
        if self._raw_size > COMPACT_AT:
            self._read_raw()
        if self.tail or self.done or self.may_matter(data):
            return self._feed_events(data)
        return data

    def _whole_events(self, data: bytes) -> bytes:
        """Return the events that are whole now, of bytes that begin or end inside of one; keep the rest."""
        if self._partial:
            if not last_boundary(self._partial_end + data) and self._partial_size < self.partial_limit:
                self._keep_partial(data)
                return b""
            data = self.rest() + data
        end = last_boundary(data)
        inside = len(data) - end > self.partial_limit
        if inside:
            end = len(data)  # no usage chunk is that large
        if end != len(data):
            self._keep_partial(data[end:])
        whole = data[:end] if end != len(data) else data
        if whole:
            self._after_cr = whole.endswith(b"\r") and end == len(data)
            self.inside_event = inside or self._after_cr
        return whole

    def _end_of_cr(self) -> bytes:
        """Take the second half of a CRLF whose first half ended an event: it goes where that event went."""
        self._after_cr = self.inside_event = False
        if self._hid_last:
            return b""
        if self.tail:
            self.tail.append(b"\n")
            return b""
        return b"\n"

    def _keep_partial(self, data: bytes) -> None:
        self._partial.append(data)
        self._partial_size += len(data)
        self._partial_end = (self._partial_end + data[-3:])[-3:]

    def _feed_events(self, whole: bytes) -> bytes:
        """Only the events that may matter are cut out and read; everything between them passes in one piece."""
        passed: list[bytes] = []
        position = 0
        while match := self.interesting.search(whole, position):
            start = position + last_boundary(whole[position : match.start()])
            end = next_boundary(whole, match.start())
            (self.tail or passed).append(whole[position:start])
            event, position = whole[start:end], end
            kept_back = self.read_event(event)
            self._hid_last = kept_back == "hidden" and end == len(whole)
            if self._tells_error:
                event = self._masked(event)
            if kept_back != "hidden":
                (self.tail if kept_back or self.tail else passed).append(event)
        (self.tail or passed).append(whole[position:])
        return b"".join(passed)

    def _masked(self, event: bytes) -> bytes:
        """Take what is about our own account out of an event that tells an error."""
        self._tells_error = False
        account, shown = masked_event(event)
        self.account = self.account or account
        if self.usage_event is event:
            self.usage_event = shown
        return shown

    def end(self) -> None:
        """Take the upstream's clean end: an event without its blank line is whole, an object alone a whole answer."""
        event = self.rest()
        payload = event_data(event).strip()
        if not payload and event.lstrip(BLANKS).startswith(b"{"):
            self._read_whole(event)
        elif payload != b"[DONE]" and not (payload.startswith(b"{") and payload.endswith(b"}")):
            self._partial = [event] if event else []  # no event: it stays an unended rest
        else:
            self._raw.append(event)
            passed = self._feed_events(event)
            if passed:
                self.tail.append(passed)

    def _read_whole(self, body: bytes) -> None:
        answer, (self.account, shown) = self.reader(body), masked_body(body)
        self.tail.append(shown)
        self.usage_event, self._report, self.sound_bytes = shown, answer.report, answer.sound_bytes
        self._texts[0] += answer.texts
        self.done, self.failed = not answer.refusal, not answer.produced

    def may_matter(self, data: bytes) -> bool:
        """Cheap search: usage that is not null, [DONE], or an error.

        May be wrong one way: yes for what does not matter.
        """
        named = data.count(b'"usage"')
        if named and named != data.count(b'"usage":null') and named != data.count(b'"usage": null'):
            return True
        return b"[DONE]" in data or b'"error"' in data

    def read_event(self, event: bytes) -> Literal["", "tail", "hidden"]:
        """Read one event that may matter; say whether it must wait for the settling, or never be shown."""
        payload = event_data(event)
        if payload.strip() == b"[DONE]":
            self.done = True
            return "tail"
        answer = _decoded(payload)
        if answer is None:
            return ""
        if answer.error is not None:
            self.failed = self._tells_error = True
            return ""
        if answer.usage is None:
            return ""
        found = _report(answer)
        if found.usage is None:
            found = found._replace(usage=self._report.usage)
        else:
            self.usage_is_early = bool(answer.choices)
        self._report = found if found.model and found.service_tier else self._named_before(found)
        if answer.choices:
            return ""
        self.usage_event = event
        return "hidden" if self._hide else "tail"

    def _named_before(self, found: Report) -> Report:
        """Report of a chunk that does not name all: by what the chunks before it said."""
        if not found.model or any(b'"service_tier"' in part for part in self._raw):
            self._read_raw()
        known = self._report
        names = {"model": found.model or known.model, "upstream_id": found.upstream_id or known.upstream_id}
        return found._replace(service_tier=found.service_tier or known.service_tier, **names)

    def rest(self) -> bytes:
        """Event that never ended, when the upstream stopped inside it."""
        partial, self._partial, self._partial_size, self._partial_end = b"".join(self._partial), [], 0, b""
        return partial

    def report(self) -> Report:
        """Usage and identity; without a usage chunk the identity of the first chunk that was shown."""
        if self._report.usage is None and not self._report.model:
            self._read_raw()
        return self._report._replace(sounds=self.sounds()) if self.sound_bytes or self._sounds else self._report

    def sounds(self) -> tuple[tuple[str, int], ...]:
        """Speech that came so far, as in a report."""
        self._read_raw()
        return tuple((name, gone) for name, gone in self._sounds.values() if name)

    def streamed(self) -> tuple[list[str], int]:
        """(texts the model has shown, tokens of sound or pictures), as far as upstream has sent them."""
        self._read_raw()
        return ["".join(parts) for parts in self._texts.values()], self._passed_media()

    def streamed_tokens_estimate(self) -> int:
        """Tokens shown so far without a tokenizer: OpenAI sends about one a piece. For checkpoints."""
        self._read_raw()
        return sum(len(parts) for parts in self._texts.values()) + self._passed_media()

    def _passed_media(self) -> int:
        return self._media_tokens + sound_tokens(self.sound_bytes, self.sound_format)

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
        self.read_passed(raw)

    def read_passed(self, events: bytes) -> None:
        """Take what whole events show out of them."""
        answers = _decoded_together(events)
        if answers is None:
            self.read_each(events)
            return
        for answer in answers:
            self._take(answer)

    def read_each(self, events: bytes) -> None:
        """As read_passed, one by one: for events that are not all plain."""
        for event in split_events(events):
            payload = event_data(event)
            if payload.startswith(b"{"):
                self.read_payload(payload)

    def read_payload(self, payload: bytes) -> None:
        """Take what an event shows out of it."""
        answer = _decoded(payload)
        if answer is not None:
            self._take(answer)

    def _take(self, answer: _Answer) -> None:
        known = self._report
        if not known.model and answer.model:
            tier = answer.service_tier or known.service_tier
            self._report = known._replace(model=answer.model, service_tier=tier, upstream_id=answer.id or "")
        elif answer.service_tier and answer.service_tier != known.service_tier and known.usage is None:
            self._report = known._replace(service_tier=answer.service_tier)
        for choice in answer.choices or ():
            self._read_choice(choice)

    def _read_choice(self, choice: _Choice) -> None:
        delta = choice.delta
        if delta is not None and len(delta) == 1 and choice.finish_reason is None and choice.text is None:
            text = delta.get("content")
            if type(text) is str:  # nearly every one
                if text:
                    self._texts[choice.index].append(text)
                return
        if choice.finish_reason:
            self.finish_reasons.add(choice.finish_reason)
        delta = choice.delta or choice.message or {}  # some servers stream whole messages
        if "audio" in delta:
            self.sound_bytes += sound_bytes(delta)
            before, now = self._sounds.get(choice.index, ("", 0)), sound_of(delta)
            self._sounds[choice.index] = (now[0] or before[0], now[1] or before[1])
        self._texts[choice.index] += choice_texts(choice, delta)


def _decoded_together(events: bytes) -> list[_Answer] | None:
    """Whole events of one line of data each, read in one go, four times as fast; None where one is not so."""
    data = events.removesuffix(DONE)
    if not data.startswith(DATA) or not data.endswith(END):
        return None
    try:
        answers = _answers.decode(b"[%b]" % data[len(DATA) : -len(END)].replace(BETWEEN, b","))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return answers if len(answers) == data.count(BETWEEN) + 1 else None


def with_cost(event: bytes, cost_credits: int | float) -> bytes:
    """Usage chunk with `cost_credits` as the last member of its usage object."""
    found = list(re.finditer(rb'"usage"%b\{' % COLON, event))
    if not found:
        return event
    start = found[-1]  # a tool's schema, echoed before it, may have a property of that name
    depth = 0
    for position in range(start.end() - 1, len(event)):
        depth += (event[position] == ord("{")) - (event[position] == ord("}"))
        if depth == 0:
            return event[:position] + b',"cost_credits":' + msgspec.json.encode(cost_credits) + event[position:]
    return event


def _decoded(data: bytes) -> _Answer | None:
    """Answer, or a chunk of one; members of a type that we do not know are left out."""
    try:
        return _answer.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = decode_object(data)
    if raw is None:
        return None
    choices = raw.get("choices")
    return _Answer(
        _text_of(raw, "id"),
        _text_of(raw, "model"),
        _text_of(raw, "service_tier"),
        raw.get("usage"),
        [_choice(one) for one in choices if isinstance(one, dict)] if isinstance(choices, list) else None,
        raw.get("error"),
        msgspec.Raw(b"..." if raw.get("data") else b""),
    )


def _choice(raw: dict[str, Any]) -> _Choice:
    message, delta, index = raw.get("message"), raw.get("delta"), raw.get("index")
    return _Choice(
        _text_of(raw, "finish_reason"),
        message if isinstance(message, dict) else None,
        delta if isinstance(delta, dict) else None,
        _text_of(raw, "text"),
        index if isinstance(index, int) else 0,
    )


def _text_of(raw: dict[str, Any], name: str) -> str | None:
    value = raw.get(name)
    return value if isinstance(value, str) else None


def _report(answer: _Answer) -> Report:
    usage = read_usage(answer.usage)
    written = usage is not None and (usage.cache_write_30m_tokens or usage.cache_write_12h_tokens)
    split = bool(written) and splits_writes(answer.usage["prompt_tokens_details"])
    return Report(usage, answer.model or "", answer.service_tier, answer.id or "", writes_split=split)


NOTHING = (b"", b"null")
PLAIN = frozenset(("content", "role"))


def choice_texts(choice: _Choice, said: dict[str, Any]) -> list[str]:
    """Pieces of text in a choice; `said` is its message or delta."""
    content = said.get("content")
    if type(content) is str and not choice.text and (len(said) == 1 or not any(map(said.get, said.keys() - PLAIN))):
        return [content] if content else []  # nearly every chunk, and every plain message
    return [*([choice.text] if choice.text else []), *written_texts(said)]
