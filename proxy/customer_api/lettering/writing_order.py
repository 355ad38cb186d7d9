"""Directions of a line's characters, and the order in which its pieces are seen. Pure.

The bidirectional algorithm of Unicode (UAX 9) for text without explicit embeddings and isolates. Its rules are named as
there: W1 to W7 for numbers and what stands beside them, N1 and N2 for what has no direction, I1 and I2 for levels, L2
for the order. An odd level is written from right to left.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

STRONG = ("L", "R", "AL")
NUMBERS = ("EN", "AN")
NEUTRAL = ("B", "S", "WS", "ON", "BN", "ES", "ET", "CS")

Piece = TypeVar("Piece")


class _Span(NamedTuple):
    start: int
    end: int


def base_level(text: str) -> int:
    """Return 1 when the first strong character is written from right to left, else 0 (P2, P3)."""
    first = next((kind for kind in map(unicodedata.bidirectional, text) if kind in STRONG), "L")
    return int(first != "L")


def levels(text: str, base: int) -> list[int]:
    """Return each character's level in a paragraph of that base level."""
    edge = "R" if base else "L"
    kinds = [unicodedata.bidirectional(sign) or "L" for sign in text]
    _weak(kinds, edge)
    _neutral(kinds, edge)
    found = []
    for kind in kinds:
        if base:
            found.append(1 if kind == "R" else 2)
        else:
            found.append({"L": 0, "R": 1}.get(kind, 2))
    return found


def seen_order(pieces: Sequence[Piece], piece_levels: Sequence[int]) -> list[Piece]:
    """Return a line's pieces from left to right (L2): from the highest level down, what is at least that is turned."""
    order = list(range(len(pieces)))
    for level in range(max(piece_levels, default=0), 0, -1):
        turned: list[int] = []
        for is_turned, run in groupby(order, key=lambda place: piece_levels[place] >= level):
            places = list(run)
            turned += places[::-1] if is_turned else places
        order = turned
    return [pieces[place] for place in order]


def _weak(kinds: list[str], edge: str) -> None:
    """W1 to W7, in place."""
    before, strong = edge, edge
    for place, given in enumerate(kinds):
        kind = before if given == "NSM" else given  # W1: a mark goes with what it is on
        kinds[place] = before = kind
        if kind in STRONG:
            strong = kind
        elif kind == "EN" and strong == "AL":  # W2
            kinds[place] = "AN"
    kinds[:] = ["R" if kind == "AL" else kind for kind in kinds]  # W3
    for place in range(1, len(kinds) - 1):  # W4: a separator within a number
        left, kind, right = kinds[place - 1 : place + 2]
        if left == right and ((kind == "CS" and left in NUMBERS) or (kind == "ES" and left == "EN")):
            kinds[place] = left
    for span in _spans(kinds, ("ET",)):  # W5: what stands beside a number
        if "EN" in (_kind(kinds, span.start - 1, edge), _kind(kinds, span.end, edge)):
            kinds[span.start : span.end] = ["EN"] * (span.end - span.start)
    strong = edge
    for place, kind in enumerate(kinds):  # W7; W6 is in NEUTRAL
        if kind in STRONG:
            strong = kind
        elif kind == "EN" and strong == "L":
            kinds[place] = "L"


def _neutral(kinds: list[str], edge: str) -> None:
    """N1 and N2, in place: between two of one direction that direction, else the paragraph's."""
    for span in _spans(kinds, NEUTRAL):
        left, right = _side(_kind(kinds, span.start - 1, edge)), _side(_kind(kinds, span.end, edge))
        kinds[span.start : span.end] = [left if left == right else edge] * (span.end - span.start)


def _spans(kinds: Sequence[str], wanted: Sequence[str]) -> Iterator[_Span]:
    place = 0
    for is_wanted, run in groupby(list(kinds), key=lambda kind: kind in wanted):
        end = place + len(list(run))
        if is_wanted:
            yield _Span(place, end)
        place = end


def _kind(kinds: Sequence[str], place: int, edge: str) -> str:
    return kinds[place] if 0 <= place < len(kinds) else edge


def _side(kind: str) -> str:
    return "R" if kind in NUMBERS else kind
