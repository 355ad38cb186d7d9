"""Migrated databases to copy: every migration takes longer than most tests. That migrations work is tests/billing/storage/test_schema.py's to show."""

import asyncio
import functools
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from billing.storage.database import Database
from billing.storage.migrate import migrate
from proxy.server.startup_checks import prepare_database


def in_thread(work: Coroutine[Any, Any, Any]) -> None:
    """Run it to its end, whether or not the caller is in a loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


async def migrated(url: str, *, served: bool) -> None:
    """Bring a database to the newest schema; `served`: with all that a first start puts into it."""
    database = Database(url, 1, 10)
    await (prepare_database(database) if served else migrate(database))
    await database.close()


@functools.cache
def _sqlite(*, served: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        in_thread(migrated(f"sqlite+aiosqlite:///{path}", served=served))
        return path.read_bytes()


def lay_sqlite(path: Path, *, served: bool = False) -> None:
    """Put a migrated SQLite database there, if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_sqlite(served=served))
