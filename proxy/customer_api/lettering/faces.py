"""The fonts that statements are written with, and text shaped by them.

Each comes with a package of its own under the SIL Open Font License. HarfBuzz joins Arabic letters, puts Indic vowels
in their places and marks on their letters; the glyphs come back as outlines, which every PDF reader draws.
"""

import importlib.util
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uharfbuzz

REGULAR = {"wght": 400, "wdth": 100}
FILES = (
    ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf"),  # Latin, Greek, Cyrillic, Devanagari
    ("fontpkg_noto_sans_arabic", "files/NotoSansArabic[wdth,wght].ttf"),
    ("fontpkg_heebo", "files/Heebo[wght].ttf"),  # Hebrew
    ("fontpkg_hind_siliguri", "files/HindSiliguri-Regular.ttf"),  # Bengali
    ("fontpkg_noto_sans_tamil", "files/NotoSansTamil[wdth,wght].ttf"),
    ("fontpkg_noto_sans_telugu", "files/NotoSansTelugu[wdth,wght].ttf"),
    ("fontpkg_noto_sans_thai", "files/NotoSansThai[wdth,wght].ttf"),
    ("fontpkg_noto_sans_khmer", "files/NotoSansKhmer[wdth,wght].ttf"),
    ("manimgx_fonts_cjk", "NotoSansCJK-VF.otf.ttc"),  # Chinese, Japanese, Korean: 32 MB, and so the last to be opened
)
"""(package, file in it), in the order in which they are asked for a character. The first has the box for what none has.
"""
CLINGS = ("Mn", "Mc", "Me", "Cf")
"""Categories that are written with the character before them: marks, joiners."""


class Glyph(NamedTuple):
    """An outline to fill: operators of PDF (m, l, c, h) with coordinates, to be moved by (x, y); in parts of the font's
    size.
    """

    commands: list[tuple[Any, ...]]
    x: float
    y: float


class Shaped(NamedTuple):
    """Glyphs of a run, from left to right, and its width in parts of the font's size."""

    glyphs: list[Glyph]
    width: float


class Run(NamedTuple):
    """Characters that one font writes in one direction and script."""

    text: str
    face: int
    level: int


class Faces:
    """The fonts, opened as text asks for them. For one document: what it opened goes with it."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._fonts: dict[int, Any] = {}
        self._chosen: dict[tuple[str, int], int] = {}
        self._widths: dict[Run, float] = {}
        self._draw = uharfbuzz.DrawFuncs()
        self._draw.set_move_to_func(lambda x, y, found: found.append(("m", x, y)))
        self._draw.set_line_to_func(lambda x, y, found: found.append(("l", x, y)))
        self._draw.set_cubic_to_func(lambda *numbers: numbers[-1].append(("c", *numbers[:-1])))
        self._draw.set_close_path_func(lambda found: found.append(("h",)))

    def runs(self, text: str, levels: list[int]) -> Iterator[Run]:
        """Cut a line into runs, in the order of its characters."""
        start, now = 0, (-1, -1, "")
        for place, sign in enumerate(text):
            face, level, script = self._face_of(sign, now[0]), levels[place], _script(sign) or now[2]
            if place and unicodedata.category(sign) in CLINGS:
                continue
            if place > start and ((face, level) != now[:2] or (now[2] and script != now[2])):
                yield Run(text[start:place], *now[:2])
                start = place
            now = (face, level, script)
        yield Run(text[start:], *now[:2])

    def width(self, run: Run) -> float:
        """Return a run's width in parts of the font's size."""
        if run not in self._widths:  # a line is measured again on every page that it may end on
            font = self._font(run.face)
            advances = (at.x_advance for at in _set(font, run).glyph_positions)
            self._widths[run] = float(sum(advances) / font.face.upem)
        return self._widths[run]

    def shape(self, run: Run) -> Shaped:
        """Return a run as it is drawn."""
        font = self._font(run.face)
        buffer = _set(font, run)
        upem, glyphs, pen = font.face.upem, [], 0
        for info, at in zip(buffer.glyph_infos, buffer.glyph_positions, strict=True):
            commands: list[tuple[Any, ...]] = []
            font.draw_glyph(info.codepoint, self._draw, commands)
            scaled = [(name, *(number / upem for number in numbers)) for name, *numbers in commands]
            glyphs.append(Glyph(scaled, (pen + at.x_offset) / upem, at.y_offset / upem))
            pen += at.x_advance
        return Shaped(glyphs, pen / upem)

    def _face_of(self, sign: str, before: int) -> int:
        """Return the font for a character: the one before it where that has it."""
        if (sign, before) not in self._chosen:
            order = range(len(FILES)) if before < 0 else (before, *range(len(FILES)))
            self._chosen[sign, before] = next(filter(partial(self._has, sign), order), 0)
        return self._chosen[sign, before]

    def _has(self, sign: str, face: int) -> bool:
        return bool(self._font(face).get_nominal_glyph(ord(sign)))

    def _font(self, face: int) -> Any:
        if face not in self._fonts:
            package, name = FILES[face]
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise FileNotFoundError(f"the package {package} with the font {name} is not installed")
            font = uharfbuzz.Font(uharfbuzz.Face(uharfbuzz.Blob.from_file_path(Path(spec.origin).parent / name)))
            font.set_variations(REGULAR)
            self._fonts[face] = font
        return self._fonts[face]


def _set(font: Any, run: Run) -> Any:
    """Set a run in type: HarfBuzz's buffer with its glyphs."""
    buffer = uharfbuzz.Buffer()
    buffer.add_str(run.text)
    buffer.guess_segment_properties()
    buffer.direction = "rtl" if run.level % 2 else "ltr"
    uharfbuzz.shape(font, buffer)
    return buffer


def _script(sign: str) -> str:
    """Return a word for a letter's script, the first of its name; "" for what goes with every script."""
    return unicodedata.name(sign, "").partition(" ")[0] if unicodedata.category(sign)[0] == "L" else ""
