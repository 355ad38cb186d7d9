"""Wall clocks of real processes that are not the machine's: libfaketime, loaded before libc. Monotonic clocks stay as they are."""

import importlib.util
import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

from tests.support import web
from tests.support.servers import Tollkeeper, wait_until

NEAR_SECONDS = 60


def _library() -> Path:
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None, "libfaketime is not in .venv: run `make install-dev`"
    assert spec.origin is not None
    path = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    assert path.is_file(), f"{path} was not built: it needs gcc and make"
    return path


class Clock:
    """A clock that goes `seconds` ahead of the machine's (or behind it), and can be moved while processes run by it."""

    def __init__(self, file: Path, seconds: int = 0) -> None:
        """`file` is what they read it from."""
        self._file, self.seconds = file, 0
        self.move(seconds)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the processes that go by it."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def move(self, seconds: int) -> None:
        """Let it be so far ahead from now on; who runs by it learns of it within seconds."""
        self.seconds = seconds
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        os.replace(fresh, self._file)

    def wait_shown(self, server: Tollkeeper) -> None:
        """Wait until a server's own answers are dated by it."""
        wait_until(
            lambda: abs(ahead(server) - self.seconds) < NEAR_SECONDS, 20, f"its clock is {self.seconds:+d} s off"
        )


def ahead(server: Tollkeeper) -> float:
    """Seconds by which a server's answers are dated ahead of this process's clock."""
    date = web.get(f"{server.url}/healthz", timeout=5).headers["date"]
    return parsedate_to_datetime(date).timestamp() - time.time()
