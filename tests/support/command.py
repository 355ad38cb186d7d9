"""The `tollkeeper` command in the test's own process: starting Python takes longer than most commands."""

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from proxy.cli.main import main


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run_command(folder: Path, environment: Mapping[str, str], arguments: Sequence[str]) -> Done:
    """The command as typed in that folder with only that environment, on a thread of its own (the test may have a running loop)."""
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        try:
            return main(list(arguments))
        except SystemExit as end:  # argparse
            return int(str(end.code or 0))

    with (
        contextlib.chdir(folder),
        patch.dict(os.environ, environment, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        ThreadPoolExecutor(1) as thread,
    ):
        code = thread.submit(run).result()
    return Done(code, out.getvalue(), err.getvalue())
