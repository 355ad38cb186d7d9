"""The SQL tables of who listens to events, and of what was told (same metadata, same units as core.py)."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Table, Text

from billing.storage.tables.core import metadata

event_endpoints = Table(
    "event_endpoints",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("url", Text, nullable=False),
    Column("description", String(200), nullable=False),
    Column("kinds", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("previous_until", BigInteger),
    Column("disabled_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("removed_at", BigInteger),
)
"""Where events are sent, beside `[notices] url`. `kinds`: JSON list of patterns. `generation`: how often its secret was
rotated; the one before is signed with as well until `previous_until`.
"""

balance_peaks = Table(
    "balance_peaks",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("peak_millicredits", BigInteger, nullable=False),
    Column("told_percent", Integer, nullable=False),
    Column("crossing", Integer, nullable=False),
)
"""Balances that percentages are of: those when money last came in. `told_percent`: the lowest told (101: none)."""

limit_marks = Table(
    "limit_marks",
    metadata,
    Column("key_id", String(40), primary_key=True),
    Column("budget", String(64), primary_key=True),
    Column("period", String(16), nullable=False),
    Column("percent", Integer, nullable=False),
)
"""How much of a key's budget was told as used, in which of its periods."""
