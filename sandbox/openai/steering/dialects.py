"""Servers that speak OpenAI's API and are not OpenAI: in what their requests, answers and errors differ.

azure     Azure's v1 API: a header of its own for the key, names of deployments for models, errors without a type, no
          service tier, a first event of a stream that carries nothing but filter results, and such in every choice.
generic   a server of open models: it refuses what it does not know (tiers, storing, stream options), its streams say
          no usage, and its errors stand at the top of their body.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

Dialect = Literal["openai", "azure", "generic"]

SNAPSHOT: Final = "2024-07-18"
"""Date of the snapshot behind every deployment, as Azure shows it."""
UNKNOWN: Final[Mapping[str, frozenset[str]]] = {
    "openai": frozenset(),
    "azure": frozenset(("service_tier",)),
    "generic": frozenset(("service_tier", "store", "stream_options", "prompt_cache_key", "safety_identifier")),
}
"""Members of a body that each refuses."""
_SAFE: Final = {"hate": {"filtered": False, "severity": "safe"}}
FILTERED: Final = (
    b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":'
    b'[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}\n\n'
)


def unknown_member(dialect: Dialect, body: Mapping[str, Any]) -> str:
    """Name the first member that a dialect does not know; "" where it knows all."""
    return next((name for name in sorted(body) if name in UNKNOWN[dialect]), "")


def error_body(dialect: Dialect, error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """Return the body of an error as a dialect writes it."""
    if dialect == "azure":
        return {"error": {"code": error.get("code") or str(status), "message": error.get("message")}}
    if dialect == "generic":
        told = {"message": error.get("message"), "type": "BadRequestError" if status < 500 else "InternalServerError"}
        return {"object": "error", **told, "param": error.get("param"), "code": status}
    return {"error": dict(error)}


class Deployments(msgspec.Struct, frozen=True):
    """Models by the names of their deployments; none where models go by their own names."""

    models: dict[str, str] = msgspec.field(default_factory=dict)

    def model_of(self, name: str) -> str | None:
        """Return the model behind a name; None where nothing is deployed under it."""
        return self.models.get(name) if self.models else name


def with_filters(payload: bytes) -> bytes:
    """Return the JSON of an answer or a chunk with Azure's filter results: in each choice, and those of a prompt."""
    try:
        said = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return payload
    if not isinstance(said, dict) or not said.get("choices"):
        return payload
    for choice in said["choices"]:
        choice["content_filter_results"] = _SAFE
    if said.get("object") == "chat.completion":
        said["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": _SAFE}]
    return msgspec.json.encode(said)
