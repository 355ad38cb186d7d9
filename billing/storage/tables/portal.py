"""The Credits page's links and sessions, secrets that wait to be shown, short-lived tokens. Times are Unix ms."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, String, Table, Text, false

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

shown_secrets = Table(
    "shown_secrets",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("owner", String(120), nullable=False),
    Column("sealed", String(255), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""New secrets that a page shows once, after its form: sealed with a token of which only the SHA-256 is here, and gone
once they were shown. `owner`: who may see it."""

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("end_user", String(128), nullable=False, server_default=""),
    Column("models", Text),
    Column("ceiling_millicredits", BigInteger),
    Column("origins", Text, nullable=False),
    Column("buys", Boolean, nullable=False, server_default=false()),
    Column("made_by", String(120), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Index("ix_access_tokens_account", "account_id", "created_at", "id"),
    Index("ix_access_tokens_expires", "expires_at"),
)
"""Short-lived tokens of browsers and devices, by their SHA-256. `end_user` "": the account's own; `models` and
`origins` are JSON lists; `buys`: it opens payment pages too. Gone a day after their end."""

token_origins = Table(
    "token_origins",
    metadata,
    Column("origin", String(255), primary_key=True),
    Column("until", BigInteger, nullable=False),
)
"""Origins of which some token is, and until when: a browser asks before it sends one, and names no token then."""
