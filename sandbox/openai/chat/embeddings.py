"""Embeddings: deterministic unit vectors, as floats or base64."""

import array
import base64
import math
import random
import zlib
from typing import Any, Final

import msgspec

from sandbox.openai.chat.frame import finish_json
from sandbox.openai.exchange.answer import Answer
from sandbox.openai.exchange.bill import Bill
from sandbox.openai.exchange.call import Call
from sandbox.openai.requests.checks import text_inputs
from sandbox.openai.requests.errors import invalid
from sandbox.openai.tokens.count import PromptCount, count_legacy

_MAX_INPUT_TOKENS: Final = 8_192
_MAX_REQUEST_TOKENS: Final = 300_000
_LARGE: Final = 3072
_SMALL: Final = 1536


def check_embeddings(model: str, body: dict[str, Any], counts: list[int]) -> int:
    """Return the vector length. Raises ApiError when inputs or options are beyond the limits."""
    if max(counts) > _MAX_INPUT_TOKENS:
        raise invalid(
            f"This model's maximum context length is {_MAX_INPUT_TOKENS} tokens, however you requested "
            f"{max(counts)} tokens.",
            None,
            None,
        )
    if min(counts) < 1:
        raise invalid("'$.input' is invalid: input cannot be an empty string.", "input", None)
    if sum(counts) > _MAX_REQUEST_TOKENS:
        raise invalid(
            f"Requested {sum(counts)} tokens, max {_MAX_REQUEST_TOKENS} tokens per request",
            None,
            "max_tokens_per_request",
        )
    if body.get("encoding_format") not in {None, "float", "base64"}:
        raise invalid("Invalid value.", "encoding_format", "invalid_value")
    largest = _LARGE if model.startswith("text-embedding-3-large") else _SMALL
    length = body.get("dimensions")
    if length is None:
        return largest
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= largest:
        raise invalid("Invalid value for 'dimensions'.", "dimensions", "invalid_value")
    return length


def embeddings_json(model: str, inputs: list[str | list[int]], length: int, usage: Any, *, packed: bool) -> bytes:
    """Return the answer's body; `packed` means base64 of little-endian 32-bit floats."""
    rows = []
    for index, item in enumerate(inputs):
        vector = _vector(zlib.crc32(msgspec.json.encode(item)), length)
        embedding: Any = vector
        if packed:
            embedding = base64.b64encode(array.array("f", vector).tobytes()).decode("ascii")
        rows.append({"object": "embedding", "index": index, "embedding": embedding})
    answer: dict[str, Any] = {"object": "list", "data": rows, "model": model}
    if usage is not None:
        answer["usage"] = usage
    return msgspec.json.encode(answer)


def _vector(seed: int, length: int) -> list[float]:
    source = random.Random(seed)  # noqa: S311 - reproducible, not secret
    raw = [source.random() - 0.5 for _ in range(length)]
    norm = math.sqrt(math.fsum(value * value for value in raw)) or 1.0
    return [round(value / norm, 7) for value in raw]


def embed(call: Call) -> Answer:
    """POST /v1/embeddings."""
    body, model = call.body, call.model
    inputs = text_inputs(body.get("input"), "input")
    counts = count_legacy(call.encoding, inputs)
    length = check_embeddings(model, body, counts)
    bill = Bill("embeddings", PromptCount(sum(counts)), call.directives)
    shown = call.directives.model or model
    packed = body.get("encoding_format") == "base64"
    answer = Answer(200, bill=bill, model=shown)
    return finish_json(
        answer,
        [],
        lambda usage: embeddings_json(shown, inputs, length, usage, packed=packed),
    )
