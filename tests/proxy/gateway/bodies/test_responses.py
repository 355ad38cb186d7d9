"""Bodies of /v1/responses and its compaction: what they are held for and sent with."""

import json

import pytest

from billing.money.pricing import PriceBook, load_catalogue
from proxy.gateway.bodies.responses import parse_compact, parse_response
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
