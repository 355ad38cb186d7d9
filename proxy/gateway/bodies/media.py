"""Bodies of the image and audio endpoints, moderations and decisions: JSON or multipart, bounded before they are sent.

Sans I/O.
"""

import re
import string
from typing import Any, NamedTuple

import msgspec

from proxy.gateway.bodies.audio_length import audio_length
from proxy.gateway.bodies.image_bounds import (
    DEFAULT_IMAGE_MODEL,
    INPUT_IMAGE_TOKENS,
    MAX_IMAGES,
    SVG_AUTHOR_TOKENS,
    image_output_bound,
    usual_image_output,
)
from proxy.gateway.bodies.inventory import (
    DECISION_FIELDS,
    IMAGE_FIELDS,
    MODERATION_FIELDS,
    SPEECH_FIELDS,
    TRANSCRIPTION_FIELDS,
    TRANSLATION_FIELDS,
    SurfaceEntry,
    named,
)
from proxy.gateway.bodies.json_body import decode, refuse_twins, top_level, whole_number
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.bodies.parsed import (
    FRAMING_TOKENS,
    ImageTool,
    Parsed,
    Reference,
    image_bound,
    positive,
    references_to,
    tenant_fields,
)
from proxy.web.rejections import invalid

IMAGE_FILES, AUDIO_FILES = frozenset(("image", "images", "mask", "markup")), frozenset(("file",))
READ_FROM_FORMS = frozenset(("stream", "response_format"))
"""Fields that cost nothing of their own, but are read to know how an answer comes."""
SVG_MEMBERS = ("svg[model]", "svg[reasoning][effort]")
SVG_AUTHOR = "gpt-6-luna"
FORM_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?([eE][+-]?[0-9])?")
DEFAULT_MODERATION_MODEL = "omni-moderation-latest"
SPEECH_MAX_CHARACTERS = 4_096
SPEECH_TOKENS_PER_LETTER = 4
"""Speech is 20 tokens a second (one per 50 ms) and seldom slower than 10 letters a second: 2; doubled for safety."""
SPEECH_TOKENS_PER_SIGN = 16
"""Digits, punctuation and control characters may be read out by their names: "backslash" takes 0.7 s, which is 14."""
SPEECH_TOKENS_PER_OTHER_BYTE = 8
"""Other scripts say more with a character, up to a syllable a byte of UTF-8."""
SPEECH_EXTRA_TOKENS = 256
LETTERS = string.ascii_letters + " "
MIN_SPEED_HUNDREDTHS = 25
AUDIO_TOKENS_PER_SECOND = 20
"""At most; usually 10 (docs/openai.md#audio-tokens)."""
USUAL_TOKENS_PER_SECOND = 10
BYTES_PER_TOKEN = 4
"""Of English text, where text is estimated and not bounded."""
USUAL_INPUT_IMAGE_TOKENS = 1_000
BY_SECOND = ("whisper", "gpt-transcribe")
"""First parts of the names of models that are billed by the second: a stream of theirs does not say how many."""
EVENTS = "events"
MAX_QUESTIONS = 400
TIMED_FORMATS = frozenset(("srt", "vtt"))
AUDIO_FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


class _Speech(msgspec.Struct):
    model: str
    input: str
    response_format: str | None = None
    stream_format: str | None = None
    speed: int | float | None = None
    instructions: str | None = None
    voice: Any = None


class _Decision(msgspec.Struct):
    model: str
    input: Any
    questions: list[Any]
    prompt_cache_options: dict[str, Any] | None = None


class _Moderation(msgspec.Struct):
    input: Any
    model: str | None = None


class _Image(NamedTuple):
    """Bounds of an image request, from JSON or from a form."""

    model: str
    prompt_bytes: int
    n: int
    output_tokens: int
    picture_tokens: int
    input_images: int
    stream: bool
    author: str
    """Text model that writes an SVG; "" for a picture."""


_speech = msgspec.json.Decoder(_Speech)
_decision = msgspec.json.Decoder(_Decision)
_moderation = msgspec.json.Decoder(_Moderation)
_anything = msgspec.json.Decoder(dict[str, Any])


