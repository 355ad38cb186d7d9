"""Bodies of media: the length of a sound, the fields of a form, the size of an image."""

import pytest

from config.settings import Settings
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.bodies.audio_length import audio_length
from proxy.gateway.bodies.media import BY_SECOND, parse_image, parse_transcription
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import make_plan
from proxy.gateway.settlement import ObservedOutput, count_usage
from proxy.web.rejections import Rejection
from tests.support.counting import TOKENIZER
from tests.support.media import wav
from tests.support.plans import PRICES, TODAY, key


def test_a_lying_byte_rate_shortens_no_audio() -> None:
    hour = wav(3_600)
    lying = hour[:28] + (500_000_000).to_bytes(4, "little") + hour[32:]
    assert audio_length(lying).most >= 3_600_000


def form(*parts: tuple[str, bytes, str | None]) -> tuple[bytes, bytes]:
    lines = []
    for name, value, filename in parts:
        extra = f'; filename="{filename}"' if filename else ""
        lines.append(f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n")
    return b"".join(lines) + b"--b--\r\n", b"multipart/form-data; boundary=b"


def test_a_file_hides_no_field() -> None:
    image = (("model", b"gpt-image-2", None), ("prompt", b"x", None), ("image", b"png", "a.png"))
    with pytest.raises(Rejection, match="`n` must be a plain field"):
        parse_image(*form(*image, ("n", b"1", "n.txt"), ("n", b"10", None)))
    with pytest.raises(Rejection, match="`response_format` must be a plain field"):
        parse_transcription(
            *form(("model", b"whisper-1", None), ("file", b"x", "a.mp3"), ("response_format", b"json", "f"))
        )


def test_every_model_billed_by_the_second_is_known_by_its_name() -> None:
    """Its stream would not say how many: the whole answer is asked for."""
    for name in PRICES.names():
        model = PRICES.find(name)
        assert model is not None
        if "/v1/audio/transcriptions" in model.endpoints:
            card = model.tiers["default"].short
            assert name.startswith(BY_SECOND) is not bool(card.input or card.output), name


async def test_a_file_too_small_to_play_is_not_charged_its_bound() -> None:
    parsed = parse_transcription(*form(("model", b"whisper-1", None), ("file", b"fLaC", "a.flac")))
    assert parsed.milliseconds >= 3_600_000
    asked = make_plan(METERED["POST", b"/v1/audio/transcriptions"], parsed, key(), PRICES, Settings(), today=TODAY)
    usage = await count_usage(TOKENIZER, asked, 0, ObservedOutput(["x"]), NO_REPORT)
    assert usage.milliseconds < 1_000


def test_silence_that_packs_to_nothing_is_held_as_an_hour() -> None:
    parsed = parse_transcription(*form(("model", b"whisper-1", None), ("file", b"fLaC" + b"\0" * 100, "a.flac")))
    assert parsed.milliseconds >= 3_600_000


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "1", "on", "yes"])
def test_a_boolean_of_a_form_is_read_as_it_is_sent_on(text: str) -> None:
    """Upstream and the meter read one field by one rule: whatever a client writes for true, upstream hears `true`."""
    parts = (("model", b"gpt-4o-transcribe", None), ("file", b"ID3", "a.mp3"), ("stream", text.encode(), None))
    parsed = parse_transcription(*form(*parts))
    assert (parsed.stream, parsed.sets) == (True, {} if text == "true" else {"stream": b"true"})
    image = (("model", b"gpt-image-2", None), ("prompt", b"x", None), ("image", b"png", "a.png"))
    assert parse_image(*form(*image, ("stream", text.encode(), None))).stream


@pytest.mark.parametrize("text", ["false", "False", "0", "off"])
def test_a_false_boolean_of_a_form_streams_nothing(text: str) -> None:
    parts = (("model", b"gpt-4o-transcribe", None), ("file", b"ID3", "a.mp3"), ("stream", text.encode(), None))
    assert not parse_transcription(*form(*parts)).stream


def test_a_boolean_of_a_form_that_is_neither_is_refused() -> None:
    parts = (("model", b"gpt-4o-transcribe", None), ("file", b"ID3", "a.mp3"), ("stream", b"maybe", None))
    with pytest.raises(Rejection, match="`stream` is true or false"):
        parse_transcription(*form(*parts))


@pytest.mark.parametrize("chosen", ["srt", "vtt", "text"])
def test_whisper_streams_nothing_so_its_text_says_what_it_used(chosen: str) -> None:
    """whisper-1 ignores `stream`: its answer is asked for in the form that carries its duration."""
    parts = (("model", b"whisper-1", None), ("file", b"ID3", "a.mp3"), ("stream", b"true", None))
    parsed = parse_transcription(*form(*parts, ("response_format", chosen.encode(), None)))
    assert (parsed.stream, parsed.convert, parsed.sets["response_format"]) == (False, chosen, b"verbose_json")
