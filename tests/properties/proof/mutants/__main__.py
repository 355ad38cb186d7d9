"""Change the money core one thing at a time and run the tests that see it: python -m tests.properties.proof.mutants [FILE...]

Ends in 1 where a mutant outlives the tests and explained.toml does not say why, or explains what no longer does.
"""

import argparse
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from tests.properties.proof.mutants import forks
from tests.properties.proof.mutants.selection import ALL, OWN, other_tests_of, own_tests_of

HERE = Path(__file__).parent
GENERATE = (".venv-mutants/bin/python", str(HERE / "generate.py"))
SECONDS = 60
"""Seconds that a mutant may take before it counts as found: it goes round for ever."""


def key_of(mutant: dict[str, Any]) -> str:
    """Name of a mutant in explained.toml, which stays as lines above it come and go."""
    return f"{mutant['file']} {mutant['inside'] or '-'}: {mutant['before']} -> {mutant['after']}"


def explained() -> dict[str, str]:
    """Return name → why no test can fail."""
    groups = tomllib.loads((HERE / "explained.toml").read_text())["explained"]
    return {name: group["why"] for group in groups for name in group["mutants"]}


def main() -> int:
    """Run what is asked for."""
    options = argparse.ArgumentParser(prog="make prove-mutants", description=__doc__)
    options.add_argument("files", nargs="*", metavar="FILE", help="some of the files alone (default: all)")
    options.add_argument("--containing", default="", help="only mutants whose name contains this")
    options.add_argument(
        "--recheck", action="store_true", help="run those that are explained, too (default: trust them)"
    )
    given = options.parse_args()
    files = given.files or list(OWN)
    if unknown := set(files) - OWN.keys():
        options.error(f"no tests are named for {', '.join(sorted(unknown))}: selection.py")
    forks.load_libraries(ALL)
    for file in files:
        if forks.outcome(file, Path(file).read_text(), (own_tests_of(file),), SECONDS) != "survived":
            sys.exit(f"{file}: its tests fail before anything is changed")
    if forks.outcome(files[0], Path(files[0]).read_text(), (ALL,), SECONDS) != "survived":
        sys.exit(f"{', '.join(ALL)}: they fail before anything is changed")
    known = explained()
    done = [_file(file, known, given) for file in files]
    mutants, killed = (sum(getattr(one, name) for one in done) for name in ("mutants", "killed"))
    left, met = [name for one in done for name in one.left], {name for one in done for name in one.explained}
    stale = [] if given.containing else sorted({name for name in known if name.split()[0] in files} - met)
    print(f"mutants {mutants:,}, killed {killed:,}, explained {mutants - killed - len(left):,}; files {len(files)}")
    for what, names in (("NOT EXPLAINED", left), ("explained, and killed or gone", stale)):
        for name in names:
            print(f"{what}: {name}")
    return 1 if left or stale else 0


class Done(NamedTuple):
    """Figures of a file: its survivors by name, those that explained.toml knows apart."""

    mutants: int
    killed: int
    explained: list[str]
    left: list[str]


def _file(file: str, known: dict[str, str], given: argparse.Namespace) -> Done:
    """Run the mutants of a file."""
    started = time.monotonic()
    made = json.loads(subprocess.run((*GENERATE, file), check=True, capture_output=True, text=True).stdout)
    mutants = [(key_of(one), one["source"]) for one in made if given.containing in key_of(one)]
    stages = [tests for tests in (own_tests_of(file), other_tests_of(file)) if tests]
    run = [one for one in mutants if given.recheck or one[0] not in known]
    quick = forks.quick_outcomes(file, [source for _, source in run], stages[0], SECONDS)
    outlived = [
        name
        for (name, source), found in zip(run, quick, strict=True)
        if found == "survived" and forks.outcome(file, source, stages, SECONDS) == "survived"
    ]
    if not given.recheck:
        outlived += [name for name, _ in mutants if name in known]
    left = [name for name in outlived if name not in known]
    done = Done(len(mutants), len(mutants) - len(outlived), [name for name in outlived if name in known], left)
    print(
        f"{file:40} mutants {done.mutants:4}, killed {done.killed:4}, explained {len(done.explained):3}, "
        f"not explained {len(left):3}   {time.monotonic() - started:4.0f} s",
        flush=True,
    )
    return done


if __name__ == "__main__":
    sys.exit(main())
