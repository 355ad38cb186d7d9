"""Bodies of legacy completions and embeddings: prompts instead of messages. Sans I/O."""

from typing import Any

import msgspec

from proxy.gateway.bodies.inventory import COMPLETION_FIELDS, EMBEDDING_FIELDS
from proxy.gateway.bodies.json_body import Whole, decode, optional_whole, top_level, whole_number
from proxy.gateway.bodies.parsed import (
    FRAMING_TOKENS,
    MAX_CHOICES,
    Parsed,
    StreamOptions,
    cap_of,
    other_stream_options,
    positive,
    tenant_fields,
)
from proxy.web.rejections import invalid

KNOWN_COMPLETION_FIELDS = frozenset(COMPLETION_FIELDS)
KNOWN_EMBEDDING_FIELDS = frozenset(EMBEDDING_FIELDS)


MAX_BEST_OF = 20


EMBEDDING_MAX_TOKENS = 300_000


LEGACY_DEFAULT_MAX_TOKENS = 16


Prompt = list[str | int | float | list[int | float]]
"""Texts, token ids or lists of token ids."""


class _Completion(msgspec.Struct):
    model: str
    prompt: str | Prompt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole = None
    n: Whole = None
    best_of: Whole = None


class _Embedding(msgspec.Struct):
    model: str
    input: str | Prompt


_completion = msgspec.json.Decoder(_Completion)


_embedding = msgspec.json.Decoder(_Embedding)


def parse_completion(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/completions body. Raises Rejection."""
    members, verbatim, text = top_level(body, KNOWN_COMPLETION_FIELDS)
    request: _Completion = decode(_completion, text)
    _check_ids(request.prompt, "prompt")
    choices = max(positive(request.n, "n", MAX_CHOICES), _best_of(request.best_of))
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


def _best_of(value: Whole) -> int:
    """Candidates of a completion. OpenAI's description takes 0, which cannot be fewer than are sent back: as absent."""
    number = optional_whole(value, "best_of")
    return positive(number or None, "best_of", MAX_BEST_OF)


def parse_embedding(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/embeddings body. Raises Rejection."""
    members, verbatim, text = top_level(body, KNOWN_EMBEDDING_FIELDS)
    request: _Embedding = decode(_embedding, text)
    if not request.input:
        raise invalid("`input` is empty: send a text, token ids, or a list of them.", "input")
    _check_ids(request.input, "input")
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
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int | float):
        return len(prompt)
    return 1


def _strings(value: Any) -> tuple[list[str], int]:
    """(texts, number of token ids)."""
    if value is None or isinstance(value, str):
        return [value or ""], 1
    texts = [item for item in value if isinstance(item, str)]
    ids = sum(len(item) if isinstance(item, list) else not isinstance(item, str) for item in value)
    return texts, ids + len(texts)


def _check_ids(value: Any, name: str) -> None:
    """Raise Rejection for a token id that is no whole number."""
    ids = value if isinstance(value, list) else []
    for some in (ids, *(item for item in ids if isinstance(item, list))):
        if float in set(map(type, some)):  # hundreds of thousands may be sent
            for one in some:
                if isinstance(one, float):
                    whole_number(one, name)
