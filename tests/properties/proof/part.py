"""A part of the proof: one claim, and what shows it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

Figures = Mapping[str, int | str]


class Part(NamedTuple):
    """`run(folder, size, seed)` returns figures for the table, and raises AssertionError where the claim does not hold.

    `invariants` as docs/architecture.md names them; `short` and `full` are sizes, in `unit`.
    """

    name: str
    invariants: str
    claim: str
    unit: str
    short: int
    full: int
    run: Callable[[Path, int, int], Figures]
