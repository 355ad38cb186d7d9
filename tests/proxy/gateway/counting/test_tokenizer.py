"""Token counts against ids written down by others, and input made to hurt."""

import asyncio
import lzma
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import proxy.gateway.counting.vocabulary as module
from proxy.gateway.counting.tokenizer import Tokenizer
from proxy.gateway.counting.vocabulary import RANKS_SHA256, TokenizerError, encoding_name, load_encoding
from sandbox.openai.tokens.count import load_encoding as sandbox_encoding
from tests.support.counting import TOKENIZER


@pytest.fixture
def tokenizer() -> Tokenizer:
    return TOKENIZER


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        # docs/openai.md: "tiktoken is great!"
        ("cl100k_base", [83, 1609, 5963, 374, 2294, 0]),
        ("o200k_base", [83, 8251, 2488, 382, 2212, 0]),
    ],
)
def test_known_token_ids(name: str, ids: list[int]) -> None:
    assert load_encoding(name).encode_ordinary("tiktoken is great!") == ids


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *(
            (model, "o200k_base")
            for model in (
                "gpt-4o",
                "gpt-4o-mini-2024-07-18",
                "gpt-4.1",
                "gpt-5",
                "gpt-6-sol",
                "o3",
                "chat-latest",
                "ft:gpt-4o:x",
            )
        ),
        *(
            (model, "cl100k_base")
            for model in ("gpt-4", "gpt-4-turbo", "gpt-3.5-turbo-instruct", "text-embedding-3-small", "davinci-002")
        ),
        ("ft:gpt-3.5-turbo:acme", "cl100k_base"),
    ],
)
def test_which_encoding_a_model_uses(model: str, name: str) -> None:
    assert encoding_name(model) == name


HOSTILE = {
    "a megabyte of blanks": " " * 1_000_000,
    "a megabyte of tabs": "\t" * 1_000_000,
    "one letter": "a" * 1_000_000,
    "cjk": "漢" * 300_000,
    "no-break spaces": "\u00a0" * 1_000_000,
    "newlines": "\n" * 1_000_000,
    "lone surrogates": "\ud800" * 100,
    "null bytes": "\x00" * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(60)
@pytest.mark.slow
async def test_hostile_text_is_counted_off_the_loop_and_within_its_bytes(tokenizer: Tokenizer, name: str) -> None:
    await tokenizer.count("gpt-4o", ["warm"])
    text, turns = HOSTILE[name], 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    beside = asyncio.create_task(others())
    counted = await tokenizer.count("gpt-4o", [text])
    beside.cancel()
    assert 0 < counted <= len(text.encode("utf-8", "surrogatepass"))
    if len(text) >= 300_000:
        assert turns > 1  # the loop went on meanwhile


async def test_special_tokens_in_text_are_ordinary_text(tokenizer: Tokenizer) -> None:
    text = "<|endoftext|> <|im_start|>"
    assert await tokenizer.count("gpt-4o", [text]) == len(sandbox_encoding("o200k_base").encode_ordinary(text)) > 6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=4))
@pytest.mark.slow
def test_counts_agree_with_an_encoding_built_by_the_sandbox(texts: list[str]) -> None:
    for model, name in (("gpt-4o", "o200k_base"), ("gpt-3.5-turbo-instruct", "cl100k_base")):
        expected = sum(len(sandbox_encoding(name).encode_ordinary(text)) for text in texts)
        assert asyncio.run(TOKENIZER.count(model, texts)) == expected


async def test_a_cut_into_pieces_costs_at_most_a_token_each(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The quick brown fox. " * 500
    whole = await tokenizer.count("gpt-4o", [text])
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 1_000)
    assert whole <= await tokenizer.count("gpt-4o", [text]) <= whole + len(text) // 1_000 + 1


@pytest.mark.parametrize("name", RANKS_SHA256)
@pytest.mark.slow
def test_altered_ranks_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = lzma.decompress(files("config").joinpath(f"tokenizer/{name}.tiktoken.xz").read_bytes())
    (tmp_path / "tokenizer").mkdir()
    # the same ranks but for one: tokens 1 and 2 have changed places
    altered = raw.replace(b" 1\n", b" 9\n", 1)
    (tmp_path / "tokenizer" / f"{name}.tiktoken.xz").write_bytes(lzma.compress(altered, preset=0))

    def here(_package: Any) -> Path:
        return tmp_path

    monkeypatch.setattr(module, "files", here)
    with pytest.raises(TokenizerError, match=name):
        load_encoding(name)
