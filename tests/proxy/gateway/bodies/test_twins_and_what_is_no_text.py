"""What two parsers could read as two requests is refused; what is encoded in a request is bounded as what it is."""

import base64
import json
import zlib
from struct import pack
from typing import Any

import pytest

from config.settings import Settings
from proxy.gateway.bodies.chat import chat_texts, parse_chat
from proxy.gateway.bodies.media import parse_decision, parse_image
from proxy.gateway.bodies.parsed import Reference
from proxy.gateway.bodies.responses import parse_compact, parse_response, response_texts
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import make_plan
from proxy.gateway.settlement import counted_plan
from proxy.gateway.unmetered.object_bodies import parse_conversation
from proxy.web.rejections import Rejection
from tests.support.counting import TOKENIZER
from tests.support.plans import PRICES, TODAY, key


def chat(content: str, **more: str) -> bytes:
    members = "".join(f',"{name}":{value}' for name, value in more.items())
    return f'{{"model":"gpt-4.1","messages":[{{"role":"user","content":{content}}}]{members}}}'.encode()


@pytest.mark.parametrize(
    "body",
    [
        chat('[{"type":"file","file":{"file_id":"file_1","file_id":null}}]'),
        chat('[{"type":"file","file":{"file_id":"file_1"},"file":null},{"type":"image_url","image_url":{"url":"x"}}]'),
        chat('[{"type":"input_audio","input_audio":{"data":"AAAA","data":"","format":"mp3"}}]'),
        chat('[{"type":"image_url","image_url":{"url":"x","detail":"high","detail":"low"}}]'),
        chat('"x"', prompt_cache_options='{"ttl":"12h","ttl":"30m"}'),
        chat('"x"', audio='{"voice":"alloy","format":"mp3","format":"wav"}', modalities='["text","audio"]'),
        chat('"x"', moderation='{"model":"a","model":"omni-moderation-latest"}'),
    ],
)
def test_a_member_given_twice_where_it_costs_is_refused(body: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        parse_chat(body)
    assert caught.value.code == "duplicate_parameter"


PICTURE, FILE = (
    '[{"type":"image_url","image_url":{"url":"https://x"}}]',
    '[{"type":"file","file":{"file_id":"file_1"}}]',
)


@pytest.mark.parametrize(
    "body",
    [
        chat(f'{PICTURE},"content":"x"'),
        chat(f'{FILE},"content":"x"'),
        chat('"x","audio":{"id":"audio_1"},"audio":null'),
        chat('[{"type":"file","file":{"file_id":"file_1"},"file":null}]'),
        chat('[{"type":"text","text":"x","input_audio":{"data":"AAAA"},"input_audio":null}]'),
        chat(f'{PICTURE},"content":"x"').replace(b"image_url", rb"im\u0061ge_url"),
        chat('"x","audio":{"id":"audio_1"},"audio":null').replace(b'"audio"', rb'"\u0061udio"'),
    ],
)
def test_what_is_given_twice_is_refused_though_the_last_of_it_is_text(body: bytes) -> None:
    """A parser that takes the first one reads a picture, another's file or somebody's speech."""
    with pytest.raises(Rejection) as caught:
        parse_chat(body)
    assert caught.value.code == "duplicate_parameter"


@pytest.mark.parametrize("said", ["image_url", "an input_audio and a file", "\u00e4\u0061"])
def test_a_text_about_such_members_is_a_text(said: str) -> None:
    assert not parse_chat(chat(json.dumps(said))).unbounded


def test_a_file_of_a_picture_request_is_named_once() -> None:
    images = b'{"model":"gpt-image-2","prompt":"x","images":[{"file_id":"file_1","file_id":null,"image_url":"x"}]}'
    decision = b'{"model":"gpt-6-luna","questions":[{}],"input":[{"file_id":"file_1","file_id":null}]}'
    for parse, body in ((parse_image, images), (parse_decision, decision)):
        with pytest.raises(Rejection) as caught:
            parse(body, b"application/json")
        assert caught.value.code == "duplicate_parameter"


def test_a_text_given_twice_counts_twice() -> None:
    texts, _ = chat_texts(chat('"' + "word " * 500 + '","content":"x"'))
    assert sum(map(len, texts)) > 2_500


@pytest.mark.parametrize("beside", ['"image_url":{"url":"https://x"}', '"input_audio":{"data":"AAAA"}', '"text":"x"'])
def test_a_file_beside_anything_else_is_a_file(beside: str) -> None:
    parsed = parse_chat(chat(f'[{{"type":"file",{beside},"file":{{"file_id":"file_1"}}}}]'))
    assert parsed.references == (Reference("file", "file_1", "messages"),)
    assert parsed.unbounded


def png(width: int, height: int, size: int = 60_000) -> str:
    head = b"IHDR" + pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + head + zlib.crc32(head).to_bytes(4, "big")
    return base64.b64encode(header + pack(">I", size) + b"IDAT" + b"\0" * (size + 4)).decode()


def request(*items: Any, **more: Any) -> bytes:
    return json.dumps({"model": "gpt-4.1", "input": [*items, {"role": "user", "content": "hi"}], **more}).encode()


DRAWN = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": png(1_024, 1_024)}
OUTPUT = {"type": "image", "url": "data:image/png;base64," + png(1_024, 1_024)}
COMPUTED = {"type": "code_interpreter_call", "id": "ci_1", "code": "1", "status": "completed", "outputs": [OUTPUT]}
HEARD = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A" * 80_000, "format": "mp3"}}]}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "A" * 80_000}


@pytest.mark.parametrize("parse", [parse_response, parse_compact])
@pytest.mark.parametrize("item", [DRAWN, COMPUTED], ids=["drawn", "computed"])
def test_a_picture_in_the_history_is_bounded_as_a_picture(parse: Any, item: Any) -> None:
    parsed = parse(request(item))
    assert parsed.image_tokens == 765  # gpt-4.1: 85, and 170 for each of four tiles
    assert parsed.input_bytes_bound < 1_000
    assert not parsed.unbounded
    assert sum(map(len, response_texts(request(item))[0])) < 500


def test_sound_in_a_response_is_bounded_as_sound() -> None:
    parsed = parse_response(request(HEARD))
    assert 60 <= parsed.audio_tokens < 2_000  # 60 kB are 60 s at most, of 10 tokens each, and twice that for safety
    assert parsed.input_bytes_bound < 1_000
    assert sum(map(len, response_texts(request(HEARD))[0])) < 500


async def test_what_is_encrypted_is_held_for_and_not_counted_as_text() -> None:
    endpoint = METERED["POST", b"/v1/responses"]
    plan = make_plan(endpoint, parse_response(request(THOUGHT)), key(), PRICES, Settings(), today=TODAY)
    assert plan.bounds.input_tokens > 80_000, "bounded by its bytes"
    counted = await counted_plan(TOKENIZER, plan, PRICES)
    assert 20_000 <= counted.bounds.input_tokens < 21_000, "four characters a token"
    assert sum(map(len, response_texts(request(THOUGHT))[0])) < 500, "nobody who leaves is charged for it"


@pytest.mark.parametrize(("item", "least"), [(THOUGHT, 20_000), (HEARD, 1_000)], ids=["encrypted", "sound"])
def test_what_is_no_text_is_a_part_of_a_conversation(item: Any, least: int) -> None:
    body = parse_conversation(json.dumps({"items": [item]}).encode(), b"")
    assert body.tokens is not None
    assert body.tokens >= least
