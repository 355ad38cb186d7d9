"""Usage out of the newer endpoints' answers: 0 is said, not missing; zeros beside an answer are no report."""

from typing import Any

import msgspec
import pytest

from billing.money.pricing import PriceBook, load_catalogue
from billing.money.usage import Usage
from proxy.gateway.answers.events import audio_report, image_report, response_report
from proxy.gateway.answers.meter import StreamMeter, read_answer

PRICES = PriceBook(load_catalogue(), "1", "exact")


def charge(model: str, usage: Usage) -> int:
    found = PRICES.find(model)
    assert found is not None
    return PRICES.price(found, "default", usage).amount


def image(**details: int) -> dict[str, Any]:
    inside = {"text_tokens": 34, "image_tokens": 323}
    return {
        "usage": {"input_tokens": 357, "output_tokens": 335, "total_tokens": 692, "input_tokens_details": inside}
        | ({"output_tokens_details": details} if details else {})
    }


def test_image_output_that_is_all_text_is_priced_as_text() -> None:
    report = image_report(image(text_tokens=335, image_tokens=0))
    assert report.usage is not None
    # 34 text tokens at 5, 323 of image at 8, 335 of text out at 10 millionths of a dollar
    assert charge("gpt-image-1.5", report.usage) == 34 * 5 + 323 * 8 + 335 * 10


def test_image_output_without_details_is_image() -> None:
    report = image_report(image())
    assert report.usage is not None
    assert report.usage.image_output_tokens == 335


@pytest.mark.parametrize(
    ("duration", "milliseconds"), [(8.47, 9_000), ("8.470000267028809", 9_000), (9, 9_000), (0.2, 1_000)]
)
def test_a_translation_is_billed_by_the_whole_second_as_a_transcription_is(duration: Any, milliseconds: int) -> None:
    assert audio_report({"text": "x", "duration": duration}).usage == Usage(milliseconds=milliseconds)
    assert audio_report({"text": "x", "usage": {"type": "duration", "seconds": milliseconds // 1_000}}).usage == Usage(
        milliseconds=milliseconds
    )


ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_usage_of_zeros_beside_an_answer_is_no_usage() -> None:
    answer = {
        "id": "c",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"content": "hello"}}],
        "usage": ZEROS,
    }
    report, produced, texts = read_answer(msgspec.json.encode(answer))
    assert (report.usage, produced, texts) == (None, True, ["hello"])
    said = {"type": "message", "content": [{"type": "output_text", "text": "hello"}]}
    none = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert response_report({"id": "resp_1", "output": [said], "usage": none}).usage is None
    # a response that was cancelled before it said anything used nothing
    assert response_report({"id": "resp_1", "output": [], "usage": none, "status": "cancelled"}).usage == Usage()


def test_zeros_after_a_real_report_take_nothing_back() -> None:
    meter = StreamMeter(hide_usage=False)
    for usage in ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}, ZEROS):
        meter.feed(b"data: " + msgspec.json.encode({"id": "c", "model": "m", "choices": [], "usage": usage}) + b"\n\n")
    found = meter.report().usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (100, 50)
