"""POST /v1/images/generations and /v1/images/edits."""

import base64
import binascii
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sandbox.openai.exchange.answer import Answer, named_event
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.typed_events import TypedEvent, typed_stream
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import (
    ANY,
    ARRAY,
    FLAG,
    OBJECT,
    TEXT,
    Field,
    Fields,
    check_fields,
    from_form,
    missing,
    one_of,
    wrong_type,
)
from sandbox.openai.tokens.count import PromptCount, count_text
from sandbox.openai.tokens.generated_images import (
    PNG_BASE64,
    SVG_BASE64,
    chosen_quality,
    chosen_size,
    generated_image_tokens,
    uploaded_image_tokens,
)
from sandbox.openai.tokens.prompt_media import raw_image_size

_GENERATE: Final[Fields] = {
    "prompt": Field("string", required=True, longest=32_000),
    "model": TEXT,
    "background": one_of("transparent", "opaque", "auto"),
    "complexity": one_of("low", "medium", "high"),
    "frame_count": Field("integer", 1),
    "frame_duration_ms": Field("integer", 1),
    "moderation": one_of("low", "auto"),
    "n": Field("integer", 1, 10),
    "output_compression": Field("integer", 0, 100),
    "output_format": one_of("png", "webp", "jpeg", "gif", "svg"),
    "partial_images": Field("integer", 0, 3),
    "quality": one_of("low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"),
    "response_format": one_of("url", "b64_json"),
    "safety_identifier": TEXT,
    "size": TEXT,
    "stream": FLAG,
    "style": one_of("vivid", "natural"),
    "svg": OBJECT,
    "user": TEXT,
}
_EDIT: Final[Fields] = _GENERATE | {
    "image": ANY,
    "images": ARRAY,
    "input_fidelity": one_of("high", "low"),
    "markup": ANY,
    "mask": ANY,
}
_MAX_IMAGES: Final = 16
_SVG_USAGE: Final = {"input_tokens": 1300, "output_tokens": 2200, "reasoning_tokens": 400, "total_tokens": 3500}
_SVG_MODEL: Final = "gpt-6-luna"
_SIZE: Final = re.compile(r"[1-9]\d{1,4}x[1-9]\d{1,4}")
DEFAULT_MODEL: Final = "gpt-image-2.6-sunburst"


def generate(call: Call) -> Answer:
    """Images from a prompt."""
    check_fields(call.body, _GENERATE)
    return _make(call, call.body, "image_generation", 0)


def edit(call: Call) -> Answer:
    """Images from a prompt and images, as a form or as JSON."""
    body = from_form(call.body, _EDIT) if call.form else call.body
    check_fields(body, _EDIT)
    pictures = _uploaded(call) if call.form else _linked(body)
    if not pictures:
        raise missing("image" if call.form else "images")
    if len(pictures) > _MAX_IMAGES:
        raise invalid(
            f"Invalid 'image': too many images. Expected at most {_MAX_IMAGES}.", "image", "array_above_max_length"
        )
    high = body.get("input_fidelity") == "high"
    tokens = sum(
        uploaded_image_tokens(None if data is None else raw_image_size(data), high_fidelity=high) for data in pictures
    )
    return _make(call, body, "image_edit", tokens)


def _uploaded(call: Call) -> list[bytes | None]:
    """Return all images of a form; a mask is read like an image."""
    files = [upload for name in ("image", "mask", "markup") for upload in call.uploads.get(name, ())]
    if not call.uploads.get("image"):
        return []
    for upload in files:
        if raw_image_size(upload.data) is None and not upload.data.startswith(b"RIFF"):
            raise invalid(
                "Invalid image file or mode for image 0, please check your image file.", "image", "invalid_image_file"
            )
    return [upload.data for upload in files]


def _linked(body: dict[str, Any]) -> list[bytes | None]:
    """Return the bytes of data URLs; None for images that are only named."""
    listed = list(body.get("images") or ())
    if listed and isinstance(body.get("mask"), dict):
        listed.append(body["mask"])
    found: list[bytes | None] = []
    for index, image in enumerate(listed):
        if not isinstance(image, dict):
            raise wrong_type(f"images[{index}]", "an object", image)
        url = image.get("image_url")
        if not isinstance(url, str) and not isinstance(image.get("file_id"), str):
            raise missing(f"images[{index}].image_url")
        found.append(_data_of(url) if isinstance(url, str) else None)
    return found


