"""Which (method, path) pairs exist, as data. Adding a metered endpoint is adding a row here.

Everything else under /v1 is refused before any upstream call. Paths are matched raw, byte for byte: no
decoding, no `..`, no double slashes; the upstream path is this table's, never built from the client's.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from proxy.bodies import Parsed, parse_chat, parse_completion, parse_embedding
from proxy.rejections import Rejection, not_found


class Endpoint(NamedTuple):
    """A metered endpoint. `name` is OpenAI's path (for usage rows); `upstream_path` is relative to base_url."""

    name: str
    upstream_path: str
    mode: Literal["chat", "completion", "embedding"]
    parse: Callable[[bytes], Parsed]
    tiered: bool
    streams: bool


METERED: dict[tuple[str, bytes], Endpoint] = {
    ("POST", b"/v1/chat/completions"): Endpoint("/v1/chat/completions", "/chat/completions", "chat", parse_chat, True, True),
    ("POST", b"/v1/completions"): Endpoint("/v1/completions", "/completions", "completion", parse_completion, False, True),
    ("POST", b"/v1/embeddings"): Endpoint("/v1/embeddings", "/embeddings", "embedding", parse_embedding, False, False),
}
MODELS_PATH = b"/v1/models"
MODEL_PREFIX = b"/v1/models/"


def find_endpoint(method: str, raw_path: bytes) -> Endpoint:
    """The row for a request. Raises Rejection (404, or 405 when only the method is wrong)."""
    endpoint = METERED.get((method, raw_path))
    if endpoint is not None:
        return endpoint
    path = raw_path.decode("ascii", "replace")[:200]
    offered = sorted(allowed for allowed, known in METERED if known == raw_path)
    if raw_path == MODELS_PATH or raw_path.startswith(MODEL_PREFIX):
        offered = ["GET"]
    if offered:
        raise Rejection(405, "method_not_allowed", f"Not allowed to {method} on {path}: use {', '.join(offered)}.")
    raise not_found(
        f"The endpoint {method} {path} is not offered here. Offered: POST /v1/chat/completions, /v1/completions, "
        "/v1/embeddings; GET /v1/models, /v1/models/{model}.",
        "endpoint_not_offered",
    )
