"""What only Azure says in an answer goes out of it where nobody may learn who served; everything else stays."""

import json

import pytest

from proxy.gateway.answers.identity import azures_refusal, events_without_filters, without_filters

SAFE = {"hate": {"filtered": False, "severity": "safe"}}


def test_a_whole_answer_loses_them_wherever_they_stand() -> None:
    choice = {"index": 0, "message": {"content": "a content_filter_results b"}, "content_filter_results": SAFE}
    body = {"choices": [choice], "prompt_filter_results": [{"prompt_index": 0}], "usage": {"prompt_tokens": 1}}
    shown = json.loads(without_filters(json.dumps(body).encode()))
    assert shown == {
        "choices": [{"index": 0, "message": {"content": "a content_filter_results b"}}],
        "usage": {"prompt_tokens": 1},
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{ "choices": [ {"finish_reason": "content_filter"} ] }',
        b'{"choices":[{"message":{"content":"\\"content_filter_results\\""}}]}',
        b'{"content_filter_results": no JSON',
        b"",
    ],
)
def test_what_has_none_of_them_keeps_every_byte(body: bytes) -> None:
    assert without_filters(body) == body
    event = b"data: " + body + b"\n\n"
    assert events_without_filters(event) == event


def test_an_event_that_says_nothing_else_is_left_out_and_the_others_keep_their_places() -> None:
    first = {"choices": [], "prompt_filter_results": [{"content_filter_results": SAFE}]}
    plain = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    marked = {"choices": [{"delta": {"content": "y"}, "content_filter_results": SAFE}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 1}, "prompt_filter_results": []}
    done = {"type": "response.completed", "response": {"id": "r", "content_filters": [SAFE]}}
    data = b"".join(
        (
            f"data: {json.dumps(first)}\n\n".encode(),
            plain,
            f"data: {json.dumps(marked)}\n\n".encode(),
            f"data: {json.dumps(usage)}\n\n".encode(),
            f"event: response.completed\ndata: {json.dumps(done)}\n\n".encode(),
            b"data: [DONE]\n\n",
        )
    )
    assert events_without_filters(data) == (
        plain + b'data: {"choices":[{"delta":{"content":"y"}}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
        b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n'
        b"data: [DONE]\n\n"
    )


def test_nesting_without_an_end_is_no_reason_to_fail() -> None:
    deep = b'{"a":' * 300 + b'{"content_filters":1}' + b"}" * 300
    assert without_filters(deep) == deep


def test_a_refusal_in_azures_words_is_told_in_ours() -> None:
    theirs = {"error": {"message": "Azure OpenAI's policy", "code": "content_filter", "param": "prompt", "status": 400}}
    told = json.loads(azures_refusal(json.dumps(theirs).encode()))["error"]
    assert (told["code"], told["param"]) == ("content_filter", "prompt")
    assert "zure" not in told["message"]
    plain = b'{"error": {"message": "Invalid value for temperature", "code": "invalid_value"}}'
    assert azures_refusal(plain) == plain
    assert azures_refusal(b"<html>Microsoft</html>") == b"<html>Microsoft</html>"
