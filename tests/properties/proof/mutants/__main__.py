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
from typing import Any

from tests.properties.proof.mutants import forks
from tests.properties.proof.mutants.selection import ALL, OWN, tests_of

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
    given = options.parse_args()
    files = given.files or list(OWN)
    if unknown := set(files) - OWN.keys():
        options.error(f"no tests are named for {', '.join(sorted(unknown))}: selection.py")
    forks.load_libraries(ALL)
    for file in files:
        if forks.outcome(file, Path(file).read_text(), tests_of(file), 600) != "survived":
            sys.exit(f"{file}: its tests fail before anything is changed")
    total, known, open_ends, stale = {"mutants": 0, "killed": 0, "explained": 0}, explained(), [], set()
    for file in files:
        figures, left = _file(file, known, given.containing)
        total = {name: number + figures[name] for name, number in total.items()}
        open_ends += left
        if not given.containing:
            stale |= {name for name in known if name.startswith(f"{file} ")} - figures["names"]
    print(", ".join(f"{name} {number:,}" for name, number in total.items()), f"in {len(files)} files")
    for what, names in (("NOT EXPLAINED", open_ends), ("explained, and killed or gone", sorted(stale))):
        for name in names:
            print(f"{what}: {name}")
    return 1 if open_ends or stale else 0


def _file(file: str, known: dict[str, str], containing: str) -> tuple[dict[str, Any], list[str]]:
    """Run the mutants of a file; (its figures, those that nobody explains)."""
    started, names, left = time.monotonic(), set(), []
    made = json.loads(subprocess.run((*GENERATE, file), check=True, capture_output=True, text=True).stdout)
    mutants = [mutant for mutant in made if containing in key_of(mutant)]
    tests = tests_of(file)
    quick = forks.quick_outcomes(file, [mutant["source"] for mutant in mutants], tests, SECONDS)
    survivors = [
        key_of(mutant)
        for mutant, found in zip(mutants, quick, strict=True)
        if found == "survived" and forks.outcome(file, mutant["source"], tests, SECONDS) == "survived"
    ]
    names = {name for name in survivors if name in known}
    left = [name for name in survivors if name not in known]
    figures = {"mutants": len(mutants), "killed": len(mutants) - len(survivors), "names": names}
    figures["explained"] = len(survivors) - len(left)
    print(
        f"{file:40} mutants {len(mutants):4}, killed {figures['killed']:4}, explained {figures['explained']:3}, "
        f"not explained {len(left):3}   {time.monotonic() - started:4.0f} s",
        flush=True,
    )
    return figures, left


if __name__ == "__main__":
    sys.exit(main())
