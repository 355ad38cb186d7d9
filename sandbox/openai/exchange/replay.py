"""Verbatim answers from sample files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import tiktoken

from sandbox.openai.exchange.answer import Event
from sandbox.openai.exchange.bill import Spent
from sandbox.openai.requests.errors import ApiError, error_object
from sandbox.openai.tokens.count import count_text


class Sample(msgspec.Struct, frozen=True):
    """Content of a sample file."""

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
    documents = _lined(body) if path.suffix == ".jsonl" else _documents(body, streamed=streamed)
    for document in documents:
        text += output_text(document)
        if isinstance(usage_in(document), dict):
            usage = usage_in(document)
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


def _lined(body: bytes) -> Iterator[dict[str, Any]]:
    for line in _lines(body):
        yield from _documents(line, streamed=False)


_DELTAS: Final = (
    "output_text.delta",
    "refusal.delta",
    "call_arguments.delta",
    "transcript.text.delta",
    "transcript.delta",
)


def output_text(document: dict[str, Any]) -> str:
    """Return the output text inside one answer, chunk or event."""
    kind = str(document.get("type", ""))
    if kind.endswith(_DELTAS):
        return str(document.get("delta", ""))
    if kind:
        return ""
    if document.get("object") == "response":
        return "".join(_item_text(item) for item in document.get("output") or ())
    text = document.get("text")
    found: str = text if isinstance(text, str) else ""
    for choice in document.get("choices") or ():
        content = choice.get("delta") or choice.get("message") or choice
        found += content.get("content") or content.get("refusal") or content.get("text") or ""
        for call in content.get("tool_calls") or ():
            found += call["function"].get("arguments", "")
    return found


def _item_text(item: dict[str, Any]) -> str:
    """Return the text of an output item of a response."""
    if item.get("type") == "function_call":
        return str(item.get("arguments", ""))
    parts = item.get("content") or () if item.get("type") == "message" else ()
    return "".join(part.get("text") or part.get("refusal") or "" for part in parts)


def usage_in(document: dict[str, Any]) -> Any:
    """Return the usage object of an answer, chunk or event; None without one."""
    response = document.get("response")
    place = response if isinstance(response, dict) else document
    return place.get("usage")


def sample_events(sample: Sample, encoding: tiktoken.Encoding, *, frames: bool = False) -> Iterator[Event]:
    """Cut the file after each blank line, so that the pieces together are the file; or take each line's JSON alone."""
    for data in _lines(sample.body) if frames else _blocks(sample.body):
        text, counted, usage = "", False, msgspec.UNSET
        for document in _documents(data, streamed=not frames):
            text += output_text(document)
            counted = "error" not in document and document.get("type") != "error"
            if usage_in(document) is not None:
                usage = usage_in(document)
        yield Event(data, text, Spent(count_text(encoding, text)), counted=counted, usage=usage)


def _blocks(rest: bytes) -> Iterator[bytes]:
    while rest:
        end = rest.find(b"\n\n")
        block, rest = (rest, b"") if end < 0 else (rest[: end + 2], rest[end + 2 :])
        yield block


def _lines(body: bytes) -> Iterator[bytes]:
    for line in body.splitlines():
        if line.startswith((b"{", b"data: {")):
            yield line.removeprefix(b"data: ")
