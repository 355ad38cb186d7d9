"""Where a command's answer goes: also to a full disk, to nobody, and to a terminal that is not UTF-8."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.schema import lay_sqlite
from tests.support.servers import ROOT

COMMAND = [sys.executable, "-m", "proxy.cli"]
NAME = "Zoë 日本 😀"


@pytest.fixture
def place(folder: Path) -> Path:
    lay_sqlite(folder / "var" / "tollkeeper.db")
    return folder


def run(place: Path, typed: list[str], redirect: str = "", **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-x", **more}
    words = ["sh", "-c", f'exec "$@" {redirect}', "sh", *COMMAND, *typed]
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize("charset", ["ascii", "latin-1"])
def test_a_name_that_a_terminal_cannot_show_keeps_no_answer_back(charset: str, place: Path) -> None:
    """An account is made, and its key is shown this once."""
    text = run(place, ["account", "create", NAME], PYTHONIOENCODING=charset)
    assert (text.returncode, b"tk-" in text.stdout, text.stderr) == (0, True, b"")
    made = run(place, ["account", "create", NAME, "--json"], PYTHONIOENCODING=charset)
    shown = run(place, ["account", "show", json.loads(made.stdout)["accountId"], "--json"], PYTHONIOENCODING=charset)
    assert json.loads(shown.stdout)["name"] == NAME
    missing = run(place, ["account", "show", NAME + "?"], PYTHONIOENCODING=charset)
    assert (missing.returncode, b"Traceback" in missing.stderr) == (1, False)


@pytest.mark.parametrize("typed", ["account list", "account list --json", "--help", "account list --help"])
def test_who_closes_the_output_wants_none(typed: str, place: Path) -> None:
    done = run(place, typed.split(), ">&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("typed", ["account list", "account list --json", "--help", "--version", "account list --help"])
def test_a_full_disk_is_one_line(typed: str, place: Path) -> None:
    done = run(place, typed.split(), "> /dev/full")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert b"No space left" in done.stderr


@pytest.mark.parametrize("module", ["msgspec", "billing.storage.database", "proxy.cli.books"])
def test_an_interrupt_ends_a_command_quietly_also_while_it_is_loaded(module: str, place: Path) -> None:
    look = (
        "import os, signal, sys\n"
        "from proxy.cli import main as command_line\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *more):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"sys.modules.pop({module!r}, None)\n"
        "sys.exit(command_line.main(['books', 'days']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", look], cwd=place, env=environment, capture_output=True, check=False)
    assert (done.returncode in (-signal.SIGINT, 130), done.stderr) == (True, b"")
