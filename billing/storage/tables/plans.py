"""The SQL tables of price plans (same metadata, same units as core.py). Both only grow (triggers)."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from billing.storage.tables.core import BigId, metadata

price_plans = Table(
    "price_plans",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("plan_id", String(40), nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False),
    Column("starts_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(80), nullable=False),
    UniqueConstraint("plan_id", "version"),
)
"""Versions of price plans: prices as JSON, and from when until when they apply (NULL: for good)."""

plan_assignments = Table(
    "plan_assignments",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("plan_id", String(40)),
    Column("starts_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(80), nullable=False),
    Index("ix_plan_assignments_account", "account_id", "id"),
)
"""Price plans of accounts (NULL: everyone's prices), from when until when. Of those that apply the last row counts."""
