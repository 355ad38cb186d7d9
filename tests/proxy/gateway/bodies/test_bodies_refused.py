"""A body that cannot be read is refused with a sentence, whatever is wrong with it."""

import pytest

from proxy.gateway.bodies.chat import parse_chat
from proxy.gateway.bodies.media import parse_image, parse_speech
from proxy.gateway.bodies.responses import parse_compact, parse_input_tokens, parse_response
from proxy.web.rejections import Rejection

DIGITS = b"9" * 5_000
RESPONSES = [
    b'{"model":"gpt-5","input":"x","metadata":{"a":' + DIGITS + b"}}",
    b'{"model":"gpt-5","input":"x","max_output_tokens":' + DIGITS + b"}",
    b'{"model":"gpt-5","input":"\xff"}',
    b'{"model":"gpt-5","input":[{"role":"user","content":' + b"[" * 990 + b"]" * 990 + b"}]}",
]


@pytest.mark.parametrize("parse", [parse_response, parse_compact, parse_input_tokens], ids=lambda p: str(p.__name__))
@pytest.mark.parametrize("body", RESPONSES, ids=["digits", "a long number", "no UTF-8", "deep"])
def test_a_responses_body_is_refused_or_read(parse: object, body: bytes) -> None:
    assert callable(parse)
    try:
        parse(body)
    except Rejection as rejection:
        assert rejection.status == 400


@pytest.mark.parametrize("speed", [b"1e308", b"-1e308", b"0.0001"])
def test_no_speed_is_a_fault_of_ours(speed: bytes) -> None:
    parse_speech(b'{"model":"gpt-4o-mini-tts","input":"x","voice":"alloy","speed":' + speed + b"}")


@pytest.mark.parametrize(
    "body", [b'{"model":"gpt-image-2","prompt":"x","n":' + DIGITS + b"}", b'{"model":"gpt-image-2","prompt":"\xff"}']
)
def test_an_image_body_is_refused(body: bytes) -> None:
    with pytest.raises(Rejection) as refused:
        parse_image(body, b"application/json")
    assert refused.value.status == 400


def test_a_chat_body_of_digits_is_refused_or_read() -> None:
    with pytest.raises(Rejection):
        parse_chat(b'{"model":"gpt-5","messages":[{"role":"user","content":"x"}],"n":' + DIGITS + b"}")


@pytest.mark.parametrize("body", [b'{"input":"hi"}', b'{"input":"hi","model":null}'])
def test_a_count_without_a_model_says_that_it_needs_one(body: bytes) -> None:
    with pytest.raises(Rejection, match="Name the `model`") as refused:
        parse_input_tokens(body)
    assert (refused.value.status, refused.value.param) == (400, "model")
