"""The table of (method, path) pairs, as data. Adding a metered endpoint is adding a row here.

One table makes the routing, the refusals (refused.json: every other path of the API, with a reason), the documentation
page (docs/endpoints.md) and the tests. Paths are matched raw, byte for byte: no decoding, no `..`, no double slashes;
the upstream path is this table's, never built from the client's but for an id that its owner made here.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from proxy.gateway.answers.convert import AUDIO_PREFIX, AudioMeter, SpeechMeter
from proxy.gateway.answers.events import (
    IMAGE_EVENTS,
    RESPONSE_EVENTS,
    SPEECH_EVENTS,
    TRANSCRIPT_EVENTS,
    EventKind,
    EventMeter,
)
from proxy.gateway.answers.meter import StreamMeter, read_answer
from proxy.gateway.answers.report import WholeAnswer
from proxy.gateway.answers.reports import (
    audio_report,
    decision_report,
    free_report,
    image_report,
    reads,
    response_report,
)
from proxy.gateway.bodies.chat import chat_texts, parse_chat
from proxy.gateway.bodies.media import (
    parse_decision,
    parse_image,
    parse_moderation,
    parse_speech,
    parse_transcription,
    parse_translation,
)
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.bodies.prompts import completion_texts, embedding_texts, parse_completion, parse_embedding
from proxy.gateway.bodies.responses import parse_compact, parse_input_tokens, parse_response, response_texts
from proxy.web.rejections import Rejection, forbidden, invalid, not_found

Texts = tuple[list[str], int]
"""(texts that the model reads, framing tokens around them)."""


class Endpoint(NamedTuple):
    """A metered endpoint: how its requests are bounded and its answers are metered.

    `name` is OpenAI's path (for usage rows and prices); `upstream_path` is relative to base_url. `unit` says what it is
    billed by. `makes`: the kind of object that is kept in the upstream account where it stores what it makes, which is
    unless it is told otherwise (`stores`), or only when asked to. `texts` is what can be
    counted of its input; None where it is bounded but not counted. `priced_as`: the path that the price source lists
    its models under. `drains`: an answer whose client left is read to its end, because what it cost cannot be told from
    a part of it.
    """

    name: str
    upstream_path: str
    unit: str
    parse: Callable[[bytes, bytes], Parsed]
    read: Callable[[bytes], WholeAnswer]
    events: EventKind | None = None
    texts: Callable[[bytes], Texts] | None = None
    tiered: bool = False
    makes: str = ""
    stores: bool = False
    free: bool = False
    priced_as: str = ""
    drains: bool = False

    def meter(self, parsed: Parsed) -> StreamMeter:
        """Make the meter that reads a stream of this endpoint."""
        meter: StreamMeter
        if parsed.convert.startswith(AUDIO_PREFIX):
            meter = AudioMeter() if parsed.characters else SpeechMeter(parsed.convert.removeprefix(AUDIO_PREFIX))
        elif self.events is not None:
            meter = EventMeter(self.events, parsed.finals)
        else:
            meter = StreamMeter(hide_usage=not parsed.wants_usage)
        meter.sound_format, meter.reader = parsed.sound_format, self.read
        return meter


def _no_body(_body: bytes, _content_type: bytes) -> Parsed:
    raise Rejection(426, "websocket_required", "Open this as a WebSocket.")


METERED: dict[tuple[str, bytes], Endpoint] = {
    ("POST", f"/v1{row.upstream_path}".encode()): row
    for row in (
        Endpoint(
            "/v1/chat/completions",
            "/chat/completions",
            "tokens",
            parse_chat,
            read_answer,
            texts=chat_texts,
            tiered=True,
            makes="chat_completion",
        ),
        Endpoint("/v1/completions", "/completions", "tokens", parse_completion, read_answer, texts=completion_texts),
        Endpoint("/v1/embeddings", "/embeddings", "input tokens", parse_embedding, read_answer, texts=embedding_texts),
        Endpoint(
            "/v1/responses",
            "/responses",
            "tokens, hosted tool calls",
            parse_response,
            reads(response_report),
            RESPONSE_EVENTS,
            response_texts,
            tiered=True,
            makes="response",
            stores=True,
        ),
        Endpoint(
            "/v1/responses/compact",
            "/responses/compact",
            "tokens",
            parse_compact,
            reads(response_report),
            texts=response_texts,
            tiered=True,
            priced_as="/v1/responses",
        ),
        Endpoint(
            "/v1/responses/input_tokens",
            "/responses/input_tokens",
            "free",
            parse_input_tokens,
            reads(free_report),
            free=True,
            priced_as="/v1/responses",
        ),
        Endpoint(
            "/v1/images/generations",
            "/images/generations",
            "text and image tokens",
            parse_image,
            reads(image_report),
            IMAGE_EVENTS,
            drains=True,
        ),
        Endpoint(
            "/v1/images/edits",
            "/images/edits",
            "text and image tokens",
            parse_image,
            reads(image_report),
            IMAGE_EVENTS,
            drains=True,
            priced_as="/v1/images/generations",
        ),
        Endpoint(
            "/v1/audio/speech",
            "/audio/speech",
            "text and audio tokens, or characters",
            parse_speech,
            reads(audio_report),
            SPEECH_EVENTS,
            drains=True,
        ),
        Endpoint(
            "/v1/audio/transcriptions",
            "/audio/transcriptions",
            "audio tokens, or seconds",
            parse_transcription,
            reads(audio_report),
            TRANSCRIPT_EVENTS,
        ),
        Endpoint(
            "/v1/audio/translations",
            "/audio/translations",
            "seconds",
            parse_translation,
            reads(audio_report),
            priced_as="/v1/audio/transcriptions",
        ),
        Endpoint("/v1/moderations", "/moderations", "free", parse_moderation, reads(free_report), free=True),
        Endpoint("/v1/decisions", "/decisions", "input tokens", parse_decision, reads(decision_report)),
    )
}
MODELS_PATH = b"/v1/models"
MODEL_PREFIX = b"/v1/models/"
REALTIME = Endpoint(
    "/v1/realtime", "/realtime", "text, audio and image tokens", _no_body, reads(response_report), drains=True
)
REALTIME_PATH = b"/v1/realtime"
SERVED = frozenset([*(path.decode() for _, path in METERED), REALTIME.name])
"""Endpoints at which models are used."""
VOICE_PREFIX = b"/v1/realtime/"
SECRETS_PATH, CALLS_PATH = b"/v1/realtime/client_secrets", b"/v1/realtime/calls"
HANGUP_PATH = re.compile(rb"^/v1/realtime/calls/([A-Za-z0-9_-]{1,120})/hangup$")
VOICE_ROUTES = (
    ("POST", SECRETS_PATH.decode(), "free"),
    ("POST", CALLS_PATH.decode(), REALTIME.unit),
    ("POST", "/v1/realtime/calls/{call_id}/hangup", "free"),
)
"""Routes of browser voice: (method, path, what it is billed by); see calls/."""
BATCHES = Endpoint(
    "/v1/batches", "/batches", "its lines, at batch prices", _no_body, reads(response_report), drains=True
)
"""Many requests in one, each with an endpoint of its own: see batches/."""
SEARCHES = Endpoint(
    "/v1/vector_stores/{vector_store}/search", "/vector_stores", "calls of file_search", _no_body, reads(free_report)
)
"""Searches of a vector store by themselves: see vector_stores/."""
SOCKETS = (b"/v1/responses", REALTIME_PATH)
"""Paths that are also (or only) WebSockets; see sockets.py."""


def find_endpoint(method: str, raw_path: bytes, query: bytes = b"") -> Endpoint:
    """Row for a request.

    Raises Rejection: 405 for a wrong method, 403 with the reason for what OpenAI has and we refuse, 404.
    """
    endpoint = METERED.get((method, raw_path))
    if endpoint is not None:
        if b"beta=true" in query:
            raise refuse_beta()
        return endpoint
    path = raw_path.decode("ascii", "replace")[:200]
    offered = sorted(allowed for allowed, known in METERED if known == raw_path)
    if raw_path == MODELS_PATH or raw_path.startswith(MODEL_PREFIX):
        offered = ["GET"]
    if method == "GET" and raw_path == REALTIME_PATH:
        raise Rejection(426, "websocket_required", "Open this as a WebSocket.")
    if raw_path in (SECRETS_PATH, CALLS_PATH) or HANGUP_PATH.match(raw_path):
        offered = ["POST"]
    # of a path that is offered by another method only what OpenAI has there is refused by name
    reason = refusal(method, path, any_method=not offered)
    if reason:
        raise forbidden(f"{method} {path} is not offered here: {reason}.", "endpoint_not_offered")
    if offered:
        raise Rejection(405, "method_not_allowed", f"Not allowed to {method} on {path}: use {', '.join(offered)}.")
    raise not_found(
        f"The endpoint {method} {path} is not offered here. "
        f"Offered: POST {', '.join(known.decode() for _, known in METERED)}; "
        "GET /v1/models, /v1/models/{model}.",
        "endpoint_not_offered",
    )


def refuse_beta() -> Rejection:
    """Rejection of an endpoint's beta variant, which `?beta=true` asks for."""
    message = "Beta variants of endpoints run subagents, which have no price here: leave `beta` out."
    return invalid(message, "beta", "unsupported_parameter")


def refusal(method: str, path: str, *, any_method: bool = True) -> str | None:
    """Reason why a path of OpenAI's API is refused; None when OpenAI has no such path.

    `any_method`: by methods that OpenAI does not have there, too.
    """
    for pattern, methods in _refused():
        if pattern.fullmatch(path):
            return methods.get(method) or (next(iter(methods.values())) if any_method else None)
    return None


@cache
def _refused() -> list[tuple[re.Pattern[str], dict[str, str]]]:
    rows: list[dict[str, Any]] = json.loads(files("proxy.gateway").joinpath("refused.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["path"], {})[row["method"]] = row["reason"]
    return [(re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), methods) for path, methods in found.items()]