def parse_image(body: bytes, content_type: bytes) -> Parsed:
    """Read a /v1/images/generations or /edits body, JSON or multipart. Raises Rejection."""
    if content_type.lower().startswith(b"multipart/"):
        return _image_form(Form(body, content_type), content_type)
    members, verbatim, text = top_level(body, frozenset(IMAGE_FIELDS))
    request = decode(_anything, text)
    refuse_twins(text)
    images = _json_images(request)
    parsed = _bounded_image(_image(request, len(images)), tenant_fields(members))
    files = [one for image in images for one in _named_file(image, "images")]
    return parsed._replace(source=body, members=members, verbatim=verbatim, references=tuple(files))


def _image_form(form: Form, content_type: bytes) -> Parsed:
    form.check(frozenset(IMAGE_FIELDS), IMAGE_FILES, _plain(IMAGE_FIELDS) - IMAGE_FILES - {"svg"})
    request: dict[str, Any] = {name: form.text(name) for name in _plain(IMAGE_FIELDS) - IMAGE_FILES - {"svg"}}
    request["svg"] = _form_svg(form)
    for name in ("n", "partial_images"):
        request[name] = _form_number(request.get(name), name)
    request["stream"], sets = form.flag("stream")
    found = _image(request, sum(len(form.files(name)) for name in IMAGE_FILES))
    fields = {name: request[name].encode() for name in ("user", "safety_identifier") if request.get(name)}
    parsed = _bounded_image(found, fields)
    return parsed._replace(source=form.body, form=form, content_type=content_type, sets={**parsed.sets, **sets})


def _json_images(request: dict[str, Any]) -> list[Any]:
    """Input images of a JSON edit."""
    given = [request[name] for name in ("image", "images", "mask", "markup") if request.get(name)]
    return [inner for value in given for inner in (value if isinstance(value, list) else [value])]


def _named_file(value: Any, param: str) -> list[Reference]:
    """File that a part of a request names by its id, if it does. Raises Rejection."""
    named = value.get("file_id") if isinstance(value, dict) else None
    return references_to("file", named, param) if named else []


def _plain(fields: dict[str, SurfaceEntry]) -> frozenset[str]:
    """Fields of a form that are read here, or decide what an answer costs: each comes once, by its own name."""
    return READ_FROM_FORMS & fields.keys() | fields.keys() - named(fields, "passes")


def _form_svg(form: Form) -> dict[str, Any] | None:
    """Read `svg[model]`, which decides a price. Raises Rejection for a member that is not known here."""
    given = [part.name for part in form.parts if part.field == "svg"]
    for name in given:
        if name not in SVG_MEMBERS:
            raise invalid(f"`{name[:60]}` is not known here: send {' or '.join(SVG_MEMBERS)}.", "svg")
    return {"model": form.text(SVG_MEMBERS[0])} if given else None


