"""`make prove-metering`, as far as a test run has time for: its findings are listed, its cells and ratios printed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.properties.metering_walk import MOST_HOLD_TO_CHARGE, walked

pytestmark = [pytest.mark.served, pytest.mark.timeout(600)]

MADE = {
    *("chat", "responses", "background", "batch", "search", "embeddings", "completions"),
    *("images", "speech", "transcriptions", "realtime", "call"),
}
"""Kinds of exchanges that every walk of this length makes; some functions of the walk share one."""


def test_every_charge_of_a_random_walk_is_the_simulators_bill(new_folder: Callable[[str], Path]) -> None:
    with walked(new_folder("walk"), 20_261_129) as walk:
        found = walk.run(1_500)
    print(found.report())
    assert found.wrong == []
    assert sum(found.cells.values()) == 1_500
    assert {cell[0] for cell in found.cells} == MADE
    capped = [ratio for ratio, cell in found.hold_ratios if cell[0] == "responses"]
    assert max(capped) < MOST_HOLD_TO_CHARGE
