"""What the simulator bills: prompts, outputs, caps."""

import json
from typing import Any

import pytest
import tiktoken_ext.openai_public as public

from sandbox.openai.tokens.count import (
    CL100K_PATTERN,
    O200K_PATTERN,
    count_chat,
    count_text,
    encoding_name,
    load_encoding,
)
from sandbox.openai.tokens.output_text import pseudo_english, split_text
from sandbox.openai.tokens.prompt_media import image_tokens

asyncio_test = pytest.mark.asyncio
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {"tz": {"type": "string"}}},
        },
    }
]


def test_patterns_are_those_of_the_installed_tiktoken(monkeypatch):
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert public.cl100k_base()["pat_str"] == CL100K_PATTERN
    assert public.o200k_base()["pat_str"] == O200K_PATTERN


def test_known_encodings():
    assert load_encoding("cl100k_base").encode_ordinary("tiktoken is great!") == [
        83,
        1609,
        5963,
        374,
        2294,
        0,
    ]
    assert load_encoding("o200k_base").encode_ordinary("tiktoken is great!") == [
        83,
        8251,
        2488,
        382,
        2212,
        0,
    ]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-instruct", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("davinci-002", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4.1-mini", "o200k_base"),
        ("gpt-6.2-sol", "o200k_base"),
        ("ft:gpt-4o-mini:x", "o200k_base"),
        ("something-new", "o200k_base"),
    ],
)
def test_encoding_of_model(model, name):
    assert encoding_name(model) == name


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_made_up_text_has_exactly_the_tokens_it_claims(name):
    encoding = load_encoding(name)
    for seed in range(40):
        for length in (0, 1, 2, 9, 10, 11, 12, 20, 21, 40, 333):
            pieces = pseudo_english(seed, length)
            text = "".join(piece.text for piece in pieces)
            assert len(pieces) == sum(p.tokens for p in pieces) == length
            assert len(encoding.encode_ordinary(text)) == length, text
    assert pseudo_english(1, 30) != pseudo_english(2, 30)


def test_given_text_is_split_without_breaking_characters():
    encoding = load_encoding("o200k_base")
    text = "naïve 🦉🦉 日本語 \u200d👩\u200d🚀 <|endoftext|>"
    pieces = split_text(encoding, text)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.tokens for piece in pieces) == count_text(encoding, text)


def test_hostile_blanks_do_not_kill_the_counter():
    assert count_text(load_encoding("o200k_base"), " " * 1_500_000) > 0


def test_chat_framing():
    encoding = load_encoding("o200k_base")
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
    assert count_chat(encoding, "gpt-4o", body).total == 3 + 1 + 2 + 3
    body["messages"][0]["name"] = "bob"
    assert count_chat(encoding, "gpt-4o", body).total == 9 + 1 + 1
    body["messages"][0].pop("name")
    with_tools = count_chat(encoding, "gpt-4o", body | {"tools": TOOLS}).total
    text = "namespace functions {\n\ntype get_time = (_: {\ntz?: string,\n}) => any;\n\n} // namespace functions"
    assert with_tools == 9 + count_text(encoding, text) + 9
    none = count_chat(encoding, "gpt-4o", body | {"tools": TOOLS, "tool_choice": "none"}).total
    assert none == with_tools + 1


@pytest.mark.parametrize(
    ("model", "detail", "tokens"),
    [
        ("gpt-4o", "auto", 765),
        ("gpt-4o", "low", 85),
        ("gpt-5", "auto", 630),
        ("gpt-4o-mini", "auto", 25_501),
        ("gpt-5.4-mini", "auto", 1229),
        ("gpt-4.1-mini", "auto", 1659),
        ("gpt-6-astra", "original", 1229),
    ],
)
def test_image_formulas(png, model, detail, tokens):
    assert image_tokens(model, {"url": png(1024, 1024), "detail": detail}) == tokens


def test_large_and_unknown_images(png):
    assert image_tokens("gpt-6-astra", {"url": png(4096, 4096), "detail": "original"}) == 19_661
    assert image_tokens("gpt-5.5", {"url": png(4096, 4096)}) == 12_000
    assert image_tokens("gpt-5.5", {"url": "https://example.com/a.png"}) == 12_000
    assert image_tokens("gpt-5.4", {"url": "https://example.com/a.png"}) == 3_000


@asyncio_test
async def test_output_is_counted_honestly(box):
    answer = (await box.chat(model="gpt-4o")).json()
    text = answer["choices"][0]["message"]["content"]
    tokens = count_text(load_encoding("o200k_base"), text)
    assert answer["usage"]["completion_tokens"] == tokens == 40
    assert answer["usage"]["total_tokens"] == 40 + answer["usage"]["prompt_tokens"]
    assert (await box.chat(model="gpt-4o")).json()["choices"][0]["message"]["content"] == text


