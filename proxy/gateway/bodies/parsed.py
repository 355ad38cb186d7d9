"""A request's body as pricing and forwarding need it, and how every body is read. Sans I/O.

A body goes upstream byte for byte, except for members we must set. Duplicate members are refused: two parsers could see
two requests.
"""

import json
import re
from typing import Any, NamedTuple

import msgspec

from proxy.gateway.bodies.image_tokens import image_tokens, size_of_data_url
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.bodies.sound import DEFAULT_FORMAT
from proxy.web.rejections import Rejection, invalid

TENANT_FIELDS = ("user", "safety_identifier", "prompt_cache_key")


FRAMING_TOKENS = 64
"""Slack over the byte bound for what OpenAI adds around messages and tools (3 a message, 3 priming, 9 + for tools):
JSON's own framing of a message is longer than that already."""


class StreamOptions(msgspec.Struct):
    """A client's `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Reference(NamedTuple):
    """An object of the shared upstream account that a request names; its owner must be the one who asks."""

    kind: str
    id: str
    param: str


class ImageTool(NamedTuple):
    """The model behind the image generation tool, and the most that one call of it can use."""

    model: str
    input_tokens: int
    output_tokens: int


class Parsed(NamedTuple):
    """A request as pricing and forwarding need it. Token figures are upper bounds.

    `sets` are members that we set whatever else happens, `tenant_values` are those that we replace by the tenant's own;
    `form` is there instead of `members` for multipart bodies. `convert` names what the upstream's answer is turned
    into. `finals` is how many closing events its stream has.

    `cache_write_12h`: its cache writes were asked to live that long; `keeps_cache`: they may, only the answer knows.

    What is estimated and not bounded is what is charged where an answer says nothing: nobody pays a bound.
    `estimated_audio` is a part of `estimated_input`; `picture_tokens` is one drawn picture, `sound_format` the one that
    speech comes in. `picture_extra`: what its pictures may take more of when another model reads them later.
    """

    model: str
    source: bytes
    members: dict[str, msgspec.Raw] = {}  # noqa: RUF012 - never changed: a default of a NamedTuple
    verbatim: bool = True
    form: Form | None = None
    content_type: bytes = b"application/json"
    sets: dict[str, bytes] = {}  # noqa: RUF012 - never changed: a default of a NamedTuple
    tenant_values: dict[str, bytes] = {}  # noqa: RUF012 - never changed: a default of a NamedTuple
    stream: bool = False
    wants_usage: bool = False
    keeps_stream_options: bytes = b""
    asked_tier: str | None = None
    input_bytes_bound: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0
    estimated_input: int | None = None
    estimated_audio: int = 0
    estimated_milliseconds: int | None = None
    picture_tokens: int = 0
    picture_extra: int = 0
    sound_format: str = DEFAULT_FORMAT
    unbounded: bool = False
    inputs: int = 1
    choices: int = 1
    explicit_cap: int | None = None
    cap_field: str | None = None
    output_bound: int | None = None
    extra_output: int = 0
    audio_output: bool = False
    cache_write_12h: bool = False
    keeps_cache: bool = False
    web_search: bool = False
    store: bool | None = None
    milliseconds: int = 0
    characters: int = 0
    tools: frozenset[str] = frozenset()
    max_calls: int | None = None
    image_tool: ImageTool | None = None
    references: tuple[Reference, ...] = ()
    finals: int = 1
    convert: str = ""
    background: bool = False


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def image_bound(model: str, url: str, detail: str | None) -> tuple[int | None, int]:
    """(tokens at most of one image, None when only its model's general bound is known.

    Bytes that are data and no text).
    """
    if not url.startswith("data:"):
        return image_tokens(model, None, detail), 0
    return image_tokens(model, size_of_data_url(url), detail), len(url)


def no_such_file(file_id: str, param: str) -> Rejection:
    """Files cannot be made through us, so no file id is anyone's here."""
    return Rejection(404, "file_not_found", f"No such file: {file_id[:100]!r}. Send `file_data`.", param=param)


def tenant_fields(members: dict[str, msgspec.Raw]) -> dict[str, bytes]:
    """Find the identifiers that a client gave, to be replaced by this tenant's own (see tenants.py)."""
    return {name: bytes(members[name]) for name in TENANT_FIELDS if name in members and bytes(members[name]) != b"null"}


def top_level(body: bytes, known: frozenset[str]) -> tuple[dict[str, msgspec.Raw], bool]:
    """(members, whether splicing after the first brace is enough). Raises Rejection."""
    try:
        members = _members.decode(body)
    except msgspec.ValidationError:
        raise invalid("The request body must be a JSON object.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(
            f"The request body is not valid JSON ({error}): send one JSON object.", code="invalid_json"
        ) from None
    unknown = members.keys() - known
    if unknown:
        name = min(unknown)
        raise invalid(f"Unrecognized request argument supplied: {name}. Remove it.", name, "unknown_parameter")
    compact = 1 + sum(len(name) + 4 + len(raw) for name, raw in members.items())
    if compact != len(body) and len(body.strip()) != compact:
        _refuse_duplicates(body)
    return members, bool(members)


def _refuse_duplicates(body: bytes) -> None:
    """Look closer when sizes do not add up to compact JSON: there are blanks, or members given twice."""
    try:
        pairs = json.loads(body, object_pairs_hook=lambda found: found)
    except (ValueError, RecursionError):
        raise invalid("The request body is not valid JSON: send one JSON object.", code="invalid_json") from None
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid(f"The member `{twice}` is given twice: send it once.", twice, "duplicate_parameter")


def decode(decoder: Any, body: bytes) -> Any:
    """Decode a body; msgspec's complaint becomes OpenAI's. Raises Rejection."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        param = where.rstrip("`").lstrip(".").partition("[")[0].partition(".")[0]
        missing = re.search(r"required field `(\w+)`", reason)
        if missing:
            param = param or missing[1]
            raise invalid(f"Missing required parameter: {missing[1]!r}.", param, "missing_required_parameter") from None
        raise invalid(f"Invalid value for {param or 'the body'!r}: {reason}.", param or None, "invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(
            f"The request body is not valid JSON ({error}): send one JSON object.", code="invalid_json"
        ) from None


def positive(value: int | None, name: str, most: int) -> int:
    """Check a number from 1 to `most`; 1 when absent. Raises Rejection."""
    if value is None:
        return 1
    if not 1 <= value <= most:
        raise invalid(f"`{name}` must be between 1 and {most}.", name)
    return value


def cap_of(value: int, name: str) -> int:
    """Output cap of at least 1. Raises Rejection."""
    if value < 1:
        raise invalid(f"`{name}` must be at least 1.", name)
    return value


def other_stream_options(members: dict[str, msgspec.Raw]) -> bytes:
    """Client's stream_options besides include_usage, as JSON members (`,"a":1`), to be kept."""
    raw = bytes(members.get("stream_options", b""))
    if not raw or raw == b"null":
        return b""
    options = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return b"".join(b",%s:%s" % (msgspec.json.encode(k), bytes(v)) for k, v in options.items() if k != "include_usage")


MAX_CHOICES = 128
