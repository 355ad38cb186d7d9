"""Accounts, keys, the ledger, usage, the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create everything, then forbid changing a transfer."""
    _create_tables()
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE TABLE usage_default PARTITION OF usage DEFAULT")
        _guard_postgresql()
    else:
        _guard_sqlite()


def _guard_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION transfers_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'a transfer is never changed or deleted: book a correcting one'; END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER transfers_no_change BEFORE UPDATE OR DELETE ON transfers
        FOR EACH ROW EXECUTE FUNCTION transfers_are_final()
        """
    )
    op.execute(
        """
        CREATE TRIGGER transfers_no_truncate BEFORE TRUNCATE ON transfers
        FOR EACH STATEMENT EXECUTE FUNCTION transfers_are_final()
        """
    )


def _guard_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"""
            CREATE TRIGGER transfers_no_{verb.lower()} BEFORE {verb} ON transfers
            BEGIN SELECT RAISE(ABORT, 'a transfer is never changed or deleted: book a correcting one'); END
            """
        )


def _create_tables() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=16), server_default="active", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("status in ('active', 'blocked')", name=op.f("ck_accounts_status_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("delta_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("applied_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("account_id", "sequence", name=op.f("uq_outbox_account_id_sequence")),
    )
    op.create_index("ix_outbox_pending", "outbox", ["applied_at", "id"], unique=False)
    op.create_table(
        "transfers",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("debit_account", sa.String(length=60), nullable=False),
        sa.Column("credit_account", sa.String(length=60), nullable=False),
        sa.Column("amount_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("reference_type", sa.String(length=24), nullable=False),
        sa.Column("reference_id", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=80), server_default="system", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("amount_millicredits > 0", name=op.f("ck_transfers_amount_positive")),
        sa.CheckConstraint("debit_account <> credit_account", name=op.f("ck_transfers_two_accounts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
        sa.UniqueConstraint("kind", "reference_id", name=op.f("uq_transfers_kind_reference_id")),
    )
    op.create_index("ix_transfers_credit", "transfers", ["credit_account", "id"], unique=False)
    op.create_index("ix_transfers_debit", "transfers", ["debit_account", "id"], unique=False)
    op.create_table(
        "usage",
        sa.Column("charge_id", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("endpoint", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("billed_model", sa.String(length=120), nullable=False),
        sa.Column("service_tier", sa.String(length=16), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("free", sa.Boolean(), nullable=False),
        sa.Column("usage_source", sa.String(length=12), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("audio_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("audio_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("web_searches", sa.BigInteger(), nullable=False),
        sa.Column("held_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("charged_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("loss_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("cost_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("rates", sa.Text(), nullable=False),
        sa.Column("upstream_request_id", sa.String(length=120), nullable=False),
        sa.Column("upstream_id", sa.String(length=120), nullable=False),
        sa.Column("first_byte_ms", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("charged_millicredits >= 0", name=op.f("ck_usage_charged_not_negative")),
        sa.CheckConstraint("loss_millicredits >= 0", name=op.f("ck_usage_loss_not_negative")),
        sa.PrimaryKeyConstraint("charge_id", "created_at", name=op.f("pk_usage")),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index("ix_usage_account", "usage", ["account_id", "created_at", "charge_id"], unique=False)
    op.create_index("ix_usage_key", "usage", ["key_id", "created_at"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=32), nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("spend_limit_millicredits", sa.BigInteger(), nullable=True),
        sa.Column("spend_period", sa.String(length=8), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("tokens_per_minute", sa.Integer(), nullable=True),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_api_keys_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
    )
    op.create_index(op.f("ix_api_keys_account_id"), "api_keys", ["account_id"], unique=False)
    op.create_table(
        "buckets",
        sa.Column("bucket", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("bucket", name=op.f("pk_buckets")),
    )
    op.create_table(
        "balances",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("posted_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("outbox_sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_balances_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_balances")),
    )
    op.create_index(op.f("ix_balances_bucket"), "balances", ["bucket"], unique=False)
