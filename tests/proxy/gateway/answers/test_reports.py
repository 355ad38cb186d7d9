"""Reports of answers as JSON may write them: a count with a point is a count, and 0 is said as well."""

from typing import Any

import pytest

from proxy.gateway.answers.report import unreadable
from proxy.gateway.answers.reports import image_report, response_report

SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}}
TOKENS = {"input_tokens": 357, "output_tokens": 335, "total_tokens": 692}


def response(**members: Any) -> dict[str, Any]:
    found = [{**SEARCH, "id": "ws_1"}, {**SEARCH, "id": "ws_2"}]
    return {"id": "resp_1", "status": "completed", "output": found, "usage": TOKENS, **members}


@pytest.mark.parametrize(("said", "searches"), [(1, 1), (1.0, 1), (0, 0), (0.0, 0), (None, 2), (-1, 2), (0.5, 2)])
def test_the_number_of_searches_is_what_the_answer_says(said: Any, searches: int) -> None:
    report = response_report(response(tool_usage={"web_search": {"num_requests": said}}))
    assert dict(report.calls).get("web_search", 0) == searches


@pytest.mark.parametrize("zero", [0, 0.0])
def test_a_lifetime_of_cache_writes_is_said_by_a_zero_too(zero: Any) -> None:
    inside = {"cache_write_tokens": 50, "cache_write_tokens_details": {"ttl_12h_tokens": zero}}
    report = response_report(response(usage={**TOKENS, "input_tokens_details": inside}))
    assert report.writes_split
    assert report.usage is not None
    assert (report.usage.cache_write_30m_tokens, report.usage.cache_write_12h_tokens) == (50, 0)


@pytest.mark.parametrize(
    ("details", "drawn"),
    [
        ({"text_tokens": 335, "image_tokens": 0}, 0),
        ({"text_tokens": 335.0, "image_tokens": 0.0}, 0),
        ({"text_tokens": 335}, 0),
        ({"text_tokens": 35}, 300),
        ({"text_tokens": 35, "image_tokens": None}, 300),
        ({"text_tokens": 400}, 0),
        ({"image_tokens": 300}, 300),
        ({}, 335),
        (None, 335),
    ],
    ids=str,
)
def test_output_of_an_image_model_is_image_but_for_what_it_calls_text(details: Any, drawn: int) -> None:
    usage = image_report({"data": [{}], "usage": {**TOKENS, "output_tokens_details": details}}).usage
    assert usage is not None
    assert (usage.output_tokens, usage.image_output_tokens) == (335, drawn)


def test_usage_is_found_in_what_nobody_can_read_however_deep_its_details_are() -> None:
    lifetimes = b'{"ttl_30m_tokens":0,"ttl_12h_tokens":0}'
    usage = b'{"input_tokens":100,"input_tokens_details":{"cache_write_tokens_details":%b},"output_tokens":2000}'
    found = unreadable(b'{"id":"r","usage":' + usage % lifetimes + b",}").report.usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (100, 2_000)
