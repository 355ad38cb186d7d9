"""A peer: what it does, its version, how it is run; and why one is absent."""

import importlib.metadata
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench.processes import Subject

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "scripts/install peers"


class Absent(Exception):
    """A peer cannot run here: a package or a program is missing. Says which, in one line."""


class Peer(NamedTuple):
    """Something that stands between a client and OpenAI.

    `does`: what of a request's money it sees to. `run` takes a folder that does not exist and the upstream's address;
    it and `version` raise Absent.
    """

    name: str
    does: str
    version: Callable[[], str]
    run: Callable[[Path, str], AbstractContextManager[Subject]]


def program(environment: str, name: str) -> Path:
    """Path of a program in an environment of its own (.venv-NAME)."""
    path = ROOT / environment / "bin" / name
    if not path.is_file():
        raise Absent(f"{environment} has no {name}: {INSTALL}")
    return path


def tool(name: str, package: str) -> str:
    """Path of a program of the system."""
    path = shutil.which(name)
    if path is None:
        raise Absent(f"{name} is not on PATH ({package})")
    return path


def installed(environment: str, package: str) -> str:
    """Version of a package in an environment of its own."""
    folders = [str(path) for path in (ROOT / environment).glob("lib/python3*/site-packages")]
    for found in importlib.metadata.distributions(name=package, path=folders):
        return found.version
    raise Absent(f"{environment} has no package {package}: {INSTALL}")
