"""Verbatim answers from sample files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import tiktoken

from sandbox.answer import Event
from sandbox.errors import ApiError, error_object
from sandbox.tokens import count_text
from sandbox.usage import Spent


class Sample(msgspec.Struct, frozen=True):
    """A sample file and what it says."""

    body: bytes
    streamed: bool
    text: str
    usage: dict[str, Any] | None
    """The last usage object in the file, None without one."""


def read_sample(directory: Path, name: str) -> Sample:
    """Load one file of the samples directory. Raises ApiError when there is none."""
    path = directory / name
    if path.name != name or not path.is_file():
        error = error_object(f"no sample named {name}", "sandbox_error", code="bad_directive")
        raise ApiError(400, error)
    body = path.read_bytes()
    streamed = path.suffix == ".sse"
    usage, text = None, ""
    for document in _documents(body, streamed=streamed):
        text += said(document)
        if isinstance(document.get("usage"), dict):
            usage = document["usage"]
    return Sample(body, streamed, text, usage)


def _documents(body: bytes, *, streamed: bool) -> Iterator[dict[str, Any]]:
    parts = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    for part in parts if streamed else [body]:
        try:
            document = json.loads(part)
        except ValueError:
            continue
        if isinstance(document, dict):
            yield document


def said(document: dict[str, Any]) -> str:
    """The output text inside one chat or legacy answer or chunk."""
    found = ""
    for choice in document.get("choices") or ():
        content = choice.get("delta") or choice.get("message") or choice
        found += content.get("content") or content.get("refusal") or content.get("text") or ""
        for call in content.get("tool_calls") or ():
            found += call["function"].get("arguments", "")
    return found


def sample_events(sample: Sample, encoding: tiktoken.Encoding) -> Iterator[Event]:
    """The file cut after each blank line; together the pieces are the file."""
    rest = sample.body
    while rest:
        end = rest.find(b"\n\n")
        data, rest = (rest, b"") if end < 0 else (rest[: end + 2], rest[end + 2 :])
        text, counted, usage = "", False, msgspec.UNSET
        for document in _documents(data, streamed=True):
            text += said(document)
            counted = "error" not in document
            if document.get("usage") is not None:
                usage = document["usage"]
        yield Event(data, text, Spent(count_text(encoding, text)), counted=counted, usage=usage)
