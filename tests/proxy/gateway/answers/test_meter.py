"""The meter passes the same bytes and finds the same usage however a stream is cut into pieces."""

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.money.pricing import PriceBook, load_catalogue
from billing.money.usage import Usage
from proxy.gateway.answers.meter import StreamMeter, read_answer, with_cost
from proxy.gateway.answers.report import FAILED, NO_ANSWER
from proxy.gateway.answers.usage import read_usage
from proxy.gateway.bodies.chat import parse_chat
from proxy.gateway.bodies.prompts import parse_embedding
from proxy.gateway.settlement import is_plausible
from tests.support.servers import SAMPLES

STREAMS = sorted([*SAMPLES.glob("chat_stream_*.sse"), *SAMPLES.glob("completions_*.sse")])
USAGE_CHUNK = re.compile(rb'data: \{[^\n\r]*"choices":\[\],"usage":\{[^\n\r]*(\r\n\r\n|\n\n)')
PRICES = PriceBook(load_catalogue(), "1", "exact")


def run(data: bytes, cuts: list[int], *, hide: bool) -> tuple[bytes, StreamMeter]:
    """(all bytes that reach the client, the meter)."""
    meter = StreamMeter(hide_usage=hide)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    passed = b"".join(meter.feed(data[start:end]) for start, end in zip(edges, edges[1:], strict=False))
    meter.end()
    return passed + b"".join(meter.tail) + meter.rest(), meter


def by_hand(data: bytes) -> tuple[dict[str, Any] | None, dict[int, str], bool]:
    """(last usage object, index → text, whether [DONE] came), read line by line with json."""
    usage, texts, done = None, {}, False
    for line in data.decode().splitlines():
        payload = line.removeprefix("data: ")
        if payload == "[DONE]":
            done = True
        if not line.startswith("data: {") or not line.endswith("}"):
            continue
        chunk = json.loads(payload)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {"content": choice.get("text")}
            calls = [call["function"] for call in delta.get("tool_calls") or ()]
            said = [
                delta.get("content"),
                delta.get("refusal"),
                *(call.get(part) for call in calls for part in ("name", "arguments")),
            ]
            texts[choice["index"]] = texts.get(choice["index"], "") + "".join(part or "" for part in said)
    return usage, texts, done


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name)
@pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 100_000), max_size=40), hide=st.booleans())
def test_any_split_of_a_stream_gives_the_same_bytes_and_usage(
    path: Any, crlf: bool, cuts: list[int], hide: bool
) -> None:
    data = path.read_bytes()
    usage, texts, done = by_hand(data)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    passed, meter = run(data, cuts, hide=hide)
    assert passed == (USAGE_CHUNK.sub(b"", data) if hide else data)
    assert meter.done == done
    found = meter.report().usage
    assert (found and (found.input_tokens, found.output_tokens)) == (
        usage and (usage["prompt_tokens"], usage["completion_tokens"])
    )
    assert meter.streamed() == ([texts[index] for index in sorted(texts)], 0)
    assert meter.report().model.startswith("gpt-")


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.sampled_from(
            [
                b": keep-alive",
                b"event: ping\ndata: {}",
                b"data: not json",
                b"data: {",
                b'data: {"usage": 5}',
                b'data: {"choices":[{}],"usage":{"prompt_tokens":"x"}}',
                b'data: {"choices":[{"delta":{"content":"\\"usage\\":{ [DONE]"}}]}',
                b"data: \xff\xfe",
                b"data: [1,2]",
                b'data: {"choices":[{"index":"a"}],"usage":{"prompt_tokens":1}}',
                b"data: " + b"x" * 3000,
            ]
        ),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 50_000), max_size=12),
    hide=st.booleans(),
)
def test_nothing_that_is_no_usage_chunk_is_ever_hidden(events: list[bytes], cuts: list[int], hide: bool) -> None:
    data = b"".join(event + b"\n\n" for event in events)
    assert run(data, cuts, hide=hide)[0] == data


