"""Typed records of SQL rows: a NamedTuple next to the table's reader, its fields the columns that are read."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Table, insert, literal, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection


def columns_of(table: Table, fields: Iterable[str]) -> list[ColumnElement[Any]]:
    """Return the table's columns of these names, in this order: `Record(*row)` reads what they select."""
    return [table.c[name] for name in fields]


async def insert_if_new(
    connection: AsyncConnection, table: Table, values: Mapping[str, Any], key: tuple[str, ...]
) -> bool:
    """Insert a row of an append-only table unless its `key` columns are there already; True when it is new.

    SQLite's triggers refuse any row that is there, as they cannot tell DO NOTHING from OR REPLACE; its write
    transactions take turns, so looking first is enough.
    """
    if connection.dialect.name == "sqlite":
        same = select(literal(1)).select_from(table).where(*(table.c[name] == values[name] for name in key))
        if (await connection.execute(same)).first() is not None:
            return False
        await connection.execute(insert(table).values(values))
        return True
    statement = postgresql.insert(table).values(values).on_conflict_do_nothing().returning(table.c[key[0]])
    return (await connection.execute(statement)).first() is not None
