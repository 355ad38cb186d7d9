"""Parts that are tests already: they run as they stand, in another size where they have one."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.properties.metering_walk import walked
from tests.properties.proof.part import Figures
from tests.support.servers import MAY_SERVE, ROOT

COUNTS = re.compile(r"(\d+) (passed|failed|error)")
TOLD = 3_000
"""Characters of a failing test's output that are shown."""


def tests(*paths: str, sized: Callable[[int, int], dict[str, str]] = lambda _size, _seed: {}) -> Callable[..., Figures]:
    """Return a run of these tests; `sized(size, seed)`: environment variables that say how much they do."""

    def run(_folder: Path, size: int, seed: int) -> Figures:
        environment = {name: value for name, value in os.environ.items() if name != MAY_SERVE}
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
        done = subprocess.run(
            [*command, *paths],
            cwd=ROOT,
            env={**environment, **sized(size, seed)},
            capture_output=True,
            text=True,
            check=False,
        )
        counts = {what: int(number) for number, what in COUNTS.findall(done.stdout.splitlines()[-1])}
        assert done.returncode == 0, done.stdout[-TOLD:]
        return {"tests": counts["passed"]}

    return run


def metering(folder: Path, size: int, seed: int) -> Figures:
    """Walk over so many exchanges (metering_walk.py)."""
    with walked(folder, seed) as walk:
        found = walk.run(size)
    assert not found.wrong, found.report()
    return {"exchanges": size, "kinds of exchanges": len(found.cells), "charged other than the bill": 0}