@asyncio_test
async def test_reasoning_counts_inside_the_cap(box):
    usage = (await box.chat()).json()["usage"]
    assert usage["completion_tokens"] == 56
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 16
    answer = (await box.chat(max_completion_tokens=20)).json()
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["choices"][0]["finish_reason"] == "length"
    answer = (await box.chat(max_completion_tokens=10)).json()
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 10
    assert answer["choices"][0]["message"]["content"] == ""
    assert (await box.chat(max_completion_tokens=56)).json()["choices"][0]["finish_reason"] == "stop"


@asyncio_test
async def test_n_multiplies_the_output(box):
    usage = (await box.chat(n=3)).json()["usage"]
    assert usage["completion_tokens"] == 3 * 56
    stream = await box.events(n=3)
    assert json.loads(stream[-2])["usage"]["completion_tokens"] == 3 * 56


@asyncio_test
async def test_max_tokens_of_other_models(box):
    answer = (await box.chat(model="gpt-4o", max_tokens=5)).json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


@asyncio_test
async def test_tool_call_is_billed_by_name_and_arguments(box):
    answer = (await box.chat(model="gpt-4o", tools=TOOLS, tool_choice="required")).json()
    call = answer["choices"][0]["message"]["tool_calls"][0]
    encoding = load_encoding("o200k_base")
    expected = count_text(encoding, "get_time") + count_text(encoding, '{"tz":"UTC"}')
    assert call["function"] == {"name": "get_time", "arguments": '{"tz":"UTC"}'}
    assert answer["usage"]["completion_tokens"] == expected
    forced = {"type": "function", "function": {"name": "get_time"}}
    answer = (await box.chat(model="gpt-4o", tools=TOOLS, tool_choice=forced)).json()
    assert answer["choices"][0]["message"]["tool_calls"]
    assert "tool_calls" not in (await box.chat(model="gpt-4o", tools=TOOLS)).json()["choices"][0]["message"]


@asyncio_test
async def test_legacy_defaults_and_best_of(box):
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": ["one two", [1, 2, 3]]}
    answer = (await box.http.post("/v1/completions", json=body)).json()
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 32, "total_tokens": 37}
    assert [c["finish_reason"] for c in answer["choices"]] == ["length", "length"]
    body |= {"prompt": "one two", "n": 2, "best_of": 5, "max_tokens": 7}
    answer = (await box.http.post("/v1/completions", json=body)).json()
    assert len(answer["choices"]) == 2
    assert answer["usage"]["completion_tokens"] == 35


@asyncio_test
async def test_embedding_inputs_and_formats(box):
    model = "text-embedding-3-small"
    for value, tokens in (("a b", 2), (["a b", "c"], 3), ([1, 2, 3], 3), ([[1, 2], [3]], 3)):
        answer = await box.sdk.embeddings.create(model=model, input=value)
        assert answer.usage.prompt_tokens == tokens
        assert all(len(row.embedding) == 1536 for row in answer.data)
    floats = await box.sdk.embeddings.create(model=model, input="a b", encoding_format="float")
    packed = await box.sdk.embeddings.create(model=model, input="a b", encoding_format="base64")
    assert isinstance(packed.data[0].embedding, str)
    assert len(floats.data[0].embedding) == 1536
    large = await box.sdk.embeddings.create(model="text-embedding-3-large", input="a", dimensions=256)
    assert len(large.data[0].embedding) == 256
    for value in ("", [], "word " * 9000, ["x"] * 2049):
        body = {"model": model, "input": value}
        assert (await box.http.post("/v1/embeddings", json=body)).status_code == 400


CALLED = {"name": "run_sql", "description": "Run a statement."}
WORDS = "SELECT whale FROM sea"


@asyncio_test
@pytest.mark.parametrize(
    ("asked", "member", "said"),
    [
        ({"tools": [{"type": "custom", "custom": CALLED}], "tool_choice": "required"}, "custom", "input"),
        (
            {"tools": [{"type": "function", "function": CALLED}], "tool_choice": "required"},
            "function",
            "arguments",
        ),
        ({"functions": [CALLED], "function_call": {"name": "run_sql"}}, "function_call", "arguments"),
    ],
    ids=["custom tool", "function", "legacy function"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_call_of_any_form_says_its_words_and_bills_them(
    box, asked: dict[str, Any], member: str, said: str, stream: bool
):
    directive = {"text": WORDS, "reasoning_tokens": 0}
    answer = await box.chat(directive, model="gpt-4o", stream=stream, **asked)
    assert answer.status_code == 200, answer.text
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        found = [delta.get(member) or (delta.get("tool_calls") or [{}])[0].get(member) or {} for delta in deltas]
        assert "".join(one.get(said, "") for one in found) == WORDS
    else:
        message = answer.json()["choices"][0]["message"]
        assert (message.get(member) or message["tool_calls"][0][member])[said] == WORDS
