"""The Credits page's links and sessions. Times are Unix milliseconds."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, String, Table

from billing.storage.tables.core import metadata

portal_tokens = Table(
    "portal_tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("staff_actor", String(120)),
    Column("staff_role", String(16)),
    Column("staff_key_id", String(40)),
    Index("ix_portal_tokens_expires", "expires_at"),
)
"""`kind` is link (opens one session) or session; only the token's SHA-256 is here. `staff_*`: the person of the
operator's who opened it, and their admin key if it was not a token; null: the customer's own."""
