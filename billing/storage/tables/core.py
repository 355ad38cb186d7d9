"""The SQL schema as SQLAlchemy Core tables. Times are Unix milliseconds; amounts millicredits (BIGINT).

SQLite and PostgreSQL share these tables; migrations/ creates them. Nothing outside the adapters imports this.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite only numbers rows by itself in a column declared INTEGER."""

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("status in ('active', 'blocked')", name="status_known"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False, index=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("models", Text),
    Column("spend_limit_millicredits", BigInteger),
    Column("spend_period", String(8)),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrency", Integer),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
)

balances = Table(
    "balances",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("bucket", Integer, nullable=False, index=True),
    Column("posted_millicredits", BigInteger, nullable=False),
    Column("outbox_sequence", BigInteger, nullable=False),
)
"""Projection of `transfers` on customers' accounts: sum(credits) - sum(debits), kept in the same transaction (I6)."""

buckets = Table(
    "buckets",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("epoch", String(40), nullable=False),
)
"""The newest rebuilding of each Redis bucket. A flush of charges read before it must not be booked after it."""

transfers = Table(
    "transfers",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("debit_account", String(60), nullable=False),
    Column("credit_account", String(60), nullable=False),
    Column("amount_millicredits", BigInteger, nullable=False),
    Column("kind", String(24), nullable=False),
    Column("reference_type", String(24), nullable=False),
    Column("reference_id", String(80), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(80), nullable=False, server_default="system"),
    Column("reason", Text, nullable=False, server_default=""),
    UniqueConstraint("kind", "reference_id"),
    CheckConstraint("amount_millicredits > 0", name="amount_positive"),
    CheckConstraint("debit_account <> credit_account", name="two_accounts"),
    Index("ix_transfers_debit", "debit_account", "id"),
    Index("ix_transfers_credit", "credit_account", "id"),
    Index("ix_transfers_created", "created_at", postgresql_using="brin"),
)
"""The ledger. Append-only (triggers): I5. One row of a kind a reference: I4."""

usage = Table(
    "usage",
    metadata,
    Column("charge_id", String(80), primary_key=True),
    Column("created_at", BigInteger, primary_key=True),
    Column("account_id", String(40), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("endpoint", String(40), nullable=False),
    Column("model", String(120), nullable=False),
    Column("billed_model", String(120), nullable=False),
    Column("service_tier", String(16), nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("free", Boolean, nullable=False),
    Column("usage_source", String(12), nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("status", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("audio_input_tokens", BigInteger, nullable=False),
    Column("audio_output_tokens", BigInteger, nullable=False),
    Column("web_searches", BigInteger, nullable=False),
    Column("image_input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("image_output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("audio_milliseconds", BigInteger, nullable=False, server_default="0"),
    Column("characters", BigInteger, nullable=False, server_default="0"),
    Column("tool_calls", Text, nullable=False, server_default=""),
    Column("held_millicredits", BigInteger, nullable=False),
    Column("charged_millicredits", BigInteger, nullable=False),
    Column("loss_millicredits", BigInteger, nullable=False),
    Column("cost_millicredits", BigInteger, nullable=False),
    Column("rates", Text, nullable=False),
    Column("upstream_request_id", String(120), nullable=False),
    Column("upstream_id", String(120), nullable=False),
    Column("first_byte_ms", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    CheckConstraint("charged_millicredits >= 0", name="charged_not_negative"),
    CheckConstraint("loss_millicredits >= 0", name="loss_not_negative"),
    Index("ix_usage_account", "account_id", "created_at", "charge_id"),
    Index("ix_usage_key", "key_id", "created_at"),
    Index("ix_usage_created", "created_at", postgresql_using="brin"),
    postgresql_partition_by="RANGE (created_at)",
)
"""One row a charged request.

PostgreSQL partitions it by time; the time is part of the charge, so a repeat conflicts.
"""

usage_daily = Table(
    "usage_daily",
    metadata,
    Column("account_id", String(40), primary_key=True),
    Column("booked_day", Integer, primary_key=True),
    Column("asked_day", Integer, primary_key=True),
    Column("key_id", String(40), primary_key=True),
    Column("model", String(120), primary_key=True),
    Column("billed_model", String(120), primary_key=True),
    Column("charged", Boolean, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("charged_millicredits", BigInteger, nullable=False),
    Column("loss_millicredits", BigInteger, nullable=False),
    Column("cost_millicredits", BigInteger, nullable=False),
    Index("ix_usage_daily_asked", "asked_day"),
    Index("ix_usage_daily_key", "key_id", "asked_day"),
)
"""Sums of the `usage` rows that retention has dropped. Days are whole UTC days since 1970: the one on which
the ledger booked the charge (of a row that was not charged: on which it was asked for), and the one on which it was
asked for."""

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("account_id", String(40), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("delta_millicredits", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("applied_at", BigInteger),
    UniqueConstraint("account_id", "sequence"),
    Index("ix_outbox_pending", "applied_at", "id"),
)
"""Money that moved in SQL and has yet to reach the balance store; numbered per account, applied in order, once."""

rate_cards = Table(
    "rate_cards",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("document", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(80), nullable=False),
)
"""Dated sets of prices, as JSON. Never edited (triggers), only succeeded by another."""

rate_activations = Table(
    "rate_activations",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("rate_card_id", String(80), ForeignKey("rate_cards.id"), nullable=False),
    Column("effective_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(80), nullable=False),
    Index("ix_rate_activations_effective", "effective_at", "id"),
)
"""Times from which cards apply: the newest activation that is in effect. Append-only (triggers)."""

upstream_objects = Table(
    "upstream_objects",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("kind", String(24), nullable=False),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("charge_id", String(80), nullable=False),
    Column("context_tokens", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Column("model", String(120)),
    Column("picture_extra", BigInteger),
    Index("ix_upstream_objects_account", "account_id", "created_at"),
)
"""Owners of what was made in the shared upstream account.

`context_tokens`: what a later request that refers to it re-reads; `picture_extra`: how much more that may be with a
model that counts pictures by another rule than `model` does.
"""

background_responses = Table(
    "background_responses",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("charge_id", String(80), nullable=False, unique=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("record", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger),
    Index("ix_background_responses_open", "settled_at", "created_at"),
)
"""Responses that run upstream after their request was answered: held for until they end, then settled once."""
