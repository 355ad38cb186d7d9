"""JSON as clients write it: whole numbers with a point, texts cut in an emoji, and what is said of what cannot be read."""

import json
import re
from typing import Any

import pytest

from billing.money.catalogue.models import Model
from config.settings import Settings
from proxy.gateway.bodies.json_body import mended
from proxy.gateway.bodies.parsed import Parsed
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import make_plan
from proxy.gateway.upstream.request_body import body_to_send
from proxy.web.rejections import Rejection
from tests.support.plans import PRICES, TODAY, key


def found(name: str) -> Model:
    model = PRICES.find(name)
    assert model is not None
    return model


BODIES = {
    "/v1/chat/completions": {"model": "gpt-4o", "messages": [{"role": "user", "content": "TEXT"}]},
    "/v1/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "TEXT"},
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "TEXT"},
    "/v1/responses": {"model": "gpt-4.1", "input": "TEXT"},
    "/v1/responses/compact": {"model": "gpt-4.1", "input": "TEXT"},
    "/v1/responses/input_tokens": {"model": "gpt-4.1", "input": "TEXT"},
    "/v1/images/generations": {"model": "gpt-image-2", "prompt": "TEXT"},
    "/v1/images/edits": {"model": "gpt-image-2", "prompt": "TEXT", "images": [{"image_url": "https://a.b/c.png"}]},
    "/v1/audio/speech": {"model": "gpt-4o-mini-tts", "input": "TEXT", "voice": "alloy"},
    "/v1/moderations": {"input": "TEXT"},
    "/v1/decisions": {
        "model": next(name for name in PRICES.names() if "/v1/decisions" in found(name).endpoints),
        "input": "TEXT",
        "questions": [{"id": "a"}],
    },
}
NUMBERS = [
    *(("/v1/chat/completions", name) for name in ("max_tokens", "max_completion_tokens", "n")),
    *(("/v1/completions", name) for name in ("max_tokens", "n", "best_of")),
    *(("/v1/responses", name) for name in ("max_output_tokens", "max_tool_calls")),
    *(("/v1/images/generations", name) for name in ("n", "partial_images")),
    *(("/v1/images/edits", name) for name in ("n", "partial_images")),
]


def body(path: str, text: str = "hello", **fields: str) -> bytes:
    written = json.dumps(BODIES[path]).replace('"TEXT"', f'"{text}"')
    return (written[:-1] + "".join(f', "{name}": {value}' for name, value in fields.items()) + "}").encode()


def parsed(path: str, raw: bytes) -> Parsed:
    endpoint = METERED["POST", path.encode()]
    return endpoint.parse(raw, b"application/json")


def planned(path: str, raw: bytes) -> Any:
    return make_plan(METERED["POST", path.encode()], parsed(path, raw), key(), PRICES, Settings(), today=TODAY)


def refusal(path: str, raw: bytes) -> Rejection:
    with pytest.raises(Rejection) as caught:
        planned(path, raw)
    assert caught.value.status == 400
    assert caught.value.message.endswith(".")
    return caught.value


# -- whole numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "name"), NUMBERS)
@pytest.mark.parametrize("written", ["2.0", "2e0", "0.2e1", "20E-1"])
def test_a_whole_number_is_bounded_however_it_is_written(path: str, name: str, written: str) -> None:
    plain, other = planned(path, body(path, **{name: "2"})), planned(path, body(path, **{name: written}))
    bounds = [(one.cap, one.parsed.choices, one.parsed.max_calls, one.bounds.output_tokens) for one in (plain, other)]
    assert bounds[0] == bounds[1]
    assert not any(
        isinstance(value, float)
        for value in (other.cap, other.parsed.choices, other.bounds.input_tokens, other.bounds.output_tokens)
    )
    assert written.encode() in body_to_send(other, Settings().billing, lambda name: name.decode())


@pytest.mark.parametrize(("path", "name"), NUMBERS)
@pytest.mark.parametrize("written", ["16.5", "1e400", "-1e400", "1e300", "9" * 30, "9" * 5_000, "true", '"2"', "[2]"])
def test_what_is_no_whole_number_is_refused_with_a_sentence(path: str, name: str, written: str) -> None:
    refused = refusal(path, body(path, **{name: written}))
    assert refused.param in (name, None)
    assert "`int" not in refused.message


def test_a_large_cap_of_a_model_without_a_known_maximum_is_refused() -> None:
    free = next(name for name in PRICES.names() if found(name).max_output_tokens is None)
    raw = body("/v1/chat/completions", max_tokens="1e16").replace(b"gpt-4o", free.encode())
    assert refusal("/v1/chat/completions", raw).param == "max_tokens"


def test_token_ids_may_have_a_point() -> None:
    for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        for written, inputs in (("[1.0, 2]", 1), ("[[1.0], [2e0, 3]]", 2)):
            raw = body(path).replace(b'"hello"', written.encode())
            assert parsed(path, raw).inputs == inputs
        raw = body(path).replace(b'"hello"', b"[1, 2.5]")
        assert refusal(path, raw).param == field


def test_no_candidates_of_a_legacy_completion_are_one_a_choice() -> None:
    path = "/v1/completions"
    assert parsed(path, body(path, best_of="0")).choices == 1
    assert parsed(path, body(path, best_of="0", n="3")).choices == 3
    assert refusal(path, body(path, best_of="-1")).param == "best_of"


