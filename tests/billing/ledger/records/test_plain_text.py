"""Names and reasons: what people write in one line, and nothing that a terminal or a page would obey."""

import pytest

from billing.ledger.records.plain_text import is_plain_text


@pytest.mark.parametrize(
    "text",
    ["Acme", "می\u200cخواهم", "👩\u200d💻 Studio", "क\u094d\u200dष", "e\u0301t\u00e9", "x" * 200],
)
def test_what_people_write_is_plain(text: str) -> None:
    assert is_plain_text(text, 200)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\u200d", "\u200ca", "a \u200d b", "\u200d\u200c", "x" * 201),
        *("a\nb", "a\x00b", "a\x1b[31m", "a\u202eb", "a\u2066b", "a\ufeffb", "a\u200bb"),
    ],
)
def test_what_is_not_seen_or_turns_what_is_seen_is_not(text: str) -> None:
    assert not is_plain_text(text, 200)
