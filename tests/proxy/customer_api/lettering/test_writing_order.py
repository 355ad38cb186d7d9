"""Which way text goes: levels and the order seen, worked out by hand after UAX 9."""

import pytest

from proxy.customer_api.lettering.writing_order import base_level, levels, seen_order

# in small letters what is written from left to right, in capitals (here Hebrew letters) what is not
HEBREW = {letter: chr(0x5D0 + place) for place, letter in enumerate("ABCDEFGH")}


def written(text: str) -> str:
    return "".join(HEBREW.get(sign, sign) for sign in text)


def seen(text: str) -> str:
    """The line from left to right, one character a piece, in the letters of the test."""
    line = written(text)
    back = {letter: name for name, letter in HEBREW.items()}
    return "".join(back.get(sign, sign) for sign in seen_order(list(line), levels(line, base_level(line))))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("abc", "abc"),
        ("ABC", "CBA"),
        ("abc DEF ghi", "abc FED ghi"),
        ("ABC def GH", "HG def CBA"),
        ("abc DEF 123", "abc 123 FED"),  # a number goes with the letters before it, and is itself from left to right
        ("ABC 12.5", "12.5 CBA"),
        ("ABC 1,234", "1,234 CBA"),
        ("ABC 50%", "50% CBA"),
        ("abc DE, FG.", "abc GF ,ED."),
        ("ABC (def)", "(def) CBA"),
        ("12 ABC", "CBA 12"),
        ("", ""),
    ],
)
def test_a_line_is_seen_in_the_order_of_its_directions(text: str, line: str) -> None:
    assert seen(text) == (line.translate(str.maketrans("()", ")(")) if "(" in text else line)


def test_a_mark_goes_with_its_letter() -> None:
    assert levels("\u05d0\u05b8b", 0) == [1, 1, 0]


def test_digits_after_arabic_letters_are_of_its_own_kind() -> None:
    text = "\u0639 1-2"  # W2: after Arabic no number takes a hyphen in
    assert levels(text, 1) == [1, 1, 2, 1, 2]
