"""The SQL tables of credits with rules (same metadata, same units as core.py): expiring lots, welcomes, promo codes."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, String, Table

from billing.storage.tables.core import metadata

expiring_lots = Table(
    "expiring_lots",
    metadata,
    Column("kind", String(24), primary_key=True),
    Column("reference_id", String(80), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("granted_millicredits", BigInteger, nullable=False),
    Column("remaining_millicredits", BigInteger, nullable=False),
    Column("expired_millicredits", BigInteger, nullable=False, server_default="0"),
    Column("charged_until", BigInteger, nullable=False),
    Column("expirations", Integer, nullable=False, server_default="0"),
    Column("expires_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("announced_at", BigInteger),
    Column("closed_at", BigInteger),
    CheckConstraint("remaining_millicredits >= 0", name="remaining_not_negative"),
    Index("ix_expiring_lots_account", "account_id", "closed_at"),
    Index("ix_expiring_lots_due", "closed_at", "expires_at"),
)
"""Credits that expire, by the transfer that gave them. `remaining` is as of `charged_until` of the account's balance:
what was charged since is taken from the lot that expires first. `closed_at`: nothing is left of it.
"""

welcomed = Table(
    "welcomed",
    metadata,
    Column("mark", String(64), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""External ids that were given welcome credits, each as a keyed hash: the id is personal data, and this stays."""

promo_codes = Table(
    "promo_codes",
    metadata,
    Column("code", String(32), primary_key=True),
    Column("amount_millicredits", BigInteger, nullable=False),
    Column("most_uses", Integer),
    Column("uses", Integer, nullable=False, server_default="0"),
    Column("credit_days", Integer),
    Column("starts_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(120), nullable=False),
    CheckConstraint("amount_millicredits > 0", name="amount_positive"),
    CheckConstraint("most_uses IS NULL OR uses <= most_uses", name="uses_within_limit"),
)
"""Promo codes. `most_uses` NULL: any number; `credit_days`: after which what a code gave expires (NULL: never);
`ended_at`: when somebody ended it before its term.
"""

promo_redemptions = Table(
    "promo_redemptions",
    metadata,
    Column("code", String(32), ForeignKey("promo_codes.code"), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("amount_millicredits", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
)
"""Who has used which code, and what it gave them then."""
