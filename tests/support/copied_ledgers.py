"""A ledger that takes long to fill is filled once a process: other tests begin with a copy of it (SQLite).

What a test fills so is rows of the database, and nothing of the balance store.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support.stores import Books

Made = TypeVar("Made")
_COPIES: dict[object, tuple[bytes, object]] = {}


async def filled_once(books: Books, fill: Callable[[], Awaitable[Made]], name: object) -> Made:
    """What `fill` returned, with its rows in the ledger. `name`: the function that fills, or what tells two apart."""
    if not books.database.is_sqlite:
        return await fill()
    path = books.folder / "ledger.db"
    if name not in _COPIES:
        made = await fill()
        there = sqlite3.connect(path)
        pages = there.serialize()
        there.close()
        # a database in memory knows no write-ahead log (its header would say that it has one); the backup keeps the file's
        _COPIES[name] = pages[:18] + b"\x01\x01" + pages[20:], made
        return made
    copy, made = _COPIES[name]  # type: ignore[assignment]
    await asyncio.to_thread(_lay, copy, str(path))
    return made


def _lay(copy: bytes, path: str) -> None:
    source, target = sqlite3.connect(":memory:"), sqlite3.connect(path, timeout=10)
    source.deserialize(copy)
    source.backup(target)
    target.close()
    source.close()
