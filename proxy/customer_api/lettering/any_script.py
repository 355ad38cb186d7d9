"""A paragraph of any script for reportlab: broken into lines, each drawn as outlines with its text beside them."""

import re
import unicodedata
from collections.abc import Iterator

from reportlab.platypus import Flowable

from proxy.customer_api.lettering.faces import CLINGS, Faces
from proxy.customer_api.lettering.writing_order import base_level, levels, seen_order

WORD = re.compile(r"\S+\s*|\s+")
FILL = "f"
"""By the rule of non-zero winding: strokes of a glyph may overlap."""


class AnyScript(Flowable):  # type: ignore[misc]
    """Text in lines of a column. Sizes in points; may be cut between lines, as a paragraph may."""

    def __init__(self, text: str, faces: Faces, size: float, leading: float) -> None:
        """`faces` of the document."""
        super().__init__()
        self._text, self._faces, self._size, self._leading = text, faces, size, leading
        self._base = base_level(text)
        self._widths: dict[str, float] = {}
        self._lines: list[str] = []  # with the blanks that they were broken behind

    def wrap(self, available_width: float, available_height: float) -> tuple[float, float]:  # noqa: ARG002 - reportlab's
        """Break into lines of a width; return what they take."""
        self.width = available_width
        self._lines = list(self._broken(available_width))
        self.height = len(self._lines) * self._leading
        return self.width, self.height

    def split(self, available_width: float, available_height: float) -> list[Flowable]:
        """Cut where a page ends: a table asks with the width of the column, but it is drawn within its padding."""
        if not self._lines:
            self.wrap(available_width, available_height)
        fit = int(available_height // self._leading)
        if fit < 1:
            return []
        if fit >= len(self._lines):
            return [self]
        return [self._part(self._lines[:fit]), self._part(self._lines[fit:])]

    def draw(self) -> None:
        """Draw the lines from the top; those that begin at the right stand at the right."""
        for number, line in enumerate(self._lines):
            self._draw_line(line.rstrip(), self.height - number * self._leading - self._size)

    def _draw_line(self, line: str, y: float) -> None:
        """Write a line's outlines, and beside them what they say: for who searches, copies or listens.

        In the page's own operators: reportlab has no method for the words, and one of its own for each curve is slow.
        """
        spoken = line.encode("utf-16-be").hex().upper()
        code = [f"/Span <</ActualText <FEFF{spoken}>>> BDC"]
        pen = max(0.0, self.width - self._width(line)) if self._base else 0.0
        runs = list(self._faces.runs(line, levels(line, self._base)))
        for run in seen_order(runs, [run.level for run in runs]):
            shaped = self._faces.shape(run)
            for glyph in shaped.glyphs:
                left, bottom = pen + glyph.x * self._size, y + glyph.y * self._size
                for operator, *numbers in glyph.commands:
                    places = [
                        f"{(bottom if place % 2 else left) + number * self._size:.2f}"
                        for place, number in enumerate(numbers)
                    ]
                    code.append(" ".join([*places, operator]))
            pen += shaped.width * self._size
        self.canv._code += [*code, FILL, "EMC"]  # noqa: SLF001

    def _broken(self, room: float) -> Iterator[str]:
        """Return the lines: broken behind blanks and between ideographs, and within a word that has no line of its
        own.

        Pieces are measured by themselves: a line is as wide as they are.
        """
        line, taken = "", 0.0
        for word in self._words():
            for piece in [word] if self._width(word.rstrip()) <= room else _letters(word):
                if line and taken + self._width(piece.rstrip()) > room:
                    yield line
                    line, taken = "", 0.0
                line += piece
                taken += self._width(piece)
        yield line

    def _words(self) -> Iterator[str]:
        for word in WORD.findall(self._text):
            start = 0
            for place in range(1, len(word)):
                if _is_wide(word[place]) and _is_wide(word[place - 1]):
                    yield word[start:place]
                    start = place
            yield word[start:]

    def _width(self, text: str) -> float:
        if not text:
            return 0.0
        if text not in self._widths:
            runs = self._faces.runs(text, levels(text, self._base))
            self._widths[text] = sum(map(self._faces.width, runs)) * self._size
        return self._widths[text]

    def _part(self, lines: list[str]) -> Flowable:
        part = AnyScript("".join(lines), self._faces, self._size, self._leading)
        part._base, part._widths = self._base, self._widths
        return part


def _is_wide(sign: str) -> bool:
    return unicodedata.east_asian_width(sign) == "W" and unicodedata.category(sign) == "Lo"


def _letters(word: str) -> Iterator[str]:
    """Cut a word into letters, each with its marks."""
    start = 0
    for place in range(1, len(word)):
        if unicodedata.category(word[place]) not in CLINGS:
            yield word[start:place]
            start = place
    yield word[start:]