def test_the_end_is_kept_back_until_the_charge_is_settled() -> None:
    data = (SAMPLES / "chat_stream_include_usage.sse").read_bytes()
    meter = StreamMeter(hide_usage=False)
    passed = meter.feed(data)
    assert passed + b"".join(meter.tail) == data
    assert [part for part in meter.tail if part][-1] == b"data: [DONE]\n\n"
    assert meter.usage_event is not None
    assert b'"prompt_tokens":19' in meter.usage_event


def test_an_event_without_an_end_is_not_passed_before_the_stream_ends() -> None:
    meter = StreamMeter(hide_usage=True)
    assert meter.feed(b'data: {"choices":[]') == b""
    assert meter.rest() == b'data: {"choices":[]'


def test_an_event_larger_than_any_usage_chunk_is_passed_in_pieces() -> None:
    meter = StreamMeter(hide_usage=True)
    piece = b"x" * 1_000_000
    passed = sum(len(meter.feed(piece)) for _ in range(10))
    assert passed >= 8_000_000


def test_a_failure_event_is_noted_and_passed() -> None:
    data = (SAMPLES / "chat_stream_midstream_error.sse").read_bytes()
    passed, meter = run(data, [], hide=True)
    assert (passed, meter.failed, meter.done) == (data, True, False)


def usage_of(prompt: Any = 10, completion: Any = 5, total: Any = 15, **details: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **details}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        5,
        "x",
        [],
        {},
        usage_of(prompt=-1),
        usage_of(completion=-1),
        usage_of(total=-1),
        usage_of(prompt=1.5),
        usage_of(prompt="10"),
        usage_of(prompt=True),
        usage_of(completion=None, total=15),
        usage_of(total=9),
        usage_of(prompt=2**41, total=2**42),
        {"prompt_tokens": 10},
        {"completion_tokens": 10, "total_tokens": 10},
        usage_of(prompt_tokens_details=[1]),
        usage_of(completion_tokens_details="x"),
    ],
    ids=repr,
)
def test_usage_that_cannot_be_is_no_usage(raw: Any) -> None:
    assert read_usage(raw) is None


def test_usage_is_read_with_its_parts() -> None:
    raw = usage_of(
        100,
        50,
        150,
        prompt_tokens_details={"cached_tokens": 40, "cache_write_tokens": 30, "audio_tokens": 7, "image_tokens": 3},
        completion_tokens_details={"reasoning_tokens": 20, "audio_tokens": 10},
    )
    assert read_usage(raw) == Usage(
        input_tokens=100,
        output_tokens=50,
        cached_tokens=40,
        cache_write_30m_tokens=30,
        audio_input_tokens=7,
        image_input_tokens=3,
        audio_output_tokens=10,
        reasoning_tokens=20,
    )
    assert read_usage({"prompt_tokens": 8, "total_tokens": 8}) == Usage(input_tokens=8)


@given(
    st.dictionaries(
        st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"]),
        st.integers(-(10**6), 10**6),
    )
)
def test_parts_never_exceed_their_whole(details: dict[str, int]) -> None:
    found = read_usage(usage_of(prompt_tokens_details=details))
    assert found is not None
    parts = (found.cached_tokens, found.cache_write_30m_tokens, found.audio_input_tokens, found.image_input_tokens)
    assert min(parts) >= 0
    assert max(parts) <= 10
    assert found.audio_input_tokens + found.image_input_tokens <= 10


def test_what_a_model_cannot_have_used_is_not_plausible() -> None:
    chat = parse_chat(b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"n":2}')
    model = PRICES.find("gpt-4o")
    assert model is not None
    # gpt-4o: a window of 128,000 and 16,384 tokens of output, twice for n = 2, and a factor of two for what is not shown
    assert is_plausible(Usage(input_tokens=128_000, output_tokens=65_536), model, chat)
    assert not is_plausible(Usage(input_tokens=128_001), model, chat)
    assert not is_plausible(Usage(input_tokens=1, output_tokens=65_537), model, chat)
    many = parse_embedding(b'{"model":"text-embedding-3-small","input":["a","b","c"]}')
    embedding = PRICES.find("text-embedding-3-small")
    assert embedding is not None
    assert is_plausible(Usage(input_tokens=3 * 8192), embedding, many)
    assert not is_plausible(Usage(input_tokens=3 * 8192 + 1), embedding, many)


