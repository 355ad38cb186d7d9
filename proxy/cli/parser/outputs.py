"""Outputs of a command: also closed ones, a full disk, a terminal that cannot show every letter.

What a command did is done by then, and a key that it made is shown this once: no letter may keep an answer back.
"""

import io
import os
import sys
from typing import IO


class OutputLost(Exception):
    """The answer could not be written, for a reason that is no reader who left."""


def open_outputs(*, json: bool) -> None:
    """Write to nowhere where an output is closed, a sign for each letter that a terminal lacks; JSON is UTF-8."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - as long as the process
        elif isinstance(stream, io.TextIOWrapper) and json and name == "stdout":
            stream.reconfigure(encoding="utf-8")
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str, file: IO[str] | None = None) -> None:
    """Write text as it is (None: to stdout). Raises OutputLost, and BrokenPipeError as it is."""
    try:
        (file or sys.stdout).write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(error.strerror) from None


def flush() -> None:
    """Write what waits. Raises as `write`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(error.strerror) from None


def forget_output() -> None:
    """Let nothing that waits be written any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
