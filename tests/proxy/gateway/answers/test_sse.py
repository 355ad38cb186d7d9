"""Cutting server-sent events never changes, loses or invents a byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gateway.answers.sse import event_data, last_boundary, next_boundary, split_events

PIECES = st.lists(
    st.sampled_from(
        [b"data: {}", b"data:x", b": note", b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"event: a\n", b"\xf0\x9f"]
    ),
    max_size=30,
)


@given(PIECES)
def test_split_events_join_to_the_same_bytes(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert b"".join(split_events(data)) == data


@given(PIECES)
def test_the_last_boundary_is_behind_a_blank_line(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    end = last_boundary(data)
    assert end == 0 or data[:end].endswith((b"\n\n", b"\r\n\r\n"))
    assert b"\n\n" not in data[end:]
    assert b"\r\n\r\n" not in data[end:]


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data: {}\r\n\r\n", b"{}"),
        (b"event: x\ndata: {}\n\n", b"{}"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b": comment\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
        (b"data:  two blanks\n\n", b" two blanks"),
        (b"id: 7\r\ndata: a\r\ndata: b\r\n\r\n", b"a\nb"),
    ],
)
def test_the_payload_of_an_event(event: bytes, payload: bytes) -> None:
    assert event_data(event) == payload


def test_the_next_boundary_is_the_end_of_the_event_around_a_position() -> None:
    data = b"data: a\n\ndata: b\r\n\r\ndata: c"
    assert data[: next_boundary(data, 2)] == b"data: a\n\n"
    assert data[: next_boundary(data, 12)] == b"data: a\n\ndata: b\r\n\r\n"
    assert next_boundary(data, 25) == len(data)
