"""What is written to the log is one line, and speaks to nobody's terminal."""

import json
import logging

import pytest

from proxy.observability.log import JsonFormatter, NoSocketLines, printable


@pytest.mark.parametrize("text", ["a\r\nb", "a\x1b[31mb", "a\x00b", "a\x7fb", "a\x9bb", "a\u2028b", "a\u202eb"])
def test_control_characters_are_not_written(text: str) -> None:
    shown = printable(text)
    assert shown.replace("?", "").replace("[31m", "") == "ab"
    record = logging.LogRecord("x", logging.ERROR, "", 0, "said %s", (text,), None)
    assert json.loads(JsonFormatter().format(record))["message"] == f"said {shown}"


def test_what_is_printable_stays_as_it_is() -> None:
    for text in ("", "a b", "größer 漢字 😀", "/v1/x?%0d"):
        assert printable(text) == text


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ('%s - "WebSocket %s" [accepted]', False),
        ('%s - "WebSocket %s" 403', False),
        ("connection rejected (%d %s)", False),
        ("connection open", False),
        ("connection closed", False),
        ("Started server process [%d]", True),
        ("Exception in ASGI application\n", True),
    ],
)
def test_lines_of_sockets_past_our_own_are_dropped(message: str, kept: bool) -> None:
    record = logging.LogRecord("uvicorn.error", logging.INFO, "", 0, message, (), None)
    assert NoSocketLines().filter(record) is kept
