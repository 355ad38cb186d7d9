"""Usage out of the newer endpoints' answers: 0 is said, not missing; zeros beside an answer are no report."""

from typing import Any

import msgspec
import pytest

from billing.money.pricing import PriceBook, load_catalogue
from billing.money.usage import Usage
from proxy.gateway.answers.events import IMAGE_EVENTS, RESPONSE_EVENTS, EventMeter
from proxy.gateway.answers.meter import StreamMeter, read_answer
from proxy.gateway.answers.reports import audio_report, image_report, response_report

PRICES = PriceBook(load_catalogue(), "1", "exact")


def charge(model: str, usage: Usage) -> int:
    found = PRICES.find(model)
    assert found is not None
    return PRICES.price(found, "default", usage).amount


def image(**details: int) -> dict[str, Any]:
    inside = {"text_tokens": 34, "image_tokens": 323}
    return {
        "usage": {"input_tokens": 357, "output_tokens": 335, "total_tokens": 692, "input_tokens_details": inside}
        | ({"output_tokens_details": details} if details else {})
    }


def test_image_output_that_is_all_text_is_priced_as_text() -> None:
    report = image_report(image(text_tokens=335, image_tokens=0))
    assert report.usage is not None
    # 34 text tokens at 5, 323 of image at 8, 335 of text out at 10 millionths of a dollar
    assert charge("gpt-image-1.5", report.usage) == 34 * 5 + 323 * 8 + 335 * 10


def test_image_output_without_details_is_image() -> None:
    report = image_report(image())
    assert report.usage is not None
    assert report.usage.image_output_tokens == 335


@pytest.mark.parametrize(
    ("duration", "milliseconds"), [(8.47, 9_000), ("8.470000267028809", 9_000), (9, 9_000), (0.2, 1_000)]
)
def test_a_translation_is_billed_by_the_whole_second_as_a_transcription_is(duration: Any, milliseconds: int) -> None:
    assert audio_report({"text": "x", "duration": duration}).usage == Usage(milliseconds=milliseconds)
    assert audio_report({"text": "x", "usage": {"type": "duration", "seconds": milliseconds // 1_000}}).usage == Usage(
        milliseconds=milliseconds
    )


ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_usage_of_zeros_beside_an_answer_is_no_usage() -> None:
    answer = {
        "id": "c",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"content": "hello"}}],
        "usage": ZEROS,
    }
    found = read_answer(msgspec.json.encode(answer))
    assert (found.report.usage, found.produced, found.texts) == (None, True, ["hello"])
    said = {"type": "message", "content": [{"type": "output_text", "text": "hello"}]}
    none = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert response_report({"id": "resp_1", "output": [said], "usage": none}).usage is None
    # a response that was cancelled before it said anything used nothing
    assert response_report({"id": "resp_1", "output": [], "usage": none, "status": "cancelled"}).usage == Usage()


def test_zeros_after_a_real_report_take_nothing_back() -> None:
    meter = StreamMeter(hide_usage=False)
    for usage in ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}, ZEROS):
        meter.feed(b"data: " + msgspec.json.encode({"id": "c", "model": "m", "choices": [], "usage": usage}) + b"\n\n")
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (100, 50)


def stream(family: Any, *events: dict[str, Any]) -> EventMeter:
    meter = EventMeter(family, 1)
    for event in events:
        meter.feed(b"data: " + msgspec.json.encode(event) + b"\n\n")
    return meter


PICTURE = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGVsbG8="}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
PAGE = {"type": "web_search_call", "id": "ws_2", "status": "completed", "action": {"type": "open_page"}}
CODE = {"type": "code_interpreter_call", "id": "ci_1", "status": "completed", "container_id": "cntr_1", "code": "1"}


