"""Run the proof: python -m tests.properties.proof [--full] [--only PART [--size N]] [--seed N]

Prints a line for each part as it ends, and the table of docs/proof.md at the end; 1 when anything did not hold.
"""

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.properties.proof import bad_weather, clocks, cut_off, fuzz, overspend, seeded, standing
from tests.properties.proof.part import Figures, Part

KILLED = (
    "tests/faults/test_killed_at_each_point.py",
    "tests/faults/test_background_killed.py",
    "tests/faults/test_batches_killed.py",
    "tests/faults/test_storage_killed.py",
    "tests/faults/test_calls_killed.py",
)
STORES = (
    "tests/faults/test_redis_fails.py",
    "tests/faults/test_sql_fails.py",
    "tests/faults/test_stores_after_a_fault.py",
    "tests/billing/balances/redis/test_reaping.py",
)
STORM = "tests/faults/test_webhook_storm_served.py"


def storm_of(size: int, seed: int) -> dict[str, str]:
    """Return the storm's own settings: 50 deliveries for each kill."""
    return {"TOLLKEEPER_STORM_SERVED": f"{size},{max(6, size // 50)}", "TOLLKEEPER_STORM_SEED": str(seed)}


PARTS = (
    Part(
        "exactly K",
        "I1",
        "1,000 requests at once over 4 processes on credit for K: exactly K are served",
        "values of K",
        2,
        len(overspend.EXACT),
        overspend.exactly_k,
    ),
    Part(
        "exactly K, cluster",
        "I1",
        "the same on a Redis Cluster of six nodes, on one master after the other",
        "values of K",
        3,
        len(overspend.EXACT),
        overspend.exactly_k_on_cluster,
    ),
    Part(
        "peers' cases",
        "I1",
        "what other gateways serve for nothing is refused, and no balance is below zero",
        "cases",
        len(overspend.CASES),
        len(overspend.CASES),
        overspend.peers_cases,
    ),
    Part(
        "metering",
        "I2, I4",
        "each charge of a random walk is the simulator's own bill",
        "exchanges",
        1_500,
        20_000,
        standing.metering,
    ),
    Part(
        "killed at each point",
        "I3, I4, I5",
        "kill -9 at every named point of a request, of both stores: charged once, exactly",
        "runs",
        1,
        1,
        standing.tests(*KILLED),
    ),
    Part(
        "kill storm",
        "I3, I4, I5",
        "workers, jobs, the counter and Redis killed at random: nothing lost, nothing twice, nothing held",
        "kills",
        25,
        5_000,
        bad_weather.kills,
    ),
    Part(
        "kill storm, cluster",
        "I3, I4, I5",
        "workers, jobs and masters of a cluster killed at random, replicas take over: nothing lost, nothing twice",
        "kills",
        15,
        2_000,
        bad_weather.kills_on_cluster,
    ),
    Part(
        "lost replies",
        "I3, I4, I5",
        "replies of Redis, SQL and upstream lost, cut and late: nothing lost, nothing twice, nothing held",
        "faults of each",
        20,
        3_500,
        bad_weather.lost_replies,
    ),
    Part(
        "clocks",
        "I1, I3, I4",
        "machines an hour ahead, an hour behind and jumping: limits hold, nothing is taken from who lives or kept for an hour",
        "jumps",
        3,
        300,
        clocks.jumping_clocks,
    ),
    Part(
        "cut off",
        "I3, I4, I9",
        "a machine reaches nobody for longer than its leases and comes back: resolved once by others, the rest charged once",
        "cuts",
        2,
        200,
        cut_off.cut_off,
    ),
    Part(
        "stores away",
        "I5, I9",
        "Redis killed, emptied, frozen, put back from an old file; SQL frozen or locked: closed, then right again",
        "runs",
        1,
        1,
        standing.tests(*STORES),
    ),
    Part(
        "webhook storm",
        "I6",
        "purchases, refunds and disputes delivered 1 to 5 times, shuffled, under kills: each counted once",
        "deliveries",
        600,
        10_000,
        standing.tests(STORM, sized=storm_of),
    ),
    Part(
        "fuzz",
        "I2, I8",
        "spoiled bodies, forms, paths, heads, frames, webhooks and answers: no fault, no hang, nothing unmetered",
        "inputs",
        1_000,
        1_000_000,
        fuzz.fuzzed,
    ),
    Part(
        "seeded bugs",
        "all",
        "money bugs put into the served product, one at a time: each is found by a part above",
        "bugs",
        len(seeded.SEEDED),
        len(seeded.SEEDED),
        seeded.harness,
    ),
)


def main() -> int:
    """Run what is asked for."""
    options = argparse.ArgumentParser(prog="make prove", description=__doc__)
    options.add_argument("--full", action="store_true", help="the sizes that take hours, instead of minutes")
    options.add_argument("--only", choices=[part.name for part in PARTS], help="one part alone")
    options.add_argument("--size", type=int, help="of one part, in its own unit: between the short and the full one")
    options.add_argument("--seed", type=int, default=int(time.time()), help="of all dice (default: the time)")
    given = options.parse_args()
    if given.size is not None and not (given.only and given.size > 0):
        options.error("--size N is of one part: --only PART, and above 0")
    print(f"seed {given.seed}", flush=True)
    rows, held = [], True
    for part in PARTS:
        if given.only in (None, part.name):
            size = given.size or (part.full if given.full else part.short)
            row, well = _row(part, size, given.seed)
            rows.append(row)
            held = held and well
    print("\n| part | of | what is claimed | figures | time |\n| --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    return 0 if held else 1


def _row(part: Part, size: int, seed: int) -> tuple[str, bool]:
    """Run a part; (its row of the table, whether its claim held)."""
    started, held = time.monotonic(), True
    figures: Figures
    with tempfile.TemporaryDirectory(prefix="tkp", ignore_cleanup_errors=True) as folder:
        try:
            figures = part.run(Path(folder), size, seed)
        except AssertionError:
            held, figures = (
                False,
                {"DOES NOT HOLD": f"python -m tests.properties.proof --only {part.name!r} --size {size} --seed {seed}"},
            )
            traceback.print_exc()
    seconds = time.monotonic() - started
    shown = ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name}: {value}" for name, value in figures.items()
    )
    print(f"{'holds' if held else 'FAILS'}  {part.name:22} {seconds:6.0f} s  {shown}", flush=True)
    return f"| {part.name} | {part.invariants} | {part.claim} | {shown} | {seconds:.0f} s |", held


if __name__ == "__main__":
    sys.exit(main())
