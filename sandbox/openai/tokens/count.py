"""Token counts of a prompt, from the rank files in config/tokenizer.

The framing rules are those publicly known for the chat models (3 tokens per message and so on);
they are written here a second time on purpose: the proxy's own counter must not be its witness.
"""

import base64
import functools
import hashlib
import lzma
from pathlib import Path
from typing import Any, Final

import msgspec
import tiktoken

from sandbox.openai.tokens.prompt_media import audio_tokens, image_tokens
from sandbox.openai.tokens.tool_text import render_tools

RANKS = Path(__file__).resolve().parents[3] / "config" / "tokenizer"
CL100K_PATTERN: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K_PATTERN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHA256: Final = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
# tiktoken panics on about a million blanks in a row; a cut costs at most one token.
_SLICE_CHARACTERS: Final = 200_000
_CL100K_PREFIXES: Final = ("gpt-3.5", "text-embedding-", "davinci", "babbage")


def encoding_name(model: str) -> str:
    """Return the encoding of a model; unknown and new models use o200k_base."""
    base = model.removeprefix("ft:")
    if base == "gpt-4" or base.startswith(("gpt-4-", "gpt-4:")):
        return "cl100k_base"
    return "cl100k_base" if base.startswith(_CL100K_PREFIXES) else "o200k_base"


@functools.cache
def load_encoding(name: str) -> tiktoken.Encoding:
    """Build the encoding from its rank file, checked by hash. Takes about 0.3 s the first time."""
    ranks = lzma.decompress((RANKS / f"{name}.tiktoken.xz").read_bytes())
    if hashlib.sha256(ranks).hexdigest() != _SHA256[name]:
        raise RuntimeError(f"{name}: the rank file is damaged")
    table = {
        base64.b64decode(token): int(rank) for token, _, rank in (line.partition(b" ") for line in ranks.splitlines())
    }
    pattern = CL100K_PATTERN if name == "cl100k_base" else O200K_PATTERN
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=table, special_tokens={})


def count_text(encoding: tiktoken.Encoding, text: str) -> int:
    """Tokens of a text; special-token spellings count as ordinary text."""
    if len(text) <= _SLICE_CHARACTERS:
        return len(encoding.encode_ordinary(text))
    return sum(
        len(encoding.encode_ordinary(text[start : start + _SLICE_CHARACTERS]))
        for start in range(0, len(text), _SLICE_CHARACTERS)
    )


class PromptCount(msgspec.Struct):
    """Prompt tokens by kind; `image` and `audio` come on top of `text`."""

    text: int = 0
    image: int = 0
    audio: int = 0

    @property
    def total(self) -> int:
        """All prompt tokens."""
        return self.text + self.image + self.audio


def count_chat(encoding: tiktoken.Encoding, model: str, body: dict[str, Any]) -> PromptCount:
    """Prompt tokens of a chat request: text with its framing, tools, images and audio."""
    count = PromptCount(text=3)
    has_system = False
    for message in body["messages"]:
        has_system = has_system or message["role"] in {"system", "developer"}
        count.text += 3
        _add_message(encoding, model, message, count)
    count.text += _tools(encoding, body, has_system=has_system)
    schema = body.get("response_format")
    if isinstance(schema, dict) and "json_schema" in schema:
        rendered = msgspec.json.encode(schema["json_schema"]).decode()
        count.text += count_text(encoding, rendered)
    return count


def _add_message(encoding: tiktoken.Encoding, model: str, message: dict[str, Any], count: PromptCount) -> None:
    count.text += count_text(encoding, message["role"])
    name = message.get("name")
    if isinstance(name, str):
        count.text += count_text(encoding, name) + 1
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        count.text += 3 + count_text(encoding, str(function.get("name", "")))
        count.text += count_text(encoding, str(function.get("arguments", "")))
    content = message.get("content")
    if isinstance(content, str):
        count.text += count_text(encoding, content)
    for part in content if isinstance(content, list) else ():
        kind = part.get("type")
        if kind in {"text", "refusal"}:
            count.text += count_text(encoding, str(part.get(kind, "")))
        elif kind == "image_url":
            count.image += image_tokens(model, part.get("image_url") or {})
        elif kind == "input_audio":
            count.audio += audio_tokens(part.get("input_audio") or {})


def _tools(encoding: tiktoken.Encoding, body: dict[str, Any], *, has_system: bool) -> int:
    functions = [
        tool["function"]
        for tool in body.get("tools") or ()
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    functions += [item for item in body.get("functions") or () if isinstance(item, dict)]
    if not functions:
        return 0
    total = count_text(encoding, render_tools(functions)) + 9
    # The system message absorbs part of the tools' frame and gains a newline token.
    total -= 4 - 1 if has_system else 0
    choice = body.get("tool_choice")
    if choice == "none":
        total += 1
    elif isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        total += count_text(encoding, str(choice["function"].get("name", ""))) + 7
    return total


def count_legacy(encoding: tiktoken.Encoding, inputs: list[str | list[int]]) -> list[int]:
    """Tokens of each prompt or embedding input; token arrays count by length."""
    return [count_text(encoding, item) if isinstance(item, str) else len(item) for item in inputs]
