"""Cutting server-sent events never changes, loses or invents a byte."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gateway.answers.sse import (
    begins_events,
    event_data,
    last_boundary,
    may_begin_events,
    next_boundary,
    split_events,
)

PIECES = st.lists(
    st.sampled_from(
        [b"data: {}", b"data:x", b": note", b"\r", b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"event: a\n", b"\xf0\x9f"]
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
    assert end == 0 or lines(data[:end])[-1] == b""
    assert not any(line == b"" for line in lines(data[end:])[1:])


def lines(data: bytes) -> list[bytes]:
    """Every line that has ended, by the standard's words: CRLF, else CR or LF alone."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]


ENDS = (b"\n", b"\r", b"\r\n")


@pytest.mark.parametrize(("end", "blank"), [pair for pair in product(ENDS, ENDS) if pair != (b"\r", b"\n")], ids=repr)
def test_an_event_ends_in_any_two_line_ends(end: bytes, blank: bytes) -> None:
    stream = b"".join(b"data: %d" % number + end + blank for number in range(3))
    assert [event_data(event) for event in split_events(stream)] == [b"0", b"1", b"2"]
    assert last_boundary(stream) == len(stream)
    assert last_boundary(stream + b"data: 3" + end) == len(stream)


@pytest.mark.parametrize(
    ("beginning", "events"),
    [
        (b"data: {", True),
        (b"\xef\xbb\xbf\r\nevent: x", True),
        (b": ping", True),
        (b'{"id"', False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_an_answers_first_bytes_say_whether_it_is_a_stream(beginning: bytes, events: bool) -> None:
    assert begins_events(beginning) is events


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data: {}\r\n\r\n", b"{}"),
        (b"data: {}\r\r", b"{}"),
        (b"event: x\rdata: a\rdata: b\r\r", b"a\nb"),
        (b"\xef\xbb\xbfdata: {}\n\n", b"{}"),
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


@pytest.mark.parametrize(
    ("data", "few"),
    [(b"", True), (b"\n", True), (b"\xef\xbb", True), (b"da", True), (b"data:", False), (b"{", False), (b"x", False)],
)
def test_which_first_bytes_are_too_few_to_tell_events_by(data: bytes, few: bool) -> None:
    assert may_begin_events(data) is few


def test_blanks_without_end_are_not_waited_through() -> None:
    assert may_begin_events(b" " * 4_096)
    assert not may_begin_events(b" " * 4_097)