def test_partial_images_of_the_image_tool_may_have_a_point() -> None:
    tools = '[{"type": "image_generation", "partial_images": %s}]'
    found = [parsed("/v1/responses", body("/v1/responses", tools=tools % count)).image_tool for count in ("2  ", "2.0")]
    assert found[0] == found[1]
    assert "partial_images" in refusal("/v1/responses", body("/v1/responses", tools=tools % "1.5")).message


# -- texts that were cut ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "cut", [r"\ud83d", r"\ude00", r"\uD83D\u0041", r"\ud83d\ud83d\ude00", r"\\\ud83d", r"\uDFFF\\ud83d"]
)
def test_half_of_a_surrogate_pair_is_read_and_goes_on_as_sent(path: str, cut: str) -> None:
    raw = body(path, f"cut {cut} here")
    plan = planned(path, raw)
    assert plan.parsed.source == raw
    sent = body_to_send(plan, Settings().billing, lambda _: "tk_1")
    assert f"cut {cut} here".encode() in sent
    if plan.endpoint.texts is not None:
        assert plan.endpoint.texts(raw)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_members_are_set_beside_a_text_that_was_cut(path: str) -> None:
    raw = body(path, r"a \ud83d", user=r'"\udc00"', stream="true")
    sent = body_to_send(planned(path, raw), Settings().billing, lambda given: f"of {len(given)}")
    assert json.loads(sent) == {**json.loads(raw), **json.loads(sent), "user": "of 8"}
    assert rb"a \ud83d" in sent


def test_only_halves_are_mended() -> None:
    for whole in (rb"\ud83d\ude00", rb"\\ud83d", b"\\n", "😀".encode(), rb"\\\\ud83d", rb"\ufffd"):
        assert mended(whole) is whole
    assert mended(rb"\ud83d\ude00\ud83d\\\udc00 \\udc00") == rb"\ud83d\ude00\ufffd\\\ufffd \\udc00"


# -- complaints ---------------------------------------------------------------------------------------

BROKEN = {
    b"": "it ends after byte 0",
    b'{"model":': "it ends after byte 9",
    b'{"model":"x",}': "near byte 13, in line 1",
    b'{"model":\n\n"x\n"}': "in line 3",
    b'{"model":"\\x"}': "an escape",
    b"{'model':1}": "double quotes near byte 1",
    b'{"model":01}': "a number",
    b'{"model":"x"} x': "something follows",
    b'{"model":NaN}': "near byte 9",
    b'{"model":"\xf0\x9f"}': "not UTF-8 near byte 10",
    b"[1]": "must be a JSON object",
    b'{"model":' * 5_000: "nested too deeply",
}
PARSERS_OWN = re.compile(r"malformed|truncated|codec|hex escape|utf-16|surrogate|Expected `|\$\.|\[\.\.\.\]|recursion")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("raw", BROKEN, ids=lambda raw: str(raw)[-20:])
def test_what_is_no_json_says_what_and_where(path: str, raw: bytes) -> None:
    refused = refusal(path, raw)
    assert BROKEN[raw] in refused.message
    assert refused.code == "invalid_json"
    assert not PARSERS_OWN.search(refused.message)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ('[{"role":"user","content":4}]', "'messages[0].content': expected a string or a list, not a number."),
        (
            '[{"role":"user","content":"x"},{"role":"user","content":[{"type":"text"},{"type":"text","text":[]}]}]',
            "'messages[1].content[1].text': expected a string, not a list.",
        ),
        ("4", "'messages': expected a list, not a number."),
        ('[{"role":"user"},true]', "'messages[1]': expected an object, not true or false."),
        ('[{"role":"user"},{"content":"x"}]', "Missing required parameter: 'messages[1].role'."),
    ],
)
def test_a_value_of_another_type_is_named_by_its_place(messages: str, said: str) -> None:
    raw = body("/v1/chat/completions").replace(b'[{"role": "user", "content": "hello"}]', messages.encode())
    refused = refusal("/v1/chat/completions", raw)
    assert refused.message.endswith(said)
    assert refused.param == "messages"


def test_a_number_without_end_is_named_where_nothing_is_known_of_it() -> None:
    assert refusal("/v1/images/generations", body("/v1/images/generations", frame_count="1e400")).param == "frame_count"


@pytest.mark.parametrize(
    "twice", ['"user": "b"', '"us\\u0065r": "b"', '"\\u0075\\u0073er": "b"', '"user":"b"', '"user" : "b"']
)
@pytest.mark.parametrize("text", ["hello", 'the word \\"user\\"', "é", "\\\\u0075"])
def test_a_member_given_twice_is_refused_however_it_is_spelled_and_spaced(twice: str, text: str) -> None:
    raw = body("/v1/chat/completions", text, user='"a"')
    assert parsed("/v1/chat/completions", raw).model == "gpt-4o"
    for place in (raw[:-1] + f", {twice}}}".encode(), b"{ " + f"{twice}, ".encode() + raw[1:]):
        with pytest.raises(Rejection) as caught:
            parsed("/v1/chat/completions", place)
        assert (caught.value.code, caught.value.param) == ("duplicate_parameter", "user")


@pytest.mark.parametrize("inner", ['{"model": "x"}', '{"a": {"user": "model"}}', '{"messages": "messages"}'])
def test_a_name_that_stands_in_a_value_as_well_is_not_given_twice(inner: str) -> None:
    raw = body("/v1/chat/completions", "hello", user='"model"', metadata=inner)
    assert parsed("/v1/chat/completions", raw).model == "gpt-4o"