def test_a_json_answer_is_read_with_its_texts() -> None:
    found = read_answer((SAMPLES / "chat_nonstream.json").read_bytes())
    report = found.report
    assert (report.model, report.service_tier, found.produced, found.texts) == (
        "gpt-5.4-mini-2026-03-17",
        "default",
        True,
        ["Blue whale."],
    )
    assert report.usage is not None
    assert (report.usage.input_tokens, report.usage.cached_tokens, report.usage.cache_write_30m_tokens) == (
        1419,
        1024,
        256,
    )
    found = read_answer((SAMPLES / "embeddings.json").read_bytes())
    assert (found.produced, found.refusal, found.report.usage) == (True, "", Usage(input_tokens=8))


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[]", b"5", b"[" * 100_000, b'{"choices": 5}'])
def test_an_unreadable_answer_has_no_usage_and_does_no_harm(body: bytes) -> None:
    assert read_answer(body).report.usage is None


def test_usage_is_found_even_where_the_choices_are_odd() -> None:
    found = read_answer(
        b'{"choices": "none", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}'
    )
    assert found.report.usage == Usage(input_tokens=3, output_tokens=4)


@pytest.mark.parametrize(
    ("choices", "produced"),
    [
        ([{"message": {"content": ""}, "finish_reason": "error"}], False),
        ([{"message": {"content": "x"}, "finish_reason": "error"}], True),
        ([{"message": {"content": ""}, "finish_reason": "stop"}], True),
        ([{"message": {"tool_calls": [{}]}}], True),
        ([{"message": {"content": None}}], False),
        ([], False),
    ],
)
def test_whether_anything_was_produced(choices: list[Any], produced: bool) -> None:
    assert read_answer(json.dumps({"choices": choices}).encode()).produced is produced


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b'{"error": {"message": "overloaded"}}', FAILED),
        (b"", NO_ANSWER),
        (b"{}", NO_ANSWER),
        (b"null", NO_ANSWER),
        (b"<html>busy</html>", NO_ANSWER),
        (b'{"choices": [], "error": {"message": "overloaded"}}', ""),
        (b'{"code": 500, "msg": "overloaded", "data": null}', NO_ANSWER),
        (b'{"error": {"message": "overloaded"}, "usage": {}}', FAILED),
        (b'{"data": []}', ""),
    ],
)
def test_a_200_that_is_no_answer_says_so(body: bytes, refusal: str) -> None:
    assert read_answer(body).refusal == refusal


WHOLE = b'{"choices":[{"message":{"content":"hi %s"}}],"usage":{"prompt_tokens":100,"completion_tokens":2000,"total_tokens":2100}}'


@pytest.mark.parametrize(
    "body",
    [
        WHOLE % rb"\ud83d ",
        b"\xef\xbb\xbf" + WHOLE % b"",
        WHOLE % b"\xff\xfe",
        WHOLE % b"a\nb",
        WHOLE[:-1] % b"" + b',"score":-Infinity}',
        WHOLE[:-1] % b"" + b',"cut',
    ],
    ids=["lone surrogate", "byte order mark", "bad UTF-8", "raw line end", "-Infinity", "cut off"],
)
def test_what_every_client_can_read_is_charged_by_its_usage(body: bytes) -> None:
    assert read_answer(body).report.usage == Usage(input_tokens=100, output_tokens=2_000)


def test_what_nobody_can_read_counts_as_text() -> None:
    found = read_answer(b'{"choices":[{"message":{"content":"hello wor')
    assert (found.report.usage, found.refusal) == (None, "")
    assert "hello wor" in "".join(found.texts)


def test_a_lone_surrogate_in_a_stream_is_counted_and_its_usage_read() -> None:
    chunk = rb'{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"x \ud83d"}}]%s}'
    usage = b',"usage":{"prompt_tokens":9,"completion_tokens":8,"total_tokens":17}'
    meter = StreamMeter(hide_usage=False)
    meter.feed(b"data: " + chunk % b"" + b"\n\n")
    assert meter.streamed_anything
    meter.feed(b"data: " + chunk % usage + b"\n\n")
    assert meter.report().usage == Usage(input_tokens=9, output_tokens=8)


