"""What is read of a request bounds what the upstream will bill; what is sent is the client's bytes and our members.

The independent count of a prompt is the sandbox's, written a second time from docs/openai.md.
"""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.gateway.bodies.chat import CHAT_FIELDS, chat_texts, parse_chat
from proxy.gateway.bodies.image_tokens import image_tokens
from proxy.gateway.bodies.prompts import completion_texts, embedding_texts, parse_completion, parse_embedding
from proxy.gateway.plan import bounds_of, input_bound
from proxy.gateway.upstream.request_body import with_members
from proxy.web.rejections import Rejection
from sandbox.openai.tokens.count import count_chat, count_legacy, load_encoding
from tests.support.counting import TOKENIZER

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="漢字かな交じり文", max_size=80),
    st.text(alphabet="👩‍👦🏳️🌈🇩🇪", max_size=40),
    st.sampled_from(
        [
            "",
            "a" * 300,
            " " * 300,
            "\n\t" * 60,
            "1" * 99,
            '\\"\u0000\u001f' * 20,
            "<|endoftext|>" * 9,
            "The quick brown fox. " * 9,
        ]
    ),
)
NAMES = st.text(alphabet="abc_XYZ09", min_size=1, max_size=20)
PROPERTIES = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "boolean", "array", "object"])},
        optional={"description": TEXTS, "enum": st.lists(NAMES, max_size=3)},
    ),
    max_size=4,
)
TOOLS = st.lists(
    st.builds(
        lambda name, description, properties, required: {
            "type": "function",
            "function": {
                "name": name,
                "description": description,
                "parameters": {"type": "object", "properties": properties, "required": required},
            },
        },
        NAMES,
        TEXTS,
        PROPERTIES,
        st.lists(NAMES, max_size=2),
    ),
    max_size=3,
)
CALLS = st.lists(
    st.builds(
        lambda name, given: {"id": "call_1", "type": "function", "function": {"name": name, "arguments": given}},
        NAMES,
        TEXTS,
    ),
    max_size=2,
)
CONTENT = st.one_of(TEXTS, st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3))
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "developer"]), "content": CONTENT}, optional={"name": NAMES}
        ),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": st.one_of(st.none(), TEXTS), "tool_calls": CALLS}
        ),
    ),
    min_size=1,
    max_size=12,
)
CHATS = st.fixed_dictionaries(
    {"model": st.just("gpt-4o"), "messages": MESSAGES},
    optional={
        "tools": TOOLS,
        "tool_choice": st.sampled_from(["none", "auto", {"type": "function", "function": {"name": "look_it_up"}}]),
        "response_format": st.builds(
            lambda text: {"type": "json_schema", "json_schema": {"name": "n", "description": text}}, TEXTS
        ),
    },
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(body=CHATS, compact=st.booleans(), ascii_only=st.booleans())
def test_both_bounds_cover_what_the_upstream_counts(body: dict[str, Any], compact: bool, ascii_only: bool) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    raw = json.dumps(body, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "replace")
    billed = count_chat(load_encoding("o200k_base"), "gpt-4o", json.loads(raw)).total
    parsed = parse_chat(raw)
    assert parsed.input_bytes_bound >= billed
    texts, framing = chat_texts(raw)
    assert asyncio.run(TOKENIZER.count("gpt-4o", texts)) + framing >= billed


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES)
@pytest.mark.slow
def test_without_tools_the_count_is_exact(messages: list[dict[str, Any]]) -> None:
    raw = json.dumps({"model": "gpt-4o", "messages": messages}).encode()
    texts, framing = chat_texts(raw)
    counted = asyncio.run(TOKENIZER.count("gpt-4o", texts)) + framing
    assert counted == count_chat(load_encoding("o200k_base"), "gpt-4o", json.loads(raw)).total


