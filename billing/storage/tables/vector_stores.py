"""Vector stores: what they take, and the days of storage that are charged. Days are whole UTC days since 1970."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from billing.storage.tables.core import metadata

store_sizes = Table(
    "store_sizes",
    metadata,
    Column("store_id", String(120), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("bytes", BigInteger, nullable=False),
)
"""The most that upstream said on a day that a store takes; a day without a row is like the last one with."""

storage_days = Table(
    "storage_days",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("charge_id", String(80), nullable=False, unique=True),
    Column("bytes", BigInteger, nullable=False),
    Column("due_millicredits", BigInteger, nullable=False),
    Column("record", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("claimed_until", BigInteger),
    Column("settled_at", BigInteger),
    Column("upstream", String(40), primary_key=True, server_default=""),
    Index("ix_storage_days_open", "settled_at", "created_at"),
)
"""Debt of an account for a day at an upstream ("" the default one), decided once. `record` is its usage row, as JSON
("" where nothing is owed);
`claimed_until`: until when one process alone may charge it; `settled_at`: when the charge was seen in the ledger."""

storage_standing = Table(
    "storage_standing",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("low_day", Integer),
    Column("unpaid_day", Integer),
    Column("remove_at", BigInteger),
    Index("ix_storage_standing_remove", "remove_at"),
)
"""Accounts whose credits run out: since which day they were told, the first day that they could not pay, and when what
they store is removed (Unix milliseconds)."""
