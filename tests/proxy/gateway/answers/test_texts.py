"""What passed towards the client is counted, whatever its field is called: custom tools as function tools."""

from typing import Any

import msgspec
import pytest

from proxy.gateway.answers.meter import StreamMeter, read_answer
from proxy.gateway.answers.reports import answer_texts
from proxy.gateway.answers.texts import written_texts

WORDS = "lorem ipsum dolor sit amet "


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "run", "arguments": WORDS}},
        {"custom": {"name": "run", "input": WORDS}},
        {"newest": {"name": "run", "said": WORDS}},
    ],
)
def test_the_input_of_any_tool_counts_in_a_chat(call: dict[str, Any]) -> None:
    choice = {"index": 0, "finish_reason": None}
    chunk = {
        "id": "c",
        "model": "gpt-4.1",
        "choices": [{**choice, "delta": {"tool_calls": [{"index": 0, "id": "call_1", **call}]}}],
    }
    meter = StreamMeter(hide_usage=False)
    meter.feed(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
    assert meter.streamed() == (["run" + WORDS], 0)
    assert meter.streamed_anything
    whole = {
        "id": "c",
        "model": "gpt-4.1",
        "choices": [{**choice, "message": {"role": "assistant", "tool_calls": [call]}}],
    }
    found = read_answer(msgspec.json.encode(whole))
    assert (found.report.usage, found.produced, found.texts) == (None, True, ["run" + WORDS])


def test_the_legacy_function_call_of_a_chat_counts() -> None:
    assert written_texts({"function_call": {"name": "run", "arguments": WORDS}}) == ["run", WORDS]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "arguments": WORDS},
        {"type": "custom_tool_call", "input": WORDS},
        {"type": "message", "content": [{"type": "refusal", "refusal": WORDS}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": WORDS}], "encrypted_content": "xxxx"},
        {"type": "code_interpreter_call", "code": WORDS, "outputs": [{"type": "logs", "logs": "not by the model"}]},
    ],
    ids=lambda item: str(item["type"]),
)
def test_every_text_of_an_output_item_counts(item: dict[str, Any]) -> None:
    assert answer_texts({"output": [{"id": "item_1", "status": "completed", "call_id": "call_1", **item}]}) == [WORDS]


def test_what_no_model_wrote_counts_for_nothing() -> None:
    item = {"type": "mcp_list_tools", "server_label": "x", "tools": [{"name": "a", "description": "b"}]}
    picture = {"type": "image_generation_call", "result": "aGVsbG8="}
    assert written_texts([item, picture]) == []


def test_no_depth_of_nesting_ends_the_count_with_an_error() -> None:
    deep: Any = WORDS
    for _ in range(2_000):
        deep = [deep]
    assert written_texts({"content": deep}) == []


def test_what_is_said_twice_is_counted_once() -> None:
    """Compatible servers repeat reasoning as details, and a search its first query among its queries."""
    twice = {"reasoning": "so", "reasoning_details": [{"text": "so"}], "action": {"query": "a", "queries": ["a", "b"]}}
    assert written_texts(twice) == ["so", "a", "b"]
    assert written_texts({"reasoning_details": [{"text": "so"}]}) == ["so"]
