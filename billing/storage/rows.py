"""Typed records of SQL rows: a NamedTuple next to the table's reader, its fields the columns that are read."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Table


def columns_of(table: Table, fields: Iterable[str]) -> list[ColumnElement[Any]]:
    """Return the table's columns of these names, in this order: `Record(*row)` reads what they select."""
    return [table.c[name] for name in fields]
