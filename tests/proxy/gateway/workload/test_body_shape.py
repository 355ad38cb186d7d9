"""A body's shape: what is refused before it is parsed, and what a busy client may send all the same."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.gateway.workload import body_shape
from proxy.gateway.workload.body_shape import (
    MANY_CONTAINERS,
    MOST_CONTAINERS,
    MOST_DEPTH,
    MOST_MEMBERS,
    MOST_VALUES,
    check_shape,
    is_heavy,
)
from proxy.web.rejections import Rejection

HEAD = b'{"model":"gpt-4.1","input":'


def listed(unit: bytes, number: int) -> bytes:
    return HEAD + b"[" + b",".join([unit] * number) + b"]}"


def nested(opening: bytes, closing: bytes, levels: int) -> bytes:
    return HEAD + opening * levels + b"1" + closing * levels + b"}"


REFUSED: dict[str, Callable[[], bytes]] = {
    "objects": lambda: listed(b"{}", MOST_CONTAINERS),
    "lists": lambda: listed(b"[]", MOST_CONTAINERS),
    "objects in objects": lambda: listed(b'{"a":{}}', MOST_CONTAINERS // 2),
    "numbers": lambda: listed(b"1", MOST_VALUES),
    "texts": lambda: listed(b'"a"', MOST_VALUES),
    "empty texts": lambda: listed(b'""', MOST_VALUES * 4),
    "members": lambda: HEAD + b"{" + b",".join(b'"%x":1' % number for number in range(MOST_MEMBERS)) + b"}}",
    "escaped texts": lambda: listed(rb'"\""', MOST_VALUES),
    "texts of a backslash": lambda: listed(rb'"\\"', MOST_VALUES),
    "lists in lists": lambda: nested(b"[", b"]", MOST_DEPTH),
    "objects, nested": lambda: nested(b'{"a":', b"}", MOST_DEPTH),
    "both, nested": lambda: nested(b'[{"a":', b"}]", MOST_DEPTH // 2 + 1),
    "open for ever": lambda: HEAD + b"[" * 2_000_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_a_model_could_read_is_refused_before_it_is_parsed(name: str) -> None:
    body = REFUSED[name]()
    assert is_heavy(body)
    with pytest.raises(Rejection) as refused:
        check_shape(body)
    assert (refused.value.status, refused.value.code in ("too_many_values", "invalid_json")) == (400, True)


LONG: dict[str, Callable[[], str]] = {
    "JSON as a text": lambda: json.dumps([{"a": [1, {}]}] * 200_000),
    "a table as a text": lambda: "1,2,3\n" * 500_000,
    "backslashes": lambda: "\\" * 1_000_000 + '"' * 1_000_000,
    "brackets": lambda: "[" * 1_000_000,
    "quotes in quotes": lambda: json.dumps(json.dumps('"{[,:' * 100_000)),
}


@pytest.mark.parametrize("name", LONG)
def test_what_stands_inside_of_a_text_counts_for_nothing(name: str) -> None:
    body = json.dumps({"model": "gpt-4.1", "input": LONG[name]()}).encode()
    assert is_heavy(body), name
    check_shape(body)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='"\\\\{[:,]}a\n\u00e9') | st.just("\\\\" * 70 + '"' * 70),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='"\\\\{,:', max_size=3), inner, max_size=4)
    ),
)


def counted(value: Any) -> tuple[int, int, int]:
    """(objects and lists, members, commas) of a value's JSON, by walking through it."""
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inside = [counted(one) for one in (value.values() if isinstance(value, dict) else value)]
    found = [sum(column) for column in zip(*inside, strict=True)] or [0, 0, 0]
    return found[0] + 1, found[1] + (len(value) if isinstance(value, dict) else 0), found[2] + max(0, len(value) - 1)


@settings(max_examples=40)
@given(st.lists(VALUES, max_size=6), st.sampled_from([1, 3, 4_000]), st.sampled_from([1, 2, 64]))
def test_what_stands_between_texts_is_all_that_counts(values: list[Any], texts: int, escapes: int) -> None:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(body_shape, "FEW_TEXTS", texts)
        changed.setattr(body_shape, "FEW_ESCAPES", escapes)
        outside = body_shape._outside_of_texts(json.dumps(values).encode())
    containers, members, commas = counted(values)
    assert outside.count(b"{") + outside.count(b"[") == containers
    assert (outside.count(b":"), outside.count(b",")) == (members, commas)
    assert b'"' not in outside


def test_long_conversations_and_many_token_ids_pass() -> None:
    message = {"role": "user", "content": [{"type": "input_text", "text": "hello, {world}"}]}
    check_shape(json.dumps({"model": "gpt-4.1", "input": [message] * 10_000}).encode())
    check_shape(json.dumps({"model": "text-embedding-3-small", "input": [list(range(8_000))] * 37}).encode())
    check_shape(nested(b"[", b"]", MOST_DEPTH - 2))


def test_an_ordinary_small_body_is_not_looked_at() -> None:
    message = {"role": "user", "content": "hello"}
    assert not is_heavy(json.dumps({"model": "gpt-4.1", "messages": [message] * 200}).encode())
    assert is_heavy(b"[" * (MANY_CONTAINERS + 1))