def done(index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def test_finished_calls_of_hosted_tools_are_known_before_the_end_of_a_stream() -> None:
    meter = stream(RESPONSE_EVENTS, *(done(n, item) for n, item in enumerate((PICTURE, SEARCH, PAGE, CODE))))
    report = meter.report()
    assert (report.calls, report.pictures, report.containers) == ((("web_search", 1),), 1, ("cntr_1",))
    assert meter.streamed_anything


def test_an_item_that_was_not_told_in_pieces_is_counted_when_it_is_finished_and_once() -> None:
    call = {"type": "custom_tool_call", "id": "c_1", "name": "run", "input": "SELECT 1"}
    told = {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": "SELECT 1"}
    assert stream(RESPONSE_EVENTS, told, done(0, call)).streamed()[0] == ["SELECT 1"]
    assert "SELECT 1" in stream(RESPONSE_EVENTS, done(0, call)).streamed()[0][0]


def test_a_text_that_is_told_whole_or_as_an_object_is_counted_once() -> None:
    whole = {"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "hello"}
    other = {**whole, "content_index": 1, "text": "there"}
    part = {"type": "response.content_part.done", "output_index": 0, "part": {"type": "output_text", "text": "hello"}}
    item = {"type": "message", "id": "m_1", "content": [{"type": "output_text", "text": "hello"}]}
    assert stream(RESPONSE_EVENTS, whole, part, other, done(0, item)).streamed()[0] == ["hellothere"]
    piece = {"type": "response.output_text.delta", "output_index": 0, "delta": "hello"}
    assert stream(RESPONSE_EVENTS, piece, whole, part, done(0, item)).streamed()[0] == ["hello"]
    odd = {**piece, "delta": {"text": "hello"}}
    assert stream(RESPONSE_EVENTS, odd, whole).streamed()[0] == ["hello"]


def test_a_failed_response_with_output_produced_something() -> None:
    failed = {"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "output": [SEARCH]}}
    assert stream(RESPONSE_EVENTS, failed).streamed_anything
    empty = {"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "output": []}}
    meter = stream(RESPONSE_EVENTS, empty)
    assert (meter.failed, meter.streamed_anything) == (True, False)


def test_a_picture_without_usage_is_a_picture_all_the_same() -> None:
    assert image_report({"data": [{"b64_json": "aa"}, {"b64_json": "bb"}]}).pictures == 2
    made = {"type": "image_generation.completed", "b64_json": "aa"}
    assert stream(IMAGE_EVENTS, made).report().pictures == 1
    assert response_report({"id": "r", "output": [PICTURE], "usage": None}).pictures == 1
    used = {"image_gen": {"input_tokens": 14, "output_tokens": 4160, "total_tokens": 4174}}
    assert response_report({"id": "r", "output": [PICTURE], "usage": None, "tool_usage": used}).pictures == 0


def test_calls_are_known_where_the_usage_is_missing() -> None:
    report = response_report({"id": "r", "output": [SEARCH, PAGE], "usage": None})
    assert (report.usage, report.calls) == (None, (("web_search", 1),))


@pytest.mark.parametrize(
    ("written", "split"),
    [
        ({"cache_write_tokens": 5}, False),
        ({"cache_write_tokens": 5, "cache_write_tokens_details": {}}, False),
        ({"cache_write_tokens": 5, "cache_write_tokens_details": {"ttl_30m_tokens": 5, "ttl_12h_tokens": 0}}, True),
    ],
)
def test_an_answer_says_how_long_its_cache_writes_live_or_does_not(written: dict[str, Any], split: bool) -> None:
    usage = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10, "input_tokens_details": written}
    assert response_report({"id": "r", "output": [], "usage": usage}).writes_split is split
    chat = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10, "prompt_tokens_details": written}
    answer = {"choices": [{"index": 0, "message": {"content": "x"}}], "usage": chat}
    assert read_answer(msgspec.json.encode(answer)).report.writes_split is split


DONE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


@pytest.mark.parametrize("name", ["response.completed", "response.incomplete", "response.failed"])
@pytest.mark.parametrize("usage", [None, DONE], ids=["no usage", "usage"])
def test_an_end_that_repeats_no_items_takes_nothing_back(name: str, usage: Any) -> None:
    end = {"type": name, "response": {"id": "r", "status": name.rpartition(".")[2], "output": [], "usage": usage}}
    meter = stream(RESPONSE_EVENTS, done(0, PICTURE), done(1, SEARCH), end)
    report = meter.report()
    assert (report.calls, report.pictures) == ((("web_search", 1),), 1)
    assert meter.streamed_anything
    repeated = {**end, "response": {**end["response"], "output": [PICTURE, SEARCH]}}  # type: ignore[dict-item]
    assert stream(RESPONSE_EVENTS, done(0, PICTURE), done(1, SEARCH), repeated).report().pictures == 1


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.failed", "response": "x"},
        {"type": "response.completed", "response": [1]},
        {"type": "response.completed", "response": {"output": [None, 5, "x"], "usage": "x", "tool_usage": 5}},
        {"type": {"type": "error"}},
        {"type": "response.output_text.delta", "output_index": [], "delta": "x"},
        {"type": "response.output_item.done", "output_index": {}, "item": {"type": ["x"], "action": None}},
        {"type": "response.output_item.done", "item": 5},
        {"type": "response.completed", "response": {"id": 5, "usage": {"input_tokens": 10**30, "output_tokens": True}}},
        {"type": "error", "error": None},
    ],
    ids=str,
)
def test_members_of_odd_types_are_no_error_of_ours(event: dict[str, Any]) -> None:
    meter = stream(RESPONSE_EVENTS, event, {"type": "response.output_text.delta", "delta": "hello"})
    assert any("hello" in text for text in meter.streamed()[0])
    assert meter.report().calls == ()


def test_a_number_of_searches_that_nobody_made_is_not_believed() -> None:
    used = {"web_search": {"num_requests": 10**16}}
    assert response_report({"output": [SEARCH], "tool_usage": used}).calls == (("web_search", 1),)


@pytest.mark.parametrize("seconds", ["1e999999", "-1", "x", "NaN", None, [], 10**40])
def test_a_length_that_is_none_is_no_length(seconds: Any) -> None:
    assert audio_report({"text": "x", "usage": {"type": "duration", "seconds": seconds}}).usage is None
    assert audio_report({"text": "x", "duration": seconds}).usage is None


def test_a_length_beside_a_usage_in_tokens_is_kept() -> None:
    tokens = {"type": "tokens", "input_tokens": 600, "output_tokens": 40, "total_tokens": 640}
    report = audio_report({"text": "hello", "duration": 60.0, "usage": tokens})
    assert (report.milliseconds, report.usage and report.usage.input_tokens) == (60_000, 600)


@pytest.mark.parametrize("name", ["response.audio.delta", "response.output_audio.delta"])
def test_sound_in_a_response_is_counted_by_its_bytes_and_is_no_text(name: str) -> None:
    """A second of pcm16 is 48,000 bytes and 20 tokens; its base64 read as text would be thousands."""
    second = {"type": name, "output_index": 0, "delta": "A" * 64_000}
    said = {"type": "response.audio.transcript.delta", "output_index": 0, "delta": "hello"}
    meter = EventMeter(RESPONSE_EVENTS, 1)
    for event in (second, said, second):
        meter.feed(b"data: " + msgspec.json.encode(event) + b"\n\n")
    texts, media = meter.streamed()
    assert ("".join(texts), media) == ("hello", 40)
    assert meter.streamed_anything


@pytest.mark.parametrize("order", [("type", "b64_json"), ("b64_json", "type")], ids=["type first", "type last"])
def test_a_partial_picture_counts_whatever_the_order_of_its_members(order: tuple[str, str]) -> None:
    members = {"type": "image_generation.partial_image", "b64_json": "A" * 10_000}
    meter = EventMeter(IMAGE_EVENTS, 1)
    meter.feed(b"data: " + msgspec.json.encode({name: members[name] for name in order}) + b"\n\n")
    assert meter.streamed() == ([""], 100)


SAID = "whale whale"
MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": SAID}]}
PART = {"output_index": 0, "content_index": 0}
PART_DONE = {"type": "response.content_part.done", **PART, "part": {"type": "output_text", "text": SAID}}
TEXT_DONE = {"type": "response.output_text.done", **PART, "text": SAID}
ITEM_DONE = {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE}
TEXT_DELTA = {"type": "response.output_text.delta", **PART, "delta": SAID}


def ended(kind: str = "completed") -> dict[str, Any]:
    response = {"id": "r", "status": kind, "output": [MESSAGE], "usage": None}
    return {"type": f"response.{kind}", "response": response}


@pytest.mark.parametrize(
    "events",
    [
        [ended()],
        [ended("incomplete")],
        [ended("failed")],
        [TEXT_DELTA, ended()],
        [ITEM_DONE, ended()],
        [TEXT_DONE, ended()],
        [PART_DONE],
        [PART_DONE, ended()],
        [TEXT_DONE, PART_DONE, ITEM_DONE, ended()],
        [TEXT_DELTA, TEXT_DONE, PART_DONE, ITEM_DONE, ended()],
    ],
    ids=lambda events: " ".join(event["type"].removeprefix("response.") for event in events),
)
def test_a_text_is_counted_once_wherever_it_is_told(events: list[dict[str, Any]]) -> None:
    meter = EventMeter(RESPONSE_EVENTS, 1)
    for event in events:
        meter.feed(b"data: " + msgspec.json.encode(event) + b"\n\n")
    texts, _ = meter.streamed()
    assert "".join(texts) == SAID
    assert meter.streamed_anything


def test_parts_that_are_told_whole_count_each() -> None:
    meter = EventMeter(RESPONSE_EVENTS, 1)
    for event in (PART_DONE, {**PART_DONE, "content_index": 1}, PART_DONE):
        meter.feed(b"data: " + msgspec.json.encode(event) + b"\n\n")
    assert "".join(meter.streamed()[0]) == SAID * 2


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "one by one"])
def test_an_end_that_is_told_twice_counts_once(together: bool) -> None:
    usage = {"input_tokens": 100, "output_tokens": 2_000, "total_tokens": 2_100}
    response = {"id": "r", "status": "completed", "output": [], "usage": usage}
    end = b"data: " + msgspec.json.encode({"type": "response.completed", "response": response}) + b"\n\n"
    meter = EventMeter(RESPONSE_EVENTS, 1)
    passed = meter.feed(end + end) if together else meter.feed(end) + meter.feed(end)
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (100, 2_000)
    assert passed + b"".join(meter.tail) == end + end


def test_each_picture_of_several_counts_and_no_more_than_were_asked_for() -> None:
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    event = {"type": "image_generation.completed", "b64_json": "AAAA", "usage": usage}
    meter = EventMeter(IMAGE_EVENTS, 2)
    meter.feed((b"data: " + msgspec.json.encode(event) + b"\n\n") * 3)
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (20, 544)