def _image(request: dict[str, Any], input_images: int) -> _Image:
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise invalid("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
    model = request.get("model") or DEFAULT_IMAGE_MODEL
    if not isinstance(model, str):
        raise invalid("`model` must be a string.", "model", "invalid_type")
    markup = request.get("markup")
    return _Image(
        model=model,
        prompt_bytes=len(prompt.encode()) + (len(markup.encode()) if isinstance(markup, str) else 0),
        n=positive(request.get("n"), "n", MAX_IMAGES),
        output_tokens=image_output_bound(request.get("size"), request.get("quality"), request.get("partial_images")),
        picture_tokens=usual_image_output(request.get("size"), request.get("quality")),
        input_images=input_images,
        stream=bool(request.get("stream")),
        author=_svg_author(request.get("output_format"), request.get("svg")),
    )


def _svg_author(output_format: Any, svg: Any) -> str:
    if output_format != "svg" and svg is None:
        return ""
    author = (svg or {}).get("model") if isinstance(svg, dict | None) else 0
    if not isinstance(author, str | None):
        raise invalid("`svg` must be an object with a `model`.", "svg", "invalid_type")
    return author or SVG_AUTHOR


def _bounded_image(found: _Image, fields: dict[str, bytes]) -> Parsed:
    author = None
    if found.author:
        author = ImageTool(found.author, found.prompt_bytes + SVG_AUTHOR_TOKENS, SVG_AUTHOR_TOKENS)
    return Parsed(
        model=found.model,
        source=b"",
        tenant_values=fields,
        stream=found.stream,
        wants_usage=True,
        input_bytes_bound=found.prompt_bytes + FRAMING_TOKENS + found.input_images * INPUT_IMAGE_TOKENS,
        choices=found.n,
        explicit_cap=found.output_tokens,
        picture_tokens=found.picture_tokens,
        estimated_input=found.prompt_bytes // BYTES_PER_TOKEN + found.input_images * USUAL_INPUT_IMAGE_TOKENS,
        image_tool=author,
        max_calls=found.n if author else None,
        finals=found.n,
    )


def parse_speech(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/audio/speech body. Raises Rejection.

    Models billed by tokens say what they used only in an event stream: it is asked for, and turned into the audio that
    the client asked for. tts-1 knows no such stream and is billed by the character.
    """
    members, verbatim, readable = top_level(body, frozenset(SPEECH_FIELDS))
    request: _Speech = decode(_speech, readable)
    if not 0 < len(request.input) <= SPEECH_MAX_CHARACTERS:
        raise invalid(f"`input` must have between 1 and {SPEECH_MAX_CHARACTERS} characters.", "input")
    if is_custom_voice(request.voice):
        raise invalid(
            "Custom voices belong to the shared account and are not available here: use a built-in voice.", "voice"
        )
    by_character = request.model.startswith("tts-1")
    wants_events = request.stream_format == "sse"
    if by_character and wants_events:
        raise invalid(
            f"`stream_format` sse is not supported by {request.model!r}.", "stream_format", "unsupported_parameter"
        )
    chosen = request.response_format or "mp3"
    if chosen not in AUDIO_FORMATS:
        raise invalid(f"`response_format` must be one of {', '.join(AUDIO_FORMATS)}.", "response_format")
    hundredths = 100 if request.speed is None else int(max(MIN_SPEED_HUNDREDTHS, min(100, request.speed * 100)))
    spoken = -(-_spoken_tokens(request.input) * 100 // hundredths) + SPEECH_EXTRA_TOKENS
    text = len(request.input.encode()) + len((request.instructions or "").encode())
    changes: dict[str, bytes] = {} if by_character or wants_events else {"stream_format": b'"sse"'}
    return Parsed(
        model=request.model,
        source=body,
        members=members,
        verbatim=verbatim,
        sets=changes,
        stream=True,
        wants_usage=True,
        input_bytes_bound=text + FRAMING_TOKENS,
        explicit_cap=0 if by_character else spoken,
        estimated_input=text // BYTES_PER_TOKEN,
        sound_format=chosen,
        characters=len(request.input) if by_character else 0,
        convert="" if wants_events else f"audio:{chosen}",
    )


def _spoken_tokens(text: str) -> int:
    """Most audio tokens that reading a text aloud takes, at its natural speed."""
    said = text.encode()
    ascii_only = said.decode("ascii", "ignore")
    letters = sum(map(ascii_only.count, LETTERS))
    signs, others = len(ascii_only) - letters, len(said) - len(ascii_only)
    return letters * SPEECH_TOKENS_PER_LETTER + signs * SPEECH_TOKENS_PER_SIGN + others * SPEECH_TOKENS_PER_OTHER_BYTE


def is_custom_voice(voice: Any) -> bool:
    """Tell whether a voice is one that somebody made in the shared account."""
    return isinstance(voice, dict) or (isinstance(voice, str) and voice.startswith("voice_"))


def parse_transcription(body: bytes, content_type: bytes) -> Parsed:
    """Read a /v1/audio/transcriptions body. Raises Rejection."""
    form = Form(body, content_type)
    form.check(frozenset(TRANSCRIPTION_FIELDS), AUDIO_FILES, _plain(TRANSCRIPTION_FIELDS))
    model, (stream, sets) = _form_model(form), form.flag("stream")
    chosen = form.text("response_format") or "json"
    convert = ""
    if stream and model.startswith(BY_SECOND):
        # whisper ignores it (docs/openai.md#audio-tokens); of the others the whole answer is asked for, which says how
        # long the sound was, and the events are ours
        stream, convert = False, "" if model.startswith("whisper") else EVENTS
        if convert:
            sets = {"stream": b"false", "response_format": b"json"}
    if not stream and not convert and chosen in ("text", "srt", "vtt"):
        # these answers say nothing of what they used: ask for one that does, and write the text ourselves
        sets["response_format"] = b"verbose_json" if model.startswith("whisper") or chosen in TIMED_FORMATS else b"json"
        convert = chosen
    return _audio(form, content_type, model)._replace(stream=stream, sets=sets, convert=convert)


def parse_translation(body: bytes, content_type: bytes) -> Parsed:
    """Read a /v1/audio/translations body. Raises Rejection. Only verbose_json tells how long the audio is."""
    form = Form(body, content_type)
    form.check(frozenset(TRANSLATION_FIELDS), AUDIO_FILES, _plain(TRANSLATION_FIELDS))
    chosen = form.text("response_format") or "json"
    changed = {} if chosen == "verbose_json" else {"response_format": b"verbose_json"}
    return _audio(form, content_type, _form_model(form))._replace(
        sets=changed, convert="" if chosen == "verbose_json" else chosen
    )


def _form_model(form: Form) -> str:
    model = form.text("model")
    if not model:
        raise invalid("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    return model


def _audio(form: Form, content_type: bytes, model: str) -> Parsed:
    files = form.files("file")
    if len(files) != 1:
        raise invalid(
            "Send exactly one `file`.", "file", "missing_required_parameter" if not files else "invalid_value"
        )
    length = audio_length(bytes(form.data(files[0])))
    prompt = sum(part.end - part.start for part in form.parts if part.filename is None)
    spoken = -(-length.most * AUDIO_TOKENS_PER_SECOND // 1_000) + FRAMING_TOKENS
    likely = length.likely * USUAL_TOKENS_PER_SECOND // 1_000
    return Parsed(
        model=model,
        source=form.body,
        form=form,
        content_type=content_type,
        wants_usage=True,
        input_bytes_bound=prompt + FRAMING_TOKENS,
        audio_tokens=spoken,
        milliseconds=length.most,
        estimated_milliseconds=length.likely,
        estimated_input=prompt // BYTES_PER_TOKEN + likely,
        estimated_audio=likely,
    )


def parse_moderation(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/moderations body. Raises Rejection."""
    members, verbatim, text = top_level(body, frozenset(MODERATION_FIELDS))
    request: _Moderation = decode(_moderation, text)
    if not request.input:
        raise invalid("`input` is empty: send a text, or a list of inputs.", "input")
    return Parsed(
        model=request.model or DEFAULT_MODERATION_MODEL,
        source=body,
        members=members,
        verbatim=verbatim,
        input_bytes_bound=len(body),
        choices=0,
        explicit_cap=0,
    )


def parse_decision(body: bytes, _content_type: bytes = b"") -> Parsed:
    """Read a /v1/decisions body. Raises Rejection. Only its input is billed."""
    members, verbatim, text = top_level(body, frozenset(DECISION_FIELDS))
    request: _Decision = decode(_decision, text)
    refuse_twins(text)
    if not 1 <= len(request.questions) <= MAX_QUESTIONS:
        raise invalid(f"`questions` must have between 1 and {MAX_QUESTIONS} entries.", "questions")
    images: list[tuple[int | None, int]] = []
    files: list[Reference] = []
    _decision_images(request.input, request.model, images, files)
    return Parsed(
        model=request.model,
        source=body,
        members=members,
        verbatim=verbatim,
        tenant_values=tenant_fields(members),
        input_bytes_bound=len(body) - sum(size for _, size in images) + FRAMING_TOKENS,
        unbounded=any(known is None for known, _ in images),
        references=tuple(files),
        image_tokens=sum(known or 0 for known, _ in images),
        estimated_input=(len(body) - sum(size for _, size in images)) // BYTES_PER_TOKEN
        + sum(known or 0 for known, _ in images),
        choices=0,
        explicit_cap=0,
        cache_write_12h=(request.prompt_cache_options or {}).get("ttl") == "12h",
    )


def _decision_images(value: Any, model: str, images: list[tuple[int | None, int]], files: list[Reference]) -> None:
    for inner in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _decision_images(inner, model, images, files)
    if isinstance(value, dict):
        if value.get("file_id"):
            files += _named_file(value, "input")
            images.append(image_bound(model, "", None))
        if isinstance(value.get("image_url"), str):
            detail = value.get("detail")
            images.append(image_bound(model, value["image_url"], detail if isinstance(detail, str) else None))


def _form_number(value: str | None, name: str) -> int | None:
    """Whole number of a form, written as in JSON. Raises Rejection."""
    if value is None:
        return None
    if not FORM_NUMBER.fullmatch(value):
        raise invalid(f"`{name}` must be a whole number.", name, "invalid_type")
    return whole_number(float(value), name)
