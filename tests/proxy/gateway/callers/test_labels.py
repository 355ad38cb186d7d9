"""Labels of a request: whom it is for and its tags, as headers and the body say, made to fit."""

import pytest

from proxy.gateway.callers.labels import LONGEST_TAG, LONGEST_USER, MOST_TAGS, NO_LABELS, Labels, labels_of

Headers = list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    ("headers", "user", "metadata", "labels"),
    [
        ([], None, None, NO_LABELS),
        ([(b"accept", b"*/*")], None, b"{}", NO_LABELS),
        ([], b'"u-1"', None, Labels("u-1")),
        ([], b"form user", None, Labels("form user")),
        ([(b"tollkeeper-user", b"u-2")], b'"u-1"', None, Labels("u-2")),
        ([(b"tollkeeper-user", "Söhne".encode())], None, None, Labels("Söhne")),
        ([(b"tollkeeper-tags", b" a, b ,,a")], None, b'{"feature":"chat"}', Labels("", "a\nb\nfeature:chat")),
        ([(b"tollkeeper-tags", b"a"), (b"tollkeeper-tags", b"b")], None, None, Labels("", "a\nb")),
        ([], None, b'{"a":"1\\n2","b":"\\u0000"}', Labels("", "a:12\nb:")),
        ([], None, b'{"a":1}', NO_LABELS),
        ([], None, b"null", NO_LABELS),
        ([], None, b'"text"', NO_LABELS),
        ([(b"tollkeeper-tags", b"\xff")], b'"\\ud800"', None, Labels('"\\ud800"', "\ufffd")),
    ],
)
def test_labels_are_what_was_said(headers: Headers, user: bytes | None, metadata: bytes | None, labels: Labels) -> None:
    assert labels_of(headers, user, metadata) == labels


def test_labels_that_are_too_long_or_many_are_cut() -> None:
    many = b",".join(b"%d-" % number + b"x" * 200 for number in range(50))
    found = labels_of([(b"tollkeeper-tags", many)], b"u" * 500, None)
    assert len(found.end_user) == LONGEST_USER
    tags = found.tags.split("\n")
    assert len(tags) == MOST_TAGS
    assert {len(tag) for tag in tags} == {LONGEST_TAG}