@settings(max_examples=60, deadline=None)
@given(
    value=st.one_of(
        TEXTS.filter(bool),
        st.lists(TEXTS.filter(bool), min_size=1, max_size=5),
        st.lists(st.integers(0, 99_999), min_size=1),
    )
)
@pytest.mark.slow
def test_prompts_and_embedding_inputs_are_covered(value: Any) -> None:
    inputs = [value] if isinstance(value, str) or isinstance(value[0], int) else value
    for parse, texts_of, name, model in (
        (parse_embedding, embedding_texts, "input", "text-embedding-3-small"),
        (parse_completion, completion_texts, "prompt", "gpt-3.5-turbo-instruct"),
    ):
        raw = json.dumps({"model": model, name: value}).encode()
        billed = sum(count_legacy(load_encoding("cl100k_base"), inputs))
        parsed = parse(raw)
        assert parsed.input_bytes_bound >= billed
        assert parsed.inputs == len(inputs)
        texts, framing = texts_of(raw)
        assert asyncio.run(TOKENIZER.count(model, texts)) + framing >= billed


def test_many_inputs_have_a_window_each() -> None:
    parsed = parse_embedding(json.dumps({"model": "text-embedding-3-small", "input": ["x" * 9_000] * 3}).encode())
    assert input_bound(parsed, 30_000, 8_192) == 3 * 8_192
    one = parse_embedding(json.dumps({"model": "text-embedding-3-small", "input": "x" * 30_000}).encode())
    assert input_bound(one, 30_000, 8_192) == 8_192


# -- what goes upstream ---------------------------------------------------------------------------

RAW = b'  { "messages":[{"role":"user","content":"\\u00e9"}] , "model" : "gpt-4o","temperature":1.0e0 }\n'


def test_nothing_to_change_changes_nothing() -> None:
    assert with_members(parse_chat(RAW), {}) is RAW


def test_new_members_come_first_and_the_rest_stays() -> None:
    sent = with_members(parse_chat(RAW), {"service_tier": b'"default"', "max_completion_tokens": b"7"})
    assert sent == b'  {"service_tier":"default","max_completion_tokens":7,' + RAW[3:]
    assert json.loads(sent) == {**json.loads(RAW), "service_tier": "default", "max_completion_tokens": 7}


def test_a_member_that_is_there_is_replaced_and_the_others_keep_their_bytes() -> None:
    sent = with_members(parse_chat(RAW), {"model": b'"gpt-5"'})
    assert json.loads(sent) == {**json.loads(RAW), "model": "gpt-5"}
    assert b'[{"role":"user","content":"\\u00e9"}]' in sent
    assert b"1.0e0" in sent


@settings(max_examples=100, deadline=None)
@given(
    options=st.dictionaries(
        st.text(max_size=12), st.one_of(st.booleans(), st.text(max_size=8), st.integers(-9, 9)), max_size=4
    ),
    include=st.booleans(),
)
def test_stream_options_keep_what_they_had(options: dict[str, Any], include: bool) -> None:
    options.pop("include_obfuscation", None)
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {**options, "include_usage": include},
    }
    parsed = parse_chat(json.dumps(body).encode())
    rebuilt = json.loads(b'{"include_usage":true' + parsed.keeps_stream_options + b"}")
    assert rebuilt == {**options, "include_usage": True}
    assert parsed.wants_usage is include


# -- refused --------------------------------------------------------------------------------------


def rejected(parse: Any, body: bytes) -> Rejection:
    with pytest.raises(Rejection) as caught:
        parse(body)
    assert caught.value.status in (400, 404)
    return caught.value


@pytest.mark.parametrize("field", sorted(CHAT_FIELDS))
def test_every_member_given_twice_is_refused(field: str) -> None:
    whole = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "n": 1, field: None}
    whole = {**whole, "model": "gpt-4o", "messages": whole["messages"] or [{"role": "user", "content": "x"}]}
    raw = json.dumps(whole)[:-1] + f', "{field}": ' + json.dumps(whole[field]) + "}"
    assert rejected(parse_chat, raw.encode()).code == "duplicate_parameter"


