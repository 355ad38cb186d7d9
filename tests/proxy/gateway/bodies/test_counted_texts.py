"""Every text that a model reads is counted."""

from collections.abc import Callable

import pytest

from proxy.gateway.bodies.chat import chat_texts
from proxy.gateway.bodies.responses import response_texts
from tests.support.bodies import TEXT, chat, response


@pytest.mark.parametrize(
    ("texts", "body"),
    [
        (chat_texts, chat(content=None, function_call={"name": "f", "arguments": TEXT})),
        (chat_texts, chat(content=None, refusal=TEXT)),
        (chat_texts, chat(content=[{"type": "refusal", "refusal": TEXT}])),
        (
            chat_texts,
            chat(
                content=None, tool_calls=[{"type": "function", "id": "c", "function": {"name": "f", "arguments": TEXT}}]
            ),
        ),
        (response_texts, response({"role": "user", "content": "data: " + TEXT})),
        (
            response_texts,
            response({"role": "user", "content": [{"type": "input_text", "text": "data:text/plain," + TEXT}]}),
        ),
        (response_texts, response({"type": "function_call_output", "call_id": "c", "output": "data:," + TEXT})),
        (response_texts, response({"type": "function_call", "call_id": "c", "name": "f", "arguments": TEXT})),
        (response_texts, response({"role": "user", "content": "x"}, instructions="data: " + TEXT)),
    ],
)
def test_every_text_that_a_model_reads_is_counted(texts: Callable[[bytes], tuple[list[str], int]], body: bytes) -> None:
    assert any(TEXT in text for text in texts(body)[0])
