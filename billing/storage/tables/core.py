"""The SQL schema as SQLAlchemy Core tables. Times are Unix milliseconds; amounts millicredits (BIGINT).

SQLite and PostgreSQL share these tables; migrations/ creates them. Nothing outside the adapters imports this.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    literal_column,
    text,
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


def upstream_column() -> Column[str]:
    """Make the column of the upstream's name that something belongs to; "" is the default one."""
    return Column("upstream", String(40), nullable=False, server_default="")


MOVES: ColumnElement[bool] = literal_column("kind NOT IN ('usage', 'usage_cost', 'platform_loss')")
"""Condition of transfers that are no part of a charge. Written out, as what partial indexes are for must be."""

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite only numbers rows by itself in a column declared INTEGER."""

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("status", String(16), nullable=False, server_default="active"),
    Column("created_at", BigInteger, nullable=False),
    Column("region", String(16), nullable=False, server_default=""),
    Column("external_id", String(200)),
    Column("email", String(320)),
    Column("metadata", Text),
    Column("closed_at", BigInteger),
    Column("erased_at", BigInteger),
    Column("end_user_rules", Text),
    CheckConstraint("status in ('active', 'blocked')", name="status_known"),
    Index("uq_accounts_external_id", "external_id", unique=True),
    Index("ix_accounts_email", "email"),
    Index("ix_accounts_created", "created_at", "id"),
)
"""`external_id`: the id that the operator's app knows the customer by; `metadata`: JSON of its own, text to text.

A closed account is blocked for good: `closed_at` stands beside `status`, so that whatever asks for an active one need
not know of it. `erased_at`: when its personal data were replaced. `end_user_rules`: JSON of what holds for whoever its
requests are for; null: nobody asks who they are for.
"""

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
    Column("name", String(100)),
    Column("tags", Text),
    Column("budgets", Text),
    Column("spend_since", BigInteger),
    Column("reference", String(80)),
    Column("previous_hash", String(64)),
    Column("previous_until", BigInteger),
    Column("member", Boolean, nullable=False, server_default=false()),
    Index("uq_api_keys_reference", "account_id", "reference", unique=True),
    Index("uq_api_keys_previous_hash", "previous_hash", unique=True),
)
"""`tags` and `budgets` are JSON lists. `spend_since`: when the spend limit was given again after there was none of its
period. `reference` makes creating a key safe to repeat. `previous_hash`: of the secret
before the last rotation, which is good until `previous_until`. `member`: it spends, and sees no more than its own.
"""

end_users = Table(
    "end_users",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("budgets", Text),
    Column("blocked", Boolean, nullable=False, server_default=false()),
    Column("wallet_id", String(40), ForeignKey("accounts.id")),
    Column("created_at", BigInteger, nullable=False),
    Index("uq_end_users_wallet_id", "wallet_id", unique=True),
)
"""Who an account's requests are for, where the account says something of them; `name` as its requests name them.
`budgets` is a JSON list; `wallet_id`: the account that pays for them, in place of this one."""

balances = Table(
    "balances",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("bucket", Integer, nullable=False, index=True),
    Column("posted_millicredits", BigInteger, nullable=False),
    Column("outbox_sequence", BigInteger, nullable=False),
    Column("charged_millicredits", BigInteger, nullable=False, server_default="0"),
)
"""Projection of `transfers` on customers' accounts: sum(credits) - sum(debits), kept in the same transaction (I6).

`charged_millicredits` grows by what usage took; only its growth means anything, for it began at 0 in old accounts too.
"""

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
    Column("expires_at", BigInteger),
    Column("reason_shown", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("kind", "reference_id"),
    CheckConstraint("amount_millicredits > 0", name="amount_positive"),
    CheckConstraint("debit_account <> credit_account", name="two_accounts"),
    Index("ix_transfers_debit", "debit_account", "id"),
    Index("ix_transfers_credit", "credit_account", "id"),
    Index("ix_transfers_created", "created_at", postgresql_using="brin"),
    Index("ix_transfers_moved", "debit_account", "id", postgresql_where=MOVES, sqlite_where=MOVES),
    Index("ix_transfers_moved_at", "created_at", postgresql_where=MOVES, sqlite_where=MOVES),
)
"""The ledger. Append-only (triggers): I5. One row of a kind a reference: I4.

`expires_at`: of the credits that it gives; `reason_shown`: the customer may read the reason.
"""

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
    upstream_column(),
    Column("tries", Text, nullable=False, server_default=""),
    Column("abandoned_millicredits", BigInteger, nullable=False, server_default="0"),
    Column("end_user", String(128), nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default=""),
    CheckConstraint("charged_millicredits >= 0", name="charged_not_negative"),
    CheckConstraint("loss_millicredits >= 0", name="loss_not_negative"),
    Index("ix_usage_account", "account_id", "created_at", "charge_id"),
    Index("ix_usage_key", "key_id", "created_at"),
    Index("ix_usage_model", "account_id", "model", "created_at", "charge_id"),
    Index("ix_usage_endpoint", "account_id", "endpoint", "created_at", "charge_id"),
    Index(
        "ix_usage_tags",
        *("account_id", "created_at", "charge_id"),
        postgresql_where=text("tags <> ''"),
        sqlite_where=text("tags <> ''"),
    ),
    Index(
        "ix_usage_user",
        *("account_id", "end_user", "created_at", "charge_id"),
        postgresql_where=text("end_user <> ''"),
        sqlite_where=text("end_user <> ''"),
    ),
    Index("ix_usage_created", "created_at", postgresql_using="brin"),
    postgresql_partition_by="RANGE (created_at)",
)
"""One row a charged request. `upstream`: who served it ("" is the default one); `tries`: upstreams that did not before
that, as JSON; `abandoned_millicredits`: what these may bill us for it, which is in no other figure.

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
    Column("upstream", String(40), primary_key=True, server_default=""),
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
    Column("tools", Text),
    Column("size_bytes", BigInteger),
    Column("reserved_tokens", BigInteger),
    Column("reserved_at", BigInteger),
    Column("parent_id", String(120)),
    Column("seen_at", BigInteger),
    upstream_column(),
    Index("ix_upstream_objects_account", "account_id", "created_at"),
    Index("ix_upstream_objects_kind", "kind", "deleted_at", "seen_at"),
)
"""Owners of what was made in the shared upstream account.

`context_tokens`: what a later request that refers to it re-reads, and of a vector store the most tokens of one chunk;
`picture_extra`: how much more that may be with a model that counts pictures by another rule than `model` does; `tools`:
hosted tools that its items carry, with blanks between; `size_bytes`: of a file, and the most that a vector store may
take; `parent_id`: the upload of a part, the vector store of a batch of files; `seen_at`: when upstream last said what a
vector store takes; `reserved_tokens`: what running requests may add to a conversation, the newest of them since
`reserved_at`.
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
    upstream_column(),
    Index("ix_background_responses_open", "settled_at", "created_at"),
)
"""Responses that run upstream after their request was answered: held for until they end, then settled once."""

batches = Table(
    "batches",
    metadata,
    Column("charge_id", String(80), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("batch_id", String(120), unique=True),
    Column("client_file_id", String(120), nullable=False),
    Column("sent_file_id", String(120), nullable=False),
    Column("record", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger),
    upstream_column(),
    Index("ix_batches_open", "settled_at", "created_at"),
)
"""Batches: written before they are made upstream (`batch_id` NULL until that is known), held for until they end, then
settled once. `client_file_id` is the file that the client named, `sent_file_id` what was made of it."""