@pytest.mark.parametrize("escaped", ["\\u006e", "n"])
def test_an_escaped_name_is_the_same_name(escaped: str) -> None:
    raw = f'{{"model":"gpt-4o","messages":[{{"role":"user","content":"x"}}],"n":1,"{escaped}":5}}'
    assert rejected(parse_chat, raw.encode()).code == "duplicate_parameter"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read_never_worse(raw: bytes) -> None:
    for parse in (parse_chat, parse_completion, parse_embedding):
        try:
            parse(raw)
        except Rejection as rejection:
            assert 400 <= rejection.status < 500


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(sorted(CHAT_FIELDS)), value=JSON)
def test_any_value_of_any_member_is_refused_or_read_never_worse(field: str, value: Any) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], field: value}
    raw = json.dumps(body).encode("utf-8", "replace")
    try:
        parsed = parse_chat(raw)
    except Rejection as rejection:
        assert rejection.status in (400, 404)
        return
    assert 1 <= parsed.choices <= 128
    assert parsed.explicit_cap is None or parsed.explicit_cap >= 1
    assert json.loads(with_members(parsed, {"service_tier": b'"default"'}))["service_tier"] == "default"


# -- media and choices ----------------------------------------------------------------------------


def chat_with(part: dict[str, Any], model: str = "gpt-4o") -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": [part]}]}).encode()


def test_the_bytes_of_an_image_are_not_text_and_its_most_tokens_are_added() -> None:
    url = "data:image/png;base64," + "A" * 100_000
    parsed = parse_chat(chat_with({"type": "image_url", "image_url": {"url": url}}))
    assert parsed.image_tokens == 85 + 170 * 8
    assert parsed.input_bytes_bound < 300
    # at most 85 + 170 x 8 tiles (768 x 2048) for gpt-4o, as docs/openai.md says
    assert input_bound(parsed, parsed.input_bytes_bound, 128_000) == parsed.input_bytes_bound + 85 + 170 * 8


@pytest.mark.parametrize(
    ("model", "least"),
    [("gpt-4o", 765), ("gpt-5", 630), ("gpt-4o-mini", 25_501), ("gpt-5.4", 1_229), ("gpt-4.1-mini", 1_659)],
)
def test_an_image_of_1024_pixels_fits_its_bound(model: str, least: int) -> None:
    bound = image_tokens(model, None, None)
    assert bound is not None
    assert bound >= least


@pytest.mark.parametrize("part", [{"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}])
def test_what_cannot_be_bounded_is_the_window(part: dict[str, Any]) -> None:
    parsed = parse_chat(chat_with(part))
    assert input_bound(parsed, parsed.input_bytes_bound, 128_000) == 128_000
    with pytest.raises(Rejection):
        input_bound(parsed, parsed.input_bytes_bound, None)


def test_an_image_no_rule_bounds_is_the_window() -> None:
    parsed = parse_chat(chat_with({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, "gpt-6-astra"))
    assert input_bound(parsed, parsed.input_bytes_bound, 1_050_000) == 1_050_000


def test_audio_is_held_as_audio() -> None:
    part = {"type": "input_audio", "input_audio": {"data": "A" * 40_000, "format": "wav"}}
    parsed = parse_chat(chat_with(part, "gpt-audio-1.5"))
    # 30,000 bytes; ten tokens a second of at least 1,000 bytes a second are 300
    assert parsed.audio_tokens >= 300
    assert bounds_of(parsed, 50_000, 10, 0).audio_input_tokens == parsed.audio_tokens


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({}, 1),
        ({"n": 5}, 5),
        ({"best_of": 7, "n": 2}, 7),
        ({"prompt": ["a", "b", "c"], "n": 2}, 6),
        ({"prompt": [[1, 2], [3]], "best_of": 4}, 8),
    ],
)
def test_every_candidate_of_every_prompt_is_bounded(fields: dict[str, Any], choices: int) -> None:
    parsed = parse_completion(json.dumps({"model": "m", "prompt": "a", "max_tokens": 10, **fields}).encode())
    assert parsed.choices == choices
    assert bounds_of(parsed, 5, 10, 0).output_tokens == 10 * choices
