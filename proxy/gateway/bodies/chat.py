"""Bodies of chat completions: the fields we read of them, what we refuse, the bounds of what they carry. Sans I/O."""

import json
from typing import Any

import msgspec

from billing.money.usage import Value
from proxy.gateway.bodies.inventory import CHAT_FIELDS, CHAT_TOOLS
from proxy.gateway.bodies.json_body import UNREADABLE, Whole, decode, has_twins, refuse_twins, top_level, whole_number
from proxy.gateway.bodies.parsed import (
    FRAMING_TOKENS,
    MAX_CHOICES,
    Parsed,
    Reference,
    StreamOptions,
    cap_of,
    image_bound,
    moderator_of,
    other_stream_options,
    positive,
    sound_bound,
    tenant_fields,
)
from proxy.gateway.bodies.sound import DEFAULT_FORMAT
from proxy.web.rejections import invalid

KNOWN_FIELDS = frozenset(CHAT_FIELDS)

READ_HERE = ("audio", "moderation", "prompt_cache_options")
"""Members with members of their own that decide what a request costs."""


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


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole = None
    max_completion_tokens: Whole = None
    n: Whole = None
    service_tier: str | None = None
    store: bool | None = None
    modalities: list[str] | None = None
    prediction: msgspec.Raw = msgspec.Raw()
    prompt_cache_options: _CacheOptions | None = None
    prompt_cache_retention: str | None = None
    web_search_options: msgspec.Raw = msgspec.Raw()
    audio: Any = None
    tools: list[_Tool] | None = None
    moderation: Any = None


_chat = msgspec.json.Decoder(_Chat)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_rows = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def parse_chat(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/chat/completions body. Raises Rejection."""
    members, verbatim, text = top_level(body, KNOWN_FIELDS)
    request: _Chat = decode(_chat, text)
    if not request.messages:
        raise invalid("`messages` is empty: send at least one message.", "messages")
    for tool in request.tools or ():
        if tool.type not in CHAT_TOOLS:
            raise invalid(f"Tool type {tool.type!r} is not available here: use function or custom tools.", "tools")
    media = _media(request.messages, request.model)
    for name in (
        *(("messages",) if media.any or _may_hide(members["messages"], request.messages, text) else ()),
        *(name for name in READ_HERE if name in members),
    ):
        refuse_twins(bytes(members[name]))
    caps = [whole_number(cap, name) for name, cap in _caps(request) if cap is not None]
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
        references=tuple(media.files),
        tenant_values=tenant_fields(members),
        choices=positive(request.n, "n", MAX_CHOICES),
        explicit_cap=cap_of(max(caps), "max_completion_tokens") if caps else None,
        cap_field="max_completion_tokens",
        # rejected prediction tokens are billed as output (docs/openai.md#usage-fields)
        extra_output=len(prediction) if prediction and prediction != b"null" else 0,
        audio_output="audio" in (request.modalities or ()),
        sound_format=_sound_format(request.audio),
        cache_write_12h=ttl == "12h",
        keeps_cache=request.prompt_cache_retention not in (None, "in_memory"),
        web_search=bool(request.web_search_options) and bytes(request.web_search_options) != b"null",
        store=request.store,
        keeps_stream_options=other_stream_options(members),
        moderator=moderator_of(request.moderation),
    )


def _may_hide(messages: msgspec.Raw, read: list[_Message], text: bytes) -> bool:
    """Tell whether anything but text may stand in messages before a text of the same name: a parser may take that.

    Mostly their size tells that no name is given twice. Else names are searched for in `text`, the body.
    """
    try:
        rows = _rows.decode(messages)
        if _is_compact(rows, messages) and all(
            _is_compact(_rows.decode(row["content"]), row["content"])
            for row, message in zip(rows, read, strict=True)
            if isinstance(message.content, list)
        ):
            return False
    except UNREADABLE:
        """Halves of surrogate pairs: they are as they were sent."""
    if b'image_url"' in text or b'audio"' in text or b'"file"' in text:  # `audio` and `input_audio`
        return True
    return b"\\u00" in text and (b"\\u006" in text or b"\\u007" in text or b"\\u005" in text)  # letters, escaped


def _is_compact(rows: list[dict[str, msgspec.Raw]], raw: msgspec.Raw) -> bool:
    """Tell whether objects are all that a list has, as compact as JSON can be: a blank, an escape in a name, a member
    given twice would take more.
    """
    size = 1 + len(rows)
    for row in rows:
        size += 1 + 4 * len(row) + sum(map(len, row)) + sum(map(len, row.values()))
    return size == len(raw)


def _caps(request: _Chat) -> tuple[tuple[str, Whole], ...]:
    return ("max_completion_tokens", request.max_completion_tokens), ("max_tokens", request.max_tokens)


def _sound_format(audio: Any) -> str:
    chosen = audio.get("format") if isinstance(audio, dict) else None
    return chosen if isinstance(chosen, str) else DEFAULT_FORMAT


def chat_texts(body: bytes) -> tuple[list[str], int]:
    """Every text of a chat that its model reads, and the framing tokens around them (docs/openai.md#counting-text).

    Tools and response schemas count as their JSON, which is longer than the form OpenAI gives them.
    """
    if has_twins(body):  # which of two members is read, nobody knows: all of it counts
        return [body.decode("utf-8", "replace")], FRAMING_TOKENS
    request: _Chat = decode(_chat, body)
    members = decode(_members, body)
    texts: list[str] = []
    framing = 3
    for message in request.messages:
        framing += 3 + bool(message.name) + len(message.tool_calls or ()) * 3
        texts += [message.role, message.name or "", *_message_texts(message)]
    for name in ("tools", "functions", "response_format", "tool_choice", "prediction"):
        raw = bytes(members.get(name, b""))
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


class _Media(Value, frozen=True):
    image_tokens: int
    audio_tokens: int
    data_bytes: int
    unbounded: bool
    files: list[Reference]

    @property
    def any(self) -> bool:
        """True where there is anything but text."""
        return bool(self.data_bytes or self.image_tokens or self.audio_tokens or self.unbounded or self.files)


def _media(messages: list[_Message], model: str) -> _Media:
    """Images, audio and files in messages. Earlier speech is bounded by what is known of it (see Tenants.context)."""
    tokens = audio = data = 0
    unbounded, files = False, list[Reference]()
    for message in messages:
        if message.audio and message.audio.id:
            files.append(Reference("audio", message.audio.id, "messages"))
        if not isinstance(message.content, list):
            continue
        for part in message.content:
            if part.image_url:
                known, size = image_bound(model, part.image_url.url, part.image_url.detail)
                unbounded, tokens, data = unbounded or known is None, tokens + (known or 0), data + size
            if part.input_audio:  # whatever its type says, and whatever else it holds
                audio += sound_bound(len(part.input_audio.data))
                data += len(part.input_audio.data)
            if part.file:
                if part.file.file_id:
                    files.append(Reference("file", part.file.file_id, "messages"))
                unbounded = True
    return _Media(tokens, audio, data, unbounded, files)
