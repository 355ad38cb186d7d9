"""Shaping: letters are joined, marks placed, and every character has a font that draws it."""

import pytest

from proxy.customer_api.lettering.faces import Faces, Run
from proxy.customer_api.lettering.writing_order import base_level, levels


def outlines(text: str) -> list[object]:
    faces = Faces()
    runs = faces.runs(text, levels(text, base_level(text)))
    return [glyph.commands for run in runs for glyph in faces.shape(run).glyphs]


def test_arabic_letters_are_joined() -> None:
    alone = [outlines(letter)[0] for letter in "\u062d\u062d\u062d"]
    joined = outlines("\u062d\u062d\u062d")
    assert len({str(glyph) for glyph in joined}) == 3, "a first, a middle and a last form"
    assert alone[0] not in joined


def test_a_vowel_that_is_written_before_its_letter_is() -> None:
    ka, ki = outlines("\u0915"), outlines("\u0915\u093f")
    assert (len(ki), ki[1]) == (2, ka[0]), "the sign of i stands to the left of the letter that it is spoken after"


@pytest.mark.parametrize(
    "letter",
    [
        "\u4e2d",
        "\u3042",
        "\ud55c",
        "\u0639",
        "\u05d0",
        "\u0915",
        "\u0995",
        "\u0ba4",
        "\u0c24",
        "\u0e17",
        "\u1780",
        "\u0416",
        "\u03a9",
        "\u1ea8",
    ],
)
def test_a_letter_is_no_box(letter: str) -> None:
    box = outlines("\U0001f469")
    assert outlines(letter) not in ([], box)


def test_a_line_is_cut_by_font_direction_and_script() -> None:
    text = "ab \u0915\u093f 12 \u05d0\u05d1"
    runs = list(Faces().runs(text, levels(text, 0)))
    assert [run.text for run in runs] == ["ab ", "\u0915\u093f 12 ", "\u05d0\u05d1"]
    assert "".join(run.text for run in runs) == text
    assert all(isinstance(run, Run) for run in runs)
