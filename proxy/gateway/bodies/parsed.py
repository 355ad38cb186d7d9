"""A request's body as pricing and forwarding need it. Sans I/O.

A body goes upstream byte for byte, except for members we must set. Duplicate members are refused: two parsers could see
two requests.
"""

from typing import Any, NamedTuple

import msgspec

from billing.ledger.objects.upstream_objects import OwnedObject
from billing.money.usage import Value
from proxy.gateway.bodies.image_tokens import image_tokens, size_of_data_url
from proxy.gateway.bodies.json_body import whole_number
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.bodies.sound import DEFAULT_FORMAT
from proxy.web.rejections import invalid

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


class StoredContext(NamedTuple):
    """Part of a request that the stored objects it refers to bring into it.

    `tokens` of its input, None when one of them has no known size; `tools` that run at OpenAI and stand in their items;
    `conversation`: the one that the request adds to, as it was seen; `sound`: tokens of earlier speech; `chunk_tokens`:
    of the largest piece of a file in the vector stores that it names.
    """

    tokens: int | None = 0
    tools: frozenset[str] = frozenset()
    conversation: OwnedObject | None = None
    sound: int = 0
    chunk_tokens: int = 0
    upstreams: frozenset[str] = frozenset()
    """Names (as in records) of where these objects are kept."""


NO_CONTEXT = StoredContext()
IMAGE_TOOL = "image_generation"


def carried_tools(hosted: frozenset[str], image: "ImageTool | None", usual: int) -> frozenset[str]:
    """Hosted tools as they are kept with a stored object: names, the image tool's with `=model=most tokens=usual`."""
    if image is None:
        return hosted
    return hosted - {IMAGE_TOOL} | {f"{IMAGE_TOOL}={image.model}={image.output_tokens}={usual}"}


def with_carried(parsed: "Parsed", carried: frozenset[str]) -> "Parsed":
    """Request with the hosted tools of what it builds on: a model that reads them may call them as if sent now.

    Of an image tool one entry a model is kept, with the most that any of them draws (see `image_tools`).
    """
    names = {one.partition("=")[0] for one in carried}
    most: dict[str, tuple[int, int]] = {}
    plain = set()
    for one in parsed.carried | carried:
        name, *said = one.split("=")
        if name == IMAGE_TOOL and len(said) == 3:
            before = most.get(said[0], (0, 0))
            most[said[0]] = max(before[0], int(said[1])), max(before[1], int(said[2]))
        else:
            plain.add(one)
    images = {f"{IMAGE_TOOL}={model}={tokens}={usual}" for model, (tokens, usual) in most.items()}
    return parsed._replace(tools=parsed.tools | names, carried=frozenset(plain | images))


def image_tools(parsed: "Parsed", tokens: int) -> list[tuple["ImageTool", int]]:
    """Image tools that a request can call, its own and those that it reads, each with the tokens of a usual picture.

    `tokens`: of what it builds on, which a picture may be drawn by.
    """
    found = [] if parsed.image_tool is None else [(parsed.image_tool, parsed.picture_tokens)]
    for one in sorted(parsed.carried):
        name, *said = one.split("=")
        if name == IMAGE_TOOL and len(said) == 3:
            found.append((ImageTool(said[0], parsed.input_bytes_bound + tokens, int(said[1])), int(said[2])))
    return found


class ImageTool(NamedTuple):
    """The model behind the image generation tool, and the most that one call of it can use."""

    model: str
    input_tokens: int
    output_tokens: int


