"""What a worker that serves pays for more of everything at once: streams that run, accounts that ask."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.__main__ import OURS, run_slow
from bench.processes import JSON, Burst, burst, tollkeeper, upstream

SPARE = 256
"""Connections beside those of the streams: some are kept for probes."""
SECONDS = 5


class Streams(NamedTuple):
    """So many slow streams at once: CPU us a chunk, the longest gap in seconds, the worker's megabytes at most."""

    cpu_us: float
    longest_gap_s: float
    peak_mb: float


def streams(number: int) -> Streams:
    """Run so many streams through one worker. Raises RuntimeError where one did not end whole."""
    room = str(number + SPARE)
    settings = {
        "TOLLKEEPER_LISTEN__MAX_CONNECTIONS": room,
        "TOLLKEEPER_LISTEN__MAX_CONNECTIONS_PER_ADDRESS": "0",
        "TOLLKEEPER_UPSTREAM__MAX_CONNECTIONS": room,
    }
    with tempfile.TemporaryDirectory(prefix="growth") as folder:
        found = run_slow(Path(folder) / "slow", OURS, number, settings)
    if found["completed"] != number:
        raise RuntimeError(f"{found['completed']} of {number} streams ended whole")
    return Streams(found["cpu_us"], found["longest_gap_s"], found["peak_mb"])


def accounts(number: int) -> Burst:
    """Load a worker in the name of so many accounts, in turn."""
    with (
        tempfile.TemporaryDirectory(prefix="growth") as folder,
        upstream() as place,
        tollkeeper(Path(folder) / "t", place, "everysec", accounts=number) as subject,
    ):
        burst(subject, JSON, 1)
        return burst(subject, JSON, SECONDS)
