"""Items of a realtime conversation: checked, with their tokens by kind."""

import base64
import binascii
import math
from typing import Any, Final

import msgspec
import tiktoken

from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.tokens.count import PromptCount, count_chat, count_text
from sandbox.openai.tokens.prompt_media import image_tokens

_PCM_BYTES: Final = 2
_PCM_RATE: Final = 24_000
_G711_RATE: Final = 8_000
INPUT_TOKENS_PER_S: Final = 10
_FRAMING: Final = 3
_TYPES: Final = frozenset({"message", "function_call", "function_call_output", "mcp_approval_response"})


class Item(msgspec.Struct, frozen=True):
    """One item with what it costs each time the model reads it."""

    id: str
    shown: dict[str, Any]
    count: PromptCount


def sum_counts(counts: list[PromptCount]) -> PromptCount:
    """Add up counts by kind."""
    return PromptCount(
        sum(count.text for count in counts), sum(count.image for count in counts), sum(count.audio for count in counts)
    )


def audio_seconds(data: bytes | int, form: dict[str, Any] | None) -> float:
    """Length of raw audio (or of that many bytes) in the format of the session."""
    size = data if isinstance(data, int) else len(data)
    kind = (form or {}).get("type", "audio/pcm")
    if kind != "audio/pcm":
        return size / _G711_RATE
    return size / (_PCM_BYTES * int((form or {}).get("rate") or _PCM_RATE))


def decode_audio(value: Any, where: str) -> bytes:
    """Return the bytes of base64 audio. Raises ApiError."""
    if value is None:
        raise missing(where)
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"Invalid '{where}'. Expected base64-encoded audio bytes.", where, "invalid_value") from None


def read_item(value: Any, fresh_id: str, encoding: tiktoken.Encoding, model: str, form: dict[str, Any] | None) -> Item:
    """Complete a client's item. Raises ApiError."""
    if not isinstance(value, dict):
        raise missing("item") if value is None else wrong_type("item", "an object", value)
    kind = value.get("type")
    if kind is None:
        raise missing("item.type")
    if kind not in _TYPES:
        raise invalid(f"Invalid value: '{kind}'.", "item.type", "invalid_value")
    if kind == "message" and value.get("role") not in {"user", "assistant", "system"}:
        raise invalid(f"Invalid value: '{value.get('role')}'.", "item.role", "invalid_value")
    content = value.get("content") if kind == "message" else []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong_type("item.content", "an array of objects", content)
    shown: dict[str, Any] = {"id": fresh_id, "object": "realtime.item", "status": "completed"} | value
    count = _count(shown, content, encoding, model, form)
    # The audio itself is never sent back.
    if kind == "message":
        shown["content"] = [{name: field for name, field in part.items() if name != "audio"} for part in content]
    return Item(str(shown["id"]), shown, count)


def _count(
    item: dict[str, Any],
    content: list[dict[str, Any]],
    encoding: tiktoken.Encoding,
    model: str,
    form: dict[str, Any] | None,
) -> PromptCount:
    count = PromptCount(_FRAMING + count_text(encoding, str(item.get("role", ""))))
    for name in ("name", "arguments", "output"):
        count.text += count_text(encoding, str(item.get(name) or ""))
    for index, part in enumerate(content):
        kind = part.get("type")
        if kind == "input_audio":
            data = decode_audio(part.get("audio"), f"item.content[{index}].audio")
            count.audio += input_audio_tokens(audio_seconds(data, form))
        elif kind == "input_image":
            count.image += image_tokens(model, {"url": part.get("image_url") or "", "detail": part.get("detail")})
        else:
            count.text += count_text(encoding, str(part.get("text") or part.get("transcript") or ""))
    return count


def input_audio_tokens(seconds: float) -> int:
    """Tokens of the user's audio."""
    return math.ceil(round(seconds * INPUT_TOKENS_PER_S, 6))


def count_frame(encoding: tiktoken.Encoding, model: str, options: dict[str, Any]) -> PromptCount:
    """Tokens of instructions and tools, which every response reads anew."""
    text = options.get("instructions")
    messages = [{"role": "system", "content": text}] if isinstance(text, str) and text else []
    tools = [{"type": "function", "function": tool} for tool in options.get("tools") or () if isinstance(tool, dict)]
    return count_chat(encoding, model, {"messages": messages, "tools": tools})