def _data_of(url: str) -> bytes | None:
    head, _, data = url.partition(",")
    if not head.startswith("data:"):
        return None
    try:
        return base64.b64decode(data)
    except (binascii.Error, ValueError):
        raise invalid("Invalid image_url: not valid base64.", "images", "invalid_base64_image") from None


class _ImageBatch(msgspec.Struct, frozen=True):
    """All images of one answer."""

    call: Call
    options: dict[str, Any]
    kind: str
    prompt: PromptCount
    count: int
    """Number of images."""
    each: int
    """Output tokens of one image, its partial images included."""
    created: int

    def look(self) -> dict[str, Any]:
        """Return the properties as the answer repeats them."""
        svg = self.options.get("output_format") == "svg"
        background = self.options.get("background")
        return {
            "background": background if background in {"opaque", "transparent"} else "transparent" if svg else "opaque",
            "output_format": self.options.get("output_format") or "png",
            "quality": chosen_quality(self.options),
            "size": chosen_size(self.options),
        }


def _make(call: Call, options: dict[str, Any], kind: str, image_tokens: int) -> Answer:
    _check(options)
    directives = call.directives
    prompt = PromptCount(count_text(call.encoding, options["prompt"]), image_tokens)
    streamed = bool(options.get("stream"))
    # Without a stream there are no partial images to pay for.
    paid = options if streamed else options | {"partial_images": 0}
    each = generated_image_tokens(paid) if directives.output_tokens is None else directives.output_tokens
    made = _ImageBatch(call, options, kind, prompt, options.get("n") or 1, each, int(time.time()))
    bill = Bill("images", prompt, directives)
    answer = Answer(200, bill=bill, model=directives.model or call.model)
    if streamed:
        bill.kind = "image_events"
        answer.events = typed_stream(bill, _steps(made), named_event)
        return answer
    bill.add(Spent(made.each * made.count))
    answer.usage = bill.sent()
    answer.body = msgspec.json.encode(_body(made, answer.usage))
    if options.get("output_format") == "svg":
        answer.extra_usage = _svg_usage(made)
    return answer


def _check(options: dict[str, Any]) -> None:
    if not options["prompt"]:
        raise invalid("Invalid 'prompt': empty string.", "prompt", "empty_string")
    size = options.get("size")
    if size not in {None, "auto"} and not _SIZE.fullmatch(str(size)):
        raise invalid(f"Invalid value: '{size}'.", "size", "invalid_value")
    if options.get("stream") and options.get("output_format") in {"gif", "svg"}:
        raise invalid(
            f"Streaming is not supported for output format '{options['output_format']}'.", "stream", "unsupported_value"
        )


def _body(made: _ImageBatch, usage: Any) -> dict[str, Any]:
    svg = made.options.get("output_format") == "svg"
    shown: dict[str, Any] = {"created": made.created, **made.look()}
    shown["data"] = [{"b64_json": SVG_BASE64 if svg else PNG_BASE64}] * made.count
    if usage is not None:
        shown["usage"] = usage
    if svg and _svg_usage(made) is not None:
        shown["svg_usage"] = _svg_usage(made)
    return shown


def _svg_usage(made: _ImageBatch) -> Any:
    """Return the usage of the text model that draws the SVG, image for image."""
    wanted = made.call.directives.svg_usage
    if wanted is not msgspec.UNSET:
        return wanted
    author = (made.options.get("svg") or {}).get("model") or _SVG_MODEL
    return {"model": author, **{name: count * made.count for name, count in _SVG_USAGE.items()}}


def _steps(made: _ImageBatch) -> Iterator[TypedEvent]:
    """Charge the input on the first image only, so that the sum over all of them is the charge."""
    partial = int(made.options.get("partial_images") or 0)
    picture = {"b64_json": PNG_BASE64, "created_at": made.created}
    look = made.look()
    look = {name: look[name] for name in ("size", "quality", "background", "output_format")}
    for number in range(made.count):
        share = made.each // (partial + 1)
        for index in range(partial):
            fields = {"type": f"{made.kind}.partial_image", **picture, **look, "partial_image_index": index}
            yield TypedEvent(fields, spent=Spent(share))
        prompt = made.prompt if number == 0 else PromptCount()
        bill = Bill("image_events", prompt, made.call.directives, tokens=made.each)
        done = {"type": f"{made.kind}.completed", **picture, **look}
        yield TypedEvent(done, spent=Spent(made.each - share * partial), final=True, bill=bill)
