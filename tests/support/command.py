"""The `tollkeeper` command in the test's own process: starting Python takes longer than most commands."""

import contextlib
import io
import json
import os
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from proxy.cli import main
from tests.support.servers import Tollkeeper


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(server: Tollkeeper, *arguments: str, **environment: str) -> Done:
    """The command as typed, run in this process because starting Python takes longer than most commands."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(server.folder),
        patch.dict(os.environ, {**server.all_environment(), **environment}, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse
            code = int(str(end.code or 0))
    return Done(code, out.getvalue(), err.getvalue())


def cli(server: Tollkeeper, *arguments: str, code: int = 0) -> Any:
    """The command with --json: its object, after checking its exit code."""
    done = run(server, *arguments, "--json")
    assert done.returncode == code, done
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])
