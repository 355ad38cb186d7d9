"""`make test` sets up what it needs, or says in one sentence what is missing; CI runs nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.servers import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def path_of(folder: Path, *programs: str) -> str:
    """PATH with nothing but these."""
    for name in ("bash", "dirname", "id", *programs):
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return str(folder)


def install(path: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", str(ROOT / "scripts" / "install"), *arguments]
    return subprocess.run(
        command, env={"PATH": path, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_where_apt_is_not_one_sentence_says_what_to_install(folder: Path) -> None:
    done = install(path_of(folder), "dev")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: the tests need curl prometheus on PATH: install what is missing and say `make test` again "
        "(Debian: apt-get install curl prometheus)\n"
    )


def test_an_older_python_is_refused_by_a_sentence(folder: Path) -> None:
    checkout = folder / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "install", checkout / "scripts")
    (folder / "python3").write_text("#!/bin/bash\nexit 1\n")
    (folder / "python3").chmod(0o755)
    command = [shutil.which("bash") or "bash", str(checkout / "scripts" / "install"), "run"]
    done = subprocess.run(command, env={"PATH": path_of(folder)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "python3 is not Python 3.11 or newer" in done.stderr
    assert not (checkout / ".venv").exists()


def test_ci_runs_the_two_commands_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "set -euo pipefail",
        'cd "$(dirname "$0")/.."',
        "make lint",
        "make test",
    ]


def test_a_change_of_any_lock_installs_again() -> None:
    script = (ROOT / "scripts" / "install").read_text()
    locks = {path.stem for path in (ROOT / "requirements").glob("*.lock")}
    assert set(re.findall(r"requirements/(\w+)\.lock", MAKEFILE)) == locks
    assert {name for name in locks if re.search(rf"(from_lock \S+|second_environment \S+) {name}\b", script)} == locks
    assert set(re.findall(r"requirements/(\w+)\.lock", (ROOT / "scripts" / "lock").read_text())) == locks
