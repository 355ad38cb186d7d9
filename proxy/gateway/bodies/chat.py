"""Request bodies: what we read of them, what we refuse in them, what we add. Sans I/O.

A body goes upstream byte for byte, except for members we must set: those are spliced in right after the
opening brace; only where a member of the client's must be replaced are the top-level members joined anew
(their values still byte for byte). Duplicate members are refused: two parsers could see two requests.
"""

import json
import re
from typing import Any, NamedTuple

import msgspec

from proxy.gateway.bodies.image_tokens import image_tokens, size_of_data_url
from proxy.gateway.bodies.multipart import Form
from proxy.web.rejections import Rejection, invalid

CHAT_FIELDS = frozenset(
    "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages "
    "metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier "
    "stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity "
    "web_search_options".split()
)
COMPLETION_FIELDS = frozenset(
    "best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed stop stream "
    "stream_options suffix temperature top_p user".split()
)
EMBEDDING_FIELDS = frozenset("dimensions encoding_format input model user".split())
SAMPLED_TOOLS = frozenset({"function", "custom"})
TENANT_FIELDS = ("user", "safety_identifier", "prompt_cache_key")

FRAMING_TOKENS = 64
"""Slack over the byte bound for what OpenAI adds around messages and tools (3 a message, 3 priming, 9 + for tools):
JSON's own framing of a message is longer than that already."""
AUDIO_BYTES_PER_TOKEN = 50
"""About 10 tokens a second (docs/openai.md#audio-tokens) of at least 1,000 bytes a second (MP3 at 8 kbit/s) is 100.

Halved for safety.
"""
MAX_CHOICES = 128
MAX_BEST_OF = 20
EMBEDDING_MAX_TOKENS = 300_000
LEGACY_DEFAULT_MAX_TOKENS = 16


class _Url(msgspec.Struct):
    url: str = ""
    detail: str | None = None


class _Audio(msgspec.Struct):
    data: str = ""


class _File(msgspec.Struct):
    file_id: str | None = None
    file_data: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Url | None = None
    input_audio: _Audio | None = None
    file: _File | None = None


class _AudioReference(msgspec.Struct):
    id: str | None = None


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None
    custom: Any = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    refusal: str | None = None
    audio: _AudioReference | None = None


class _Tool(msgspec.Struct):
    type: str


class _CacheOptions(msgspec.Struct):
    ttl: str | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    service_tier: str | None = None
    store: bool | None = None
    modalities: list[str] | None = None
    prediction: msgspec.Raw = msgspec.Raw()
    prompt_cache_options: _CacheOptions | None = None
    prompt_cache_retention: str | None = None
    web_search_options: msgspec.Raw = msgspec.Raw()
    tools: list[_Tool] | None = None
    moderation: msgspec.Raw = msgspec.Raw()


class _Completion(msgspec.Struct):
    model: str
    prompt: str | list[str | int | list[int]] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]


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
    """

    model: str
    source: bytes
    members: dict[str, msgspec.Raw] = {}
    verbatim: bool = True
    form: Form | None = None
    content_type: bytes = b"application/json"
    sets: dict[str, bytes] = {}
    tenant_values: dict[str, bytes] = {}
    stream: bool = False
    wants_usage: bool = False
    keeps_stream_options: bytes = b""
    asked_tier: str | None = None
    input_bytes_bound: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0
    unbounded: bool = False
    inputs: int = 1
    choices: int = 1
    explicit_cap: int | None = None
    cap_field: str | None = None
    output_bound: int | None = None
    extra_output: int = 0
    audio_output: bool = False
    cache_write_12h: bool = False
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


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_embedding = msgspec.json.Decoder(_Embedding)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_chat(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/chat/completions body. Raises Rejection."""
    members, verbatim = top_level(body, CHAT_FIELDS)
    request = decode(_chat, body)
    if not request.messages:
        raise invalid("`messages` is empty: send at least one message.", "messages")
    for tool in request.tools or ():
        if tool.type not in SAMPLED_TOOLS:
            raise invalid(f"Tool type {tool.type!r} is not available here: use function or custom tools.", "tools")
    if request.moderation and bytes(request.moderation) != b"null":
        raise invalid(
            "`moderation` is not available through this proxy: leave it out.", "moderation", "unsupported_parameter"
        )
    media = _media(request.messages, request.model)
    caps = [cap for cap in (request.max_completion_tokens, request.max_tokens) if cap is not None]
    ttl = request.prompt_cache_options.ttl if request.prompt_cache_options else None
    prediction = bytes(request.prediction)
    return Parsed(
        model=request.model,
        members=members,
        source=body,
        verbatim=verbatim,
        stream=bool(request.stream),
        wants_usage=bool(request.stream_options and request.stream_options.include_usage),
        asked_tier=request.service_tier,
        input_bytes_bound=len(body) - media.data_bytes + FRAMING_TOKENS,
        audio_tokens=media.audio_tokens,
        image_tokens=media.image_tokens,
        unbounded=media.unbounded,
        tenant_values=tenant_fields(members),
        choices=positive(request.n, "n", MAX_CHOICES),
        explicit_cap=cap_of(max(caps), "max_completion_tokens") if caps else None,
        cap_field="max_completion_tokens",
        # rejected prediction tokens are billed as output (docs/openai.md#usage-fields)
        extra_output=len(prediction) if prediction and prediction != b"null" else 0,
        audio_output="audio" in (request.modalities or ()),
        cache_write_12h=ttl == "12h" or request.prompt_cache_retention not in (None, "in_memory"),
        web_search=bool(request.web_search_options) and bytes(request.web_search_options) != b"null",
        store=request.store,
        keeps_stream_options=_other_stream_options(members),
    )