class Parsed(Value, frozen=True):
    """A request as pricing and forwarding need it. Token figures are upper bounds.

    `sets` are members that we set whatever else happens, `tenant_values` are those that we replace by the tenant's own;
    `form` is there instead of `members` for multipart bodies. `convert` names what the upstream's answer is turned
    into. `finals` is how many closing events its stream has.

    `conversation`: what it adds to; `carried`: hosted tools in its items, which stay in what is stored.
    `search_results`: pieces of files that one call of a file search may find.

    `moderator`: the model that its texts are checked by, "" for none; `compact_at`: input tokens from which on its
    context is compacted while it is answered, None for never; `truncates`: the oldest is left out of what is too long.

    `cache_write_12h`: its cache writes were asked to live that long; `keeps_cache`: they may, only the answer knows.

    `encrypted_tokens`: of what only OpenAI can read; it is held for, and charged by reports only.
    What is estimated and not bounded is what is charged where an answer says nothing: nobody pays a bound.
    `estimated_audio` is a part of `estimated_input`; `picture_tokens` is one drawn picture, `sound_format` the one that
    speech comes in. `picture_extra`: what its pictures may take more of when another model reads them later.
    """

    model: str
    source: bytes
    members: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)
    verbatim: bool = True
    form: Form | None = None
    content_type: bytes = b"application/json"
    sets: dict[str, bytes] = msgspec.field(default_factory=dict)
    tenant_values: dict[str, bytes] = msgspec.field(default_factory=dict)
    stream: bool = False
    wants_usage: bool = False
    keeps_stream_options: bytes = b""
    asked_tier: str | None = None
    input_bytes_bound: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0
    encrypted_tokens: int = 0
    estimated_input: int | None = None
    estimated_audio: int = 0
    estimated_milliseconds: int | None = None
    picture_tokens: int = 0
    picture_extra: int = 0
    search_results: int = 0
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
    conversation: str = ""
    carried: frozenset[str] = frozenset()
    finals: int = 1
    convert: str = ""
    background: bool = False
    moderator: str = ""
    compact_at: int | None = None
    truncates: bool = False


def image_bound(model: str, url: str, detail: str | None) -> tuple[int | None, int]:
    """(tokens at most of one image, None when only its model's general bound is known.

    Bytes that are data and no text).
    """
    if not url.startswith("data:"):
        return image_tokens(model, None, detail), 0
    return image_tokens(model, size_of_data_url(url), detail), len(url)


AUDIO_BYTES_PER_TOKEN = 50
"""About 10 tokens a second (docs/openai.md#audio-tokens) of at least 1,000 bytes a second (MP3 at 8 kbit/s) is 100.

Halved for safety.
"""


def sound_bound(encoded: int) -> int:
    """Tokens at most of sound in so many characters of base64."""
    return encoded * 3 // 4 // AUDIO_BYTES_PER_TOKEN + 16


def references_to(kind: str, ids: Any, param: str) -> list[Reference]:
    """Objects that a request names by id, one or a list. Raises Rejection for what is no id."""
    found = ids if isinstance(ids, list) else [ids]
    if not all(isinstance(one, str) for one in found):
        raise invalid(f"The id of a {kind.replace('_', ' ')} must be a string.", param, "invalid_type")
    return [Reference(kind, one, param) for one in found]


def tenant_fields(members: dict[str, msgspec.Raw]) -> dict[str, bytes]:
    """Find the identifiers that a client gave, to be replaced by this tenant's own (see tenants.py)."""
    return {name: bytes(members[name]) for name in TENANT_FIELDS if name in members and bytes(members[name]) != b"null"}


def positive(value: Any, name: str, most: int) -> int:
    """Check a whole number from 1 to `most`; 1 when absent. Raises Rejection."""
    number = 1 if value is None else whole_number(value, name)
    if not 1 <= number <= most:
        raise invalid(f"`{name}` must be between 1 and {most}.", name)
    return number


def cap_of(value: Any, name: str) -> int:
    """Output cap, a whole number of at least 1. Raises Rejection."""
    number = whole_number(value, name)
    if number < 1:
        raise invalid(f"`{name}` must be at least 1.", name)
    return number


def other_stream_options(members: dict[str, msgspec.Raw]) -> bytes:
    """Client's stream_options besides include_usage, as JSON members (`,"a":1`), to be kept."""
    raw = bytes(members.get("stream_options", b""))
    if not raw or raw == b"null":
        return b""
    options = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return b"".join(b",%s:%s" % (msgspec.json.encode(k), bytes(v)) for k, v in options.items() if k != "include_usage")


def moderator_of(moderation: Any) -> str:
    """Model that a request's `moderation` names; "" without one. Raises Rejection."""
    if moderation is None:
        return ""
    model = moderation.get("model") if isinstance(moderation, dict) else None
    if not isinstance(model, str) or not model:
        raise invalid("`moderation` must be an object with a `model`.", "moderation", "invalid_type")
    return model


MAX_CHOICES = 128
