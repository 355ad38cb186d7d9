"""Reports of whole answers and closing events about themselves, one function a kind of answer. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from billing.money.usage import MAX_CALLS, Usage
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.report import FAILED, NO_ANSWER, NO_REPORT, Report, WholeAnswer, unreadable
from proxy.gateway.answers.texts import written_texts
from proxy.gateway.answers.usage import count_of, details, milliseconds_of, part_of, read_tokens, splits_writes

SEARCH_ACTION = "search"
CALL_ITEMS = {"web_search_call": "web_search", "file_search_call": "file_search"}
IMAGE_ITEM = "image_generation_call"
ANSWER_MEMBERS = ("output", "data", "text", "results", "answers", "input_tokens", "usage")
"""Members of which every answer has one, though it may be empty; an error alone has none."""
MADE_MEMBERS = ("output", "data", "text", "results", "answers")
"""Of these, where what it made stands: an error beside none of it is an error, whatever else it says."""
INSIDE = ("input_tokens_details", "input_token_details")
ENDED_WELL = ("completed", "")
"""Status of a response that came to its end; what is no response has none."""


def response_report(event: dict[str, Any]) -> Report:
    """Report of an event that carries a whole `response`, or of a response itself."""
    response = event.get("response") if isinstance(event.get("response"), dict) else event
    if not isinstance(response, dict):
        return NO_REPORT
    usage = read_tokens(response.get("usage"))
    output = response.get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    made = items_report(items)
    used = details(response, "tool_usage")
    calls = dict(made.calls)
    reported = count_of(details(used, "web_search"), "num_requests")
    if reported is not None and reported <= MAX_CALLS:
        calls["web_search"] = reported
    image = read_tokens(used.get("image_gen"))
    more: tuple[tuple[str, Usage], ...] = ()
    if image is not None and (image.output_tokens or (image.input_tokens and not made.pictures)):
        more = (("", _image_usage(image, used.get("image_gen"))),)  # one that says nothing of a picture's is none
    status = text_of(response, "status")
    if usage is not None and not (usage.input_tokens or usage.output_tokens) and (items or status in ENDED_WELL):
        usage = None  # zeros beside what was plainly made are no report, nor is an answer without input
    return made._replace(
        usage=usage,
        model=text_of(response, "model"),
        service_tier=response.get("service_tier") if isinstance(response.get("service_tier"), str) else None,
        upstream_id=text_of(response, "id"),
        more=more,
        status=status,
        calls=tuple(sorted((name, number) for name, number in calls.items() if number)),
        seen_calls=made.calls,
        pictures=0 if more else made.pictures,
        seen_pictures=made.pictures,
        writes_split=usage is not None and splits_writes(details(response["usage"], *INSIDE)),
    )


def items_report(items: Iterable[Mapping[str, Any]]) -> Report:
    """Report of finished output items alone: billable calls, pictures, containers, and the ids of all.

    Opening a page is free (docs/openai.md#hosted-tools).
    """
    counted: Counter[str] = Counter()
    containers, ids, pictures = set(), [], 0
    for item in items:
        kind, action = text_of(item, "type"), item.get("action")
        name = CALL_ITEMS.get(kind)
        opened = name == "web_search" and isinstance(action, dict) and action.get("type") not in (None, SEARCH_ACTION)
        if name and not opened:
            counted[name] += 1
        pictures += kind == IMAGE_ITEM and text_of(item, "status") != "failed"
        containers.add(text_of(item, "container_id"))
        ids.append(text_of(item, "id"))
    return NO_REPORT._replace(
        calls=tuple(sorted(counted.items())),
        pictures=pictures,
        drawn=pictures,
        containers=tuple(sorted(containers - {""})),
        items=tuple(one for one in ids if one),
    )


def with_passed(event: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    """Add to a closing event the finished items that passed before it and that it does not repeat."""
    response = event.get("response")
    if not items or not isinstance(response, dict):
        return event
    output = response.get("output")
    told = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    known = {text_of(item, "id") for item in told}
    missing = [item for item in items if text_of(item, "id") not in known]
    return {**event, "response": {**response, "output": [*told, *missing]}} if missing else event


def billable_item(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the members of a finished output item that its bill depends on, without its content; None when none do."""
    if text_of(item, "type") not in CALL_ITEMS and text_of(item, "type") != IMAGE_ITEM and not item.get("container_id"):
        return None
    return {name: item[name] for name in ("id", "type", "status", "action", "container_id") if name in item}


def image_report(event: dict[str, Any]) -> Report:
    """Report of an images answer, or of one image of a stream."""
    usage = read_tokens(event.get("usage"))
    author = event.get("svg_usage")
    more: tuple[tuple[str, Usage], ...] = ()
    if isinstance(author, dict) and (written := read_tokens({**author, "output_tokens_details": author})) is not None:
        more = ((text_of(author, "model"), written),)
    data = event.get("data")
    pictures = len(data) if isinstance(data, list) else int("b64_json" in event)
    if usage is None or not (usage.input_tokens or usage.output_tokens):
        return NO_REPORT._replace(more=more, pictures=pictures)
    untold = 0 if usage.output_tokens else pictures  # no picture is drawn with no tokens
    return Report(
        _image_usage(usage, event.get("usage")), "", None, "", more=more, pictures=untold, seen_pictures=pictures
    )


def _image_usage(usage: Usage, said: Any) -> Usage:
    """Count an image model's output as image, but for what it calls text. `said`: the usage as the answer has it."""
    inside = details(said, "output_tokens_details") if isinstance(said, dict) else {}
    if count_of(inside, "image_tokens") is not None:
        return usage  # 0 is said as well
    drawn = max(0, usage.output_tokens - part_of(inside, "text_tokens"))
    return msgspec.structs.replace(usage, image_output_tokens=drawn)


def audio_report(event: dict[str, Any]) -> Report:
    """Report of a transcription, a translation or speech: tokens, or a duration."""
    usage = event.get("usage")
    played = milliseconds_of(event.get("duration"))
    # billed by the second, rounded up, as transcriptions say themselves
    length = 0 if played is None else -(-played // 1_000) * 1_000
    tokens = read_tokens(usage)
    if tokens is not None and (tokens.input_tokens or tokens.output_tokens):
        return NO_REPORT._replace(usage=tokens, milliseconds=length)
    milliseconds = milliseconds_of(usage.get("seconds")) if isinstance(usage, dict) else None
    if not milliseconds and played is not None:
        milliseconds = length
    if not milliseconds and (event.get("text") or event.get("transcript")):
        milliseconds = None  # nobody says anything in no time
    return NO_REPORT if milliseconds is None else Report(Usage(milliseconds=milliseconds), "", None, "")


def decision_report(answer: dict[str, Any]) -> Report:
    """Report of a decision: its output is free."""
    usage = read_tokens(answer.get("usage"))
    if usage is not None:  # none is without input: zeros are no report
        usage = msgspec.structs.replace(usage, output_tokens=0, reasoning_tokens=0) if usage.input_tokens else None
    return Report(usage, text_of(answer, "model"), None, text_of(answer, "id"))


def free_report(answer: dict[str, Any]) -> Report:
    """Report of an answer that costs nothing."""
    return Report(Usage(), text_of(answer, "model"), None, text_of(answer, "id"))


def reads(report: Callable[[dict[str, Any]], Report]) -> Callable[[bytes], WholeAnswer]:
    """Reader of whole answers of one kind."""

    def read(body: bytes) -> WholeAnswer:
        answer = decode_object(body)
        if answer is None:
            return unreadable(body)
        failed = answer.get("error") and not answer.get("status") and not any(map(answer.get, MADE_MEMBERS))
        if failed or not any(answer.get(name) not in (None, {}) for name in ANSWER_MEMBERS):
            return WholeAnswer(NO_REPORT, [], produced=False, refusal=FAILED if answer.get("error") else NO_ANSWER)
        return WholeAnswer(report(answer), answer_texts(answer), produced=is_produced(answer))

    return read


def is_produced(response: Mapping[str, Any]) -> bool:
    """Tell whether a response holds output, or ended as an answer does."""
    return response.get("status") != "failed" or bool(response.get("output"))


def answer_texts(answer: dict[str, Any]) -> list[str]:
    """Texts of a whole answer, for when its usage is missing."""
    found = [answer["text"]] if isinstance(answer.get("text"), str) else []
    return found + written_texts(answer["output"] if isinstance(answer.get("output"), list) else [])


def joined(one: Report, other: Report) -> Report:
    """Two reports of one answer: their usage added (one image each)."""
    pictures = one.pictures + other.pictures
    seen = one.seen_pictures + other.seen_pictures
    if one.usage is None:
        model, upstream_id = other.model or one.model, other.upstream_id or one.upstream_id
        return other._replace(model=model, upstream_id=upstream_id, pictures=pictures, seen_pictures=seen)
    if other.usage is None:
        return one._replace(pictures=pictures, seen_pictures=seen)
    usage, more = added(one.usage, other.usage), one.more + other.more
    return one._replace(usage=usage, more=more, pictures=pictures, seen_pictures=seen)


def added(one: Usage, other: Usage) -> Usage:
    """Sum of two usages."""
    fields = {name: getattr(one, name) + getattr(other, name) for name in one.__struct_fields__ if name != "calls"}
    calls = Counter(dict(one.calls)) + Counter(dict(other.calls))
    return Usage(**fields, calls=tuple(sorted(calls.items())))


def text_of(raw: Mapping[str, Any], name: str) -> str:
    """Name or id that an answer gives; "" when it is none."""
    value = raw.get(name)
    return value[:120] if isinstance(value, str) else ""
