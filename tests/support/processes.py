"""Processes and databases that stand still for a while."""

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.servers import Tollkeeper


@contextlib.contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection holds the write lock of a SQLite file."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def children(server: Tollkeeper) -> list[psutil.Process]:
    """Workers, jobs process and counter of a served product."""
    assert server.process is not None
    return psutil.Process(server.process.pid).children()


def jobs_process(server: Tollkeeper) -> psutil.Process:
    """The one that flushes."""
    (found,) = [child for child in children(server) if child.name() == "tk-jobs"]
    return found
