"""Bodies of legacy completions and embeddings: prompts instead of messages. Sans I/O."""

from typing import Any

import msgspec

from proxy.gateway.bodies.inventory import COMPLETION_FIELDS, EMBEDDING_FIELDS
from proxy.gateway.bodies.parsed import (
    FRAMING_TOKENS,
    MAX_CHOICES,
    Parsed,
    StreamOptions,
    cap_of,
    decode,
    other_stream_options,
    positive,
    tenant_fields,
    top_level,
)
from proxy.web.rejections import invalid

KNOWN_COMPLETION_FIELDS = frozenset(COMPLETION_FIELDS)
KNOWN_EMBEDDING_FIELDS = frozenset(EMBEDDING_FIELDS)


MAX_BEST_OF = 20


EMBEDDING_MAX_TOKENS = 300_000


LEGACY_DEFAULT_MAX_TOKENS = 16


class _Completion(msgspec.Struct):
    model: str
    prompt: str | list[str | int | list[int]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]


_completion = msgspec.json.Decoder(_Completion)


_embedding = msgspec.json.Decoder(_Embedding)


def parse_completion(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/completions body. Raises Rejection."""
    members, verbatim = top_level(body, KNOWN_COMPLETION_FIELDS)
    request = decode(_completion, body)
    choices = max(positive(request.n, "n", MAX_CHOICES), positive(request.best_of, "best_of", MAX_BEST_OF))
    cap = cap_of(request.max_tokens, "max_tokens") if request.max_tokens is not None else LEGACY_DEFAULT_MAX_TOKENS
    return Parsed(
        model=request.model,
        members=members,
        source=body,
        verbatim=verbatim,
        stream=bool(request.stream),
        wants_usage=bool(request.stream_options and request.stream_options.include_usage),
        input_bytes_bound=len(body) + FRAMING_TOKENS,
        inputs=_inputs(request.prompt),
        choices=choices * _inputs(request.prompt),
        explicit_cap=cap,
        tenant_values=tenant_fields(members),
        keeps_stream_options=other_stream_options(members),
    )


def parse_embedding(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/embeddings body. Raises Rejection."""
    members, verbatim = top_level(body, KNOWN_EMBEDDING_FIELDS)
    request = decode(_embedding, body)
    if not request.input:
        raise invalid("`input` is empty: send a text, token ids, or a list of them.", "input")
    return Parsed(
        model=request.model,
        members=members,
        source=body,
        verbatim=verbatim,
        tenant_values=tenant_fields(members),
        input_bytes_bound=min(len(body), EMBEDDING_MAX_TOKENS),
        inputs=_inputs(request.input),
        choices=0,
        explicit_cap=0,
    )


def embedding_texts(body: bytes) -> tuple[list[str], int]:
    """Every text of an embeddings request, and the number of its token ids."""
    return _strings(decode(_embedding, body).input)


def completion_texts(body: bytes) -> tuple[list[str], int]:
    """Every prompt of a legacy completion, and the number of its token ids."""
    return _strings(decode(_completion, body).prompt)


def _inputs(prompt: Any) -> int:
    """Count the prompts or embedding inputs of a request: each has the window, and its completions, to itself."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _strings(value: Any) -> tuple[list[str], int]:
    """(texts, number of token ids)."""
    if value is None or isinstance(value, str):
        return [value or ""], 1
    texts = [item for item in value if isinstance(item, str)]
    ids = sum(1 for item in value if isinstance(item, int)) + sum(len(item) for item in value if isinstance(item, list))
    return texts, ids + len(texts)
