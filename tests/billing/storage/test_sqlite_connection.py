"""A statement of SQLite is one trip to the thread of its connection, and reads and ends as with aiosqlite's own cursor."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text

from billing.money.errors import StoreUnavailable
from billing.storage.database import Database
from billing.storage.sqlite_connection import ROWS_AT_ONCE, SqliteConnection, connect

MANY = 3 * ROWS_AT_ONCE + 1


@pytest.fixture
async def database(folder: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite+aiosqlite:///{folder}/some.db", 1, 5)
    async with opened.write() as connection:
        await connection.execute(text("CREATE TABLE things (number INTEGER PRIMARY KEY)"))
    yield opened
    await opened.close()


async def filled(database: Database) -> None:
    async with database.write() as connection:
        done = await connection.execute(
            text("INSERT INTO things VALUES (:n)"), [{"n": number} for number in range(MANY)]
        )
        assert done.rowcount == MANY


async def numbers(database: Database) -> list[int]:
    async with database.read() as connection:
        return list((await connection.execute(text("SELECT number FROM things ORDER BY number"))).scalars())


async def test_a_statement_is_one_trip(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(database)
    await numbers(database)  # connected
    trips = []
    run = aiosqlite.Connection._execute

    async def counted(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        trips.append(fn)
        return await run(self, fn, *args, **kwargs)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    async with database.read() as connection:
        await connection.execute(text("SELECT number FROM things LIMIT 10"))
    assert len(trips) == 1
    trips.clear()
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM things WHERE number = 3"))
    assert len(trips) == 3, "begin, the statement, commit"


async def test_all_rows_come_however_they_are_fetched(database: Database) -> None:
    await filled(database)
    everything = list(range(MANY))
    assert await numbers(database) == everything
    async with database.snapshot() as connection:
        rows = await connection.stream(text("SELECT number FROM things ORDER BY number"))
        assert [row.number async for row in rows] == everything
    async with database.snapshot() as connection:
        rows = await connection.stream(text("SELECT number FROM things ORDER BY number"))
        parts = [part async for part in rows.scalars().partitions(700)]
        assert [number for part in parts for number in part] == everything
        assert {len(part) for part in parts[:-1]} == {700}
    async with database.snapshot() as connection:
        rows = await connection.stream(text("SELECT number FROM things ORDER BY number"))
        assert (await anext(rows)).number == 0
        await rows.close()  # what is not read is left
    async with database.write() as connection:  # and nothing that was read keeps a writer waiting
        await connection.execute(text("DELETE FROM things"))
    assert await numbers(database) == []


async def test_a_cursor_gives_rows_one_by_one_and_says_what_it_did(folder: Path) -> None:
    connection = await connect(str(folder / "plain.db"))
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE things (number INTEGER PRIMARY KEY)")
    await cursor.executemany("INSERT INTO things VALUES (?)", [(number,) for number in range(MANY)])
    assert (cursor.description, cursor.rowcount) == (None, MANY)
    await cursor.execute("INSERT INTO things VALUES (?) RETURNING number", (MANY,))
    assert (await cursor.fetchall(), cursor.rowcount, cursor.lastrowid) == ([(MANY,)], 1, MANY)
    await cursor.execute("SELECT number FROM things ORDER BY number")
    assert cursor.description[0][0] == "number"
    assert [await cursor.fetchone() for _ in range(2)] == [(0,), (1,)]
    assert len(await cursor.fetchmany(ROWS_AT_ONCE)) == ROWS_AT_ONCE
    assert len(await cursor.fetchall()) == MANY + 1 - 2 - ROWS_AT_ONCE
    assert await cursor.fetchone() is None
    with pytest.raises(aiosqlite.IntegrityError):
        await cursor.execute("INSERT INTO things VALUES (1)")
    await cursor.close()
    await connection.close()


async def test_what_nobody_waited_for_is_rolled_back(folder: Path) -> None:
    """A transaction may have begun in the thread after its caller was cancelled."""
    connection: SqliteConnection = await connect(str(folder / "plain.db"))
    beginning = asyncio.create_task(connection.cursor().execute("BEGIN IMMEDIATE"))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await connection.rollback()
    assert not connection.in_transaction
    await connection.close()


async def test_writers_take_turns_and_who_waits_too_long_is_told(folder: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{folder}/some.db", 1, 0.2)
    order: list[str] = []

    async def write(name: str, seconds: float) -> None:
        async with database.write():
            order.append(name)
            await asyncio.sleep(seconds)

    await asyncio.gather(*(write(name, 0) for name in "abc"))
    assert order == ["a", "b", "c"]
    holding = asyncio.create_task(write("long", 30))
    while "long" not in order:
        await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailable):
        await write("late", 0)
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    await write("last", 0)
    assert order == ["a", "b", "c", "long", "last"]
    await database.close()