def parse_completion(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/completions body. Raises Rejection."""
    members, verbatim = top_level(body, COMPLETION_FIELDS)
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
        keeps_stream_options=_other_stream_options(members),
    )


def parse_embedding(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/embeddings body. Raises Rejection."""
    members, verbatim = top_level(body, EMBEDDING_FIELDS)
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


def chat_texts(body: bytes) -> tuple[list[str], int]:
    """Every text of a chat that its model reads, and the framing tokens around them (docs/openai.md#counting-text).

    Tools and response schemas count as their JSON, which is longer than the form OpenAI gives them.
    """
    request = decode(_chat, body)
    texts: list[str] = []
    framing = 3
    for message in request.messages:
        framing += 3 + bool(message.name) + len(message.tool_calls or ()) * 3
        texts += [message.role, message.name or "", *_message_texts(message)]
    for name in ("tools", "functions", "response_format", "tool_choice", "prediction"):
        raw = bytes(_members.decode(body).get(name, b""))
        if raw:
            texts.append(raw.decode("utf-8", "replace"))
            framing += 16 + raw.count(b'"function"') * 8
    return texts, framing


def _message_texts(message: _Message) -> list[str]:
    found = [message.content] if isinstance(message.content, str) else []
    if isinstance(message.content, list):
        found += [part.text or part.refusal or "" for part in message.content]
    for call in message.tool_calls or ():
        found += [call.function.name, call.function.arguments] if call.function else [json.dumps(call.custom)]
    if message.function_call is not None:
        found += [message.function_call.name, message.function_call.arguments]
    return [*found, message.refusal] if message.refusal else found


class _Media(NamedTuple):
    image_tokens: int
    audio_tokens: int
    data_bytes: int
    unbounded: bool


def _media(messages: list[_Message], model: str) -> _Media:
    """Images, audio and files in messages. Raises Rejection for references into the shared account."""
    tokens = audio = data = 0
    unbounded = False
    for message in messages:
        if message.audio and message.audio.id:
            raise invalid("`audio.id` refers to an object of the shared account: send the text instead.", "messages")
        if not isinstance(message.content, list):
            continue
        for part in message.content:
            if part.image_url:
                known, size = image_bound(model, part.image_url.url, part.image_url.detail)
                unbounded, tokens, data = unbounded or known is None, tokens + (known or 0), data + size
            elif part.input_audio:
                audio += len(part.input_audio.data) * 3 // 4 // AUDIO_BYTES_PER_TOKEN + 16
                data += len(part.input_audio.data)
            elif part.file:
                if part.file.file_id:
                    raise no_such_file(part.file.file_id, "messages")
                unbounded = True
    return _Media(tokens, audio, data, unbounded)


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
    """The identifiers that a client gave, to be replaced by this tenant's own (see tenants.py)."""
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
    """The sizes do not add up to compact JSON: there are blanks, or members given twice."""
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
    """A number from 1 to `most`; 1 when absent. Raises Rejection."""
    if value is None:
        return 1
    if not 1 <= value <= most:
        raise invalid(f"`{name}` must be between 1 and {most}.", name)
    return value


def cap_of(value: int, name: str) -> int:
    """An output cap of at least 1. Raises Rejection."""
    if value < 1:
        raise invalid(f"`{name}` must be at least 1.", name)
    return value


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


def _other_stream_options(members: dict[str, msgspec.Raw]) -> bytes:
    """The client's stream_options besides include_usage, as JSON members (`,"a":1`), to be kept."""
    raw = bytes(members.get("stream_options", b""))
    if not raw or raw == b"null":
        return b""
    options = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return b"".join(b",%s:%s" % (msgspec.json.encode(k), bytes(v)) for k, v in options.items() if k != "include_usage")
