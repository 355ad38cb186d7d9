"""Browser voice: secrets that open calls, and the calls that run. Times are Unix milliseconds."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from billing.storage.tables.core import metadata, upstream_column

realtime_secrets = Table(
    "realtime_secrets",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("key_digest", String(128), nullable=False),
    Column("session", Text, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_realtime_secrets_expires", "expires_at"),
)
"""Short-lived secrets of ours; only a secret's SHA-256 is here. `key_digest`: by which its key is looked up when it is
used; `session`: what a call of it is opened with, as JSON; `calls`: how many it has opened."""

realtime_calls = Table(
    "realtime_calls",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("leased_until", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    upstream_column(),
    Index("ix_realtime_calls_open", "ended_at", "leased_until"),
)
"""Calls that were opened upstream, and whose they are. Who meters a call renews its lease; one that runs without is
hung up."""
