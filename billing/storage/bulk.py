"""Many rows in one statement: on PostgreSQL a column is an array, so a row costs no parsing, planning or round trip.

Rows are written in the order in which they are given, and so are their locks taken. No value is NULL. Raises NotBooked
for a text that PostgreSQL does not take.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table, bindparam, insert, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.errors import NotBooked

BETWEEN = "\0"
"""Stands in no text that PostgreSQL takes."""
Rows = Sequence[Mapping[str, Any]]


async def insert_all(connection: AsyncConnection, table: Table, rows: Rows) -> None:
    """Insert rows that all have the same columns."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        await connection.execute(insert(table), list(rows))
        return
    await _run(connection, _insert(table, tuple(rows[0])), rows)


async def insert_new(connection: AsyncConnection, table: Table, rows: Rows, returned: str) -> list[Any]:
    """Insert rows that are not there yet; return what of them was inserted: its value of this column."""
    if not rows:
        return []
    if connection.dialect.name == "sqlite":
        statement = sqlite.insert(table).on_conflict_do_nothing().returning(table.c[returned])
        return list((await connection.execute(statement, list(rows))).scalars())
    statement_text = f"{_insert(table, tuple(rows[0]))} ON CONFLICT DO NOTHING RETURNING {returned}"
    return [row[0] for row in await _run(connection, statement_text, rows)]


async def add_to(connection: AsyncConnection, table: Table, key: Sequence[str], rows: Rows) -> None:
    """Add to rows of sums, or make them; all columns but those of the key are sums."""
    if not rows:
        return
    sums = [name for name in rows[0] if name not in key]
    if connection.dialect.name == "sqlite":
        statement = sqlite.insert(table)
        added = {name: table.c[name] + statement.excluded[name] for name in sums}
        await connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=added), list(rows))
        return
    set_to = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in sums)
    await _run(
        connection, f"{_insert(table, tuple(rows[0]))} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {set_to}", rows
    )


async def add_to_each(
    connection: AsyncConnection,
    key: Column[str],
    column: Column[int],
    amounts: Mapping[str, int],
    *,
    less: Column[int],
) -> None:
    """Add to a column of rows that are there, by the key of each, and take the same from another, `less`.

    Locks are taken in the order of the keys.
    """
    if not amounts:
        return
    table, ordered = key.table, sorted(amounts)
    if connection.dialect.name == "sqlite":
        values_of = {column: column + bindparam("amount"), less: less - bindparam("amount")}
        statement = update(table).where(key == bindparam("its_key")).values(values_of)
        await connection.execute(statement, [{"its_key": one, "amount": amounts[one]} for one in ordered])
        return
    # an UPDATE that joins locks in whatever order its plan has
    # unnest: a cast of a parameter that stands in a condition is done once a row
    these = f"WHERE {key.name} IN (SELECT unnest($1::text::text[]))"
    lock = f'SELECT 1 FROM {table} {these} ORDER BY {key.name} COLLATE "C" FOR NO KEY UPDATE'  # noqa: S608 - our own names
    await connection.exec_driver_sql(lock, (_written(ordered),))
    sums = f"{column.name} = {column.name} + by.amount, {less.name} = {less.name} - by.amount"
    change = f"UPDATE {table} SET {sums}"  # noqa: S608 - our own names
    of = f"FROM unnest($1::text::text[], $2::text::bigint[]) AS by(its_key, amount) WHERE {key.name} = by.its_key"
    values = (_written(ordered), _written([amounts[one] for one in ordered]))
    await connection.exec_driver_sql(f"{change} {of}", values)


async def _run(connection: AsyncConnection, statement: str, rows: Rows) -> Any:
    """Run a statement with one array a column."""
    names = tuple(rows[0])
    columns = zip(*map(itemgetter(*names), rows), strict=True) if len(names) > 1 else ([row[names[0]] for row in rows],)
    return await connection.exec_driver_sql(statement, tuple(map(_written, columns)))


def _written(values: Sequence[Any]) -> str:
    """Write a column as PostgreSQL writes arrays: an eighth of what its driver takes for the values one by one."""
    first = values[0]
    if isinstance(first, bool):
        return "{" + ",".join(["t" if value else "f" for value in values]) + "}"
    if isinstance(first, int):
        return "{" + ",".join(map(str, values)) + "}"
    joined = BETWEEN.join(values)
    if joined.count(BETWEEN) != len(values) - 1:
        raise NotBooked("a text has a NUL in it")  # which PostgreSQL takes in no text
    return '{"' + joined.replace("\\", "\\\\").replace('"', '\\"').replace(BETWEEN, '","') + '"}'


@cache
def _insert(table: Table, columns: tuple[str, ...]) -> str:
    """Write the statement that inserts arrays, which come as text."""
    arrays = (f"${place}::text::{_array_of(table.c[name].type)}" for place, name in enumerate(columns, 1))
    into = f"INSERT INTO {table.name} ({', '.join(columns)})"
    return f"{into} SELECT * FROM unnest({', '.join(arrays)})"  # noqa: S608 - our own names


def _array_of(of: Any) -> str:
    if isinstance(of, Boolean):
        return "boolean[]"
    if isinstance(of, BigInteger):
        return "bigint[]"
    return "integer[]" if isinstance(of, Integer) else "text[]"