@pytest.mark.parametrize(("form", "tokens"), [("pcm16", 600), ("wav", 600), ("mp3", 3_600)])
def test_speech_in_a_chat_is_counted_by_its_bytes(form: str, tokens: int) -> None:
    """Thirty pieces of one second of pcm16: 20 tokens a second."""
    second = base64.b64encode(b"\0" * 48_000).decode()
    meter = StreamMeter(hide_usage=False)
    meter.sound_format = form
    for _ in range(30):
        event = {"id": "c", "choices": [{"index": 0, "delta": {"audio": {"data": second}}}]}
        meter.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert meter.streamed() == ([""], tokens)
    whole = {
        "choices": [{"index": 0, "message": {"content": None, "audio": {"data": second}}, "finish_reason": "stop"}]
    }
    assert read_answer(json.dumps(whole).encode()).sound_bytes == 48_000


def test_an_error_is_seen_wherever_it_stands_in_its_event() -> None:
    meter = StreamMeter(hide_usage=False)
    meter.feed(b'data: {"id": "c", "choices": [], "error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n')
    assert meter.failed


def test_the_cost_is_the_last_member_of_the_usage_object_and_nothing_else_changes() -> None:
    event = b'data: {"choices":[],"usage": {"prompt_tokens":1,"details":{"a":{}}},"obfuscation":"}"}\n\n'
    priced = with_cost(event, 0.125)
    assert (
        priced
        == b'data: {"choices":[],"usage": {"prompt_tokens":1,"details":{"a":{}},"cost_credits":0.125},"obfuscation":"}"}\n\n'
    )
    assert with_cost(b"data: {}\n\n", 1) == b"data: {}\n\n"


@pytest.mark.parametrize("said", ["data: [DONE]", '"error": {', '"usage": {', '"usage":null', "\ndata: [DONE]\n\n"])
def test_a_text_that_looks_like_an_event_is_a_text(said: str) -> None:
    event = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": said}}], "usage": None}
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    meter = StreamMeter(hide_usage=True)
    assert meter.feed(data) == data
    assert (meter.done, meter.failed, meter.streamed()[0]) == (False, False, [said])


UNUSUAL = {
    "an id that is a number": b'data: {"id":5,"choices":[{"index":0,"delta":{"content":"odd "}}]}\n\n',
    "an event of two lines": b'data: {"id":"c","choices":[{"index":0,\ndata: "delta":{"content":"odd "}}]}\n\n',
    "an event with a name": b'event: chunk\ndata: {"choices":[{"index":0,"delta":{"content":"odd "}}]}\n\n',
    "an end of CRs": b'data: {"choices":[{"index":0,"delta":{"content":"odd "}}]}\r\r',
    "two values in one event": b'data: {"choices":[{"index":0,"delta":{"content":"no "}}]},{"choices":[]}\n\n',
    "a comment": b": keep-alive\n\n",
    "no JSON": b"data: hello\n\n",
    "an empty event": b"data:\n\n",
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_unusual_event_hides_none_of_the_others(name: str, place: int) -> None:
    said = [
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b "}}]}\n\n' % word for word in (b"one", b"two")
    ]
    said.insert(place, UNUSUAL[name])
    words = ["one ", "two "]
    if b"odd" in UNUSUAL[name]:
        words.insert(place, "odd ")
    meter = StreamMeter(hide_usage=True)
    assert b"".join(map(meter.feed, said)) + b"".join(meter.tail) + meter.rest() == b"".join(said)
    assert "".join(meter.streamed()[0]) == "".join(words)


def test_pieces_of_several_answers_and_kinds_are_told_apart() -> None:
    deltas = [
        (0, {"role": "assistant", "content": ""}),
        (0, {"content": "a"}),
        (1, {"content": "b"}),
        (0, {"content": "", "refusal": "no"}),
        (1, {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}),
        (0, {"content": "c"}),
        (1, {}),
    ]
    meter = StreamMeter(hide_usage=True)
    for index, delta in deltas:
        event = {"id": "c", "choices": [{"index": index, "delta": delta}]}
        meter.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert meter.streamed() == (["anoc", "bf{}"], 0)
