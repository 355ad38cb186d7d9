"""What `make run` runs, as a process in a folder of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import web
from tests.support.servers import ROOT, wait_until


@dataclass
class MakeRun:
    """A running one. `beside` is what a second terminal has before it reads var/sandbox.env."""

    folder: Path
    port: int
    text: str
    beside: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        found = re.search(r"^  (tk-\S+)$", self.text, re.MULTILINE)
        assert found is not None
        return found[1]

    def shell(self, lines: str, *, known: bool = True, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Lines in a second terminal; `known`: one that has read the file."""
        lines = f"set -a; . var/sandbox.env; set +a\n{lines}" if known else lines
        command = ["bash", "-euo", "pipefail", "-c", lines]
        return subprocess.run(
            command, cwd=self.folder, env=self.beside, capture_output=True, text=True, timeout=timeout, check=False
        )


def recipe() -> list[str]:
    found = re.search(r"\nrun: install\n\t@\$\(BIN\)/python (.*)\n", (ROOT / "Makefile").read_text())
    assert found is not None
    return [sys.executable, *found[1].split()]


def environment(port: int) -> dict[str, str]:
    strange = ("TOLLKEEPER_", "OPENAI_", "STRIPE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    return kept | {"TOLLKEEPER_LISTEN__PORT": str(port), "PATH": f"{ROOT}/.venv/bin:{kept['PATH']}"}


@contextmanager
def make_run(folder: Path, port: int, **more: str) -> Iterator[MakeRun]:
    """It serves; afterwards it has ended with 0."""
    shutil.copy(ROOT / "proxy.toml", folder)
    beside, output = environment(port), folder / "out.txt"
    with output.open("wb") as out:
        process = subprocess.Popen(recipe(), cwd=folder, env=beside | more, stdout=out, stderr=out)
    try:
        wait_until(lambda: web.get(f"http://127.0.0.1:{port}/readyz").status_code == 200, 30, "make run serves")
        yield MakeRun(folder, port, output.read_text(), beside)
    finally:
        process.send_signal(signal.SIGTERM)
        ended = process.wait(40)
    assert ended == 0, output.read_text()
