"""Bodies of /v1/responses and its compaction: what they are held for and sent with."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from billing.money.pricing import PriceBook, load_catalogue
from proxy.gateway.bodies.parsed import Parsed, Reference
from proxy.gateway.bodies.responses import parse_compact, parse_input_tokens, parse_response, response_texts, walk
from proxy.web.rejections import Rejection
from tests.support.bodies import response


def test_what_a_summary_stands_for_bounds_it() -> None:
    small = parse_compact(response({"role": "user", "content": "hi"}))
    assert small.output_bound is not None
    large = parse_compact(json.dumps({"model": "gpt-4.1", "previous_response_id": "resp_1", "input": "hi"}).encode())
    assert large.output_bound is None
    assert PriceBook(load_catalogue(), "1", "exact").find("gpt-4.1") is not None


def test_the_image_tool_is_sent_once() -> None:
    tool = {"type": "image_generation", "model": "gpt-image-2"}
    with pytest.raises(Rejection, match="once"):
        parse_response(response({"role": "user", "content": "hi"}, tools=[tool, {**tool, "size": "2048x2048"}]))


@pytest.mark.parametrize("parse", [parse_response, parse_compact, parse_input_tokens])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"content": "x"},
        {"content": [{"type": "output_text", "text": "x"}]},
        {"summary": [{"type": "summary_text", "text": "a"}]},
        {"output": "x"},
        {"tools": []},
        {"arguments": "{}"},
        {"result": "x"},
        {"role": "assistant"},
        {"encrypted_content": "gAAA"},
        {"status": "completed", "content": None, "call_id": "c"},
    ],
    ids=str,
)
def test_what_an_item_is_follows_from_its_type_whatever_else_it_carries(
    parse: Callable[[bytes], Parsed], more: dict[str, Any]
) -> None:
    def names(item: dict[str, Any]) -> bool:
        body = {"model": "gpt-4.1", "input": [item, {"role": "user", "content": "x"}]}
        return Reference("item", item["id"], "input") in parse(json.dumps(body).encode()).references

    assert names({"type": "item_reference", "id": "msg_A", **more})
    assert names({"type": "reasoning", "id": "rs_A", **more}) is ("encrypted_content" not in more)
    assert names({"id": "msg_A", "type": "item_reference", **more, "extra": {"a": 1}})


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"role": "user", "content": [{"type": "item_reference", "id": "msg_A"}]}]},
        {
            "input": [
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "item_reference", "id": "msg_A"}]}
            ]
        },
        {"input": "x", "tools": [{"type": "namespace", "tools": [{"type": "item_reference", "id": "msg_A"}]}]},
    ],
    ids=["in content", "in an output", "in a tool"],
)
def test_a_reference_is_one_wherever_it_stands(body: dict[str, Any]) -> None:
    assert [one.id for one in walk(body, "gpt-4.1").references] == ["msg_A"]


def test_a_choice_of_tools_names_stores_as_the_tools_do() -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "file_search", "vector_store_ids": ["vs_A"]}],
    }
    body = {"model": "gpt-4.1", "input": "x", "tool_choice": allowed}
    assert parse_response(json.dumps(body).encode()).references == (Reference("vector_store", "vs_A", "tool_choice"),)


def test_a_drawn_picture_that_is_sent_again_is_a_picture_and_no_text() -> None:
    """A million characters of base64 are no million tokens, and few of them can be many: 1,024 patches here, times 1.2."""
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1_024).to_bytes(4) * 2 + b"\1\0\0\0\0"
    result = base64.b64encode(header + b"x" * 300_000).decode()
    item = {"type": "image_generation_call", "id": "ig_A", "status": "completed", "result": result}
    body = json.dumps({"model": "gpt-5.4", "input": [item, {"role": "user", "content": "x"}]}).encode()
    parsed = parse_response(body)
    assert parsed.image_tokens == 1_229
    assert parsed.input_bytes_bound < 1_000
    assert parsed.picture_extra >= 1_229
    assert not any(len(text) > 100 for text in response_texts(body)[0])
