"""Purchases, claims on them, Stripe's events and customers, automatic recharges, notices."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "stripe_inbox",
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=120), nullable=False),
        sa.Column("object_id", sa.String(length=255), nullable=False),
        sa.Column("api_version", sa.String(length=40), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(length=8), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("handled_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint(
            "state IN ('pending', 'parked', 'done', 'ignored')", name=op.f("ck_stripe_inbox_state_known")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_stripe_inbox")),
    )
    op.create_index("ix_stripe_inbox_state", "stripe_inbox", ["state", "next_at"], unique=False)
    op.create_table(
        "sweep_marks",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sweep_marks")),
    )
    op.create_table(
        "auto_recharges",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("threshold_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("package_code", sa.String(length=32), nullable=False),
        sa.Column("monthly_ceiling_cents", sa.BigInteger(), nullable=False),
        sa.Column("below", sa.Boolean(), nullable=False),
        sa.Column("crossing", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try_at", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("action_url", sa.Text(), server_default="", nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "threshold_millicredits > 0 AND monthly_ceiling_cents > 0", name=op.f("ck_auto_recharges_amounts_positive")
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_auto_recharges_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_auto_recharges")),
    )
    op.create_table(
        "balance_marks",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("threshold_millicredits", sa.BigInteger(), nullable=True),
        sa.Column("below", sa.Boolean(), nullable=False),
        sa.Column("crossing", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_balance_marks_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_balance_marks")),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("state IN ('pending', 'sent', 'dead')", name=op.f("ck_notices_state_known")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_notices_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
    )
    op.create_index("ix_notices_state", "notices", ["state", "next_at"], unique=False)
    op.create_table(
        "purchases",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("origin", sa.String(length=12), nullable=False),
        sa.Column("package_code", sa.String(length=32), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("price_cents", sa.BigInteger(), nullable=False),
        sa.Column("paid_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("bonus_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        sa.Column("idempotency_key", sa.String(length=80), nullable=False),
        sa.Column("save_method", sa.Boolean(), nullable=False),
        sa.Column("customer_id", sa.String(length=255), server_default="", nullable=False),
        sa.Column("session_id", sa.String(length=255), nullable=True),
        sa.Column("payment_intent_id", sa.String(length=255), nullable=True),
        sa.Column("payment_method_id", sa.String(length=255), server_default="", nullable=False),
        sa.Column("url", sa.Text(), server_default="", nullable=False),
        sa.Column("charge_id", sa.String(length=255), server_default="", nullable=False),
        sa.Column("receipt_url", sa.Text(), server_default="", nullable=False),
        sa.Column("total_cents", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tax_cents", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fee_booked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("credited_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "price_cents > 0 AND paid_millicredits > 0 AND bonus_millicredits >= 0",
            name=op.f("ck_purchases_amounts_positive"),
        ),
        sa.CheckConstraint("tax_cents >= 0 AND total_cents >= tax_cents", name=op.f("ck_purchases_total_covers_tax")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_purchases_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_purchases")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_purchases_idempotency_key")),
        sa.UniqueConstraint("payment_intent_id", name=op.f("uq_purchases_payment_intent_id")),
        sa.UniqueConstraint("session_id", name=op.f("uq_purchases_session_id")),
    )
    op.create_index("ix_purchases_account", "purchases", ["account_id", "created_at", "id"], unique=False)
    op.create_index("ix_purchases_state", "purchases", ["state", "updated_at"], unique=False)
    op.create_index(
        "uq_purchases_auto_in_flight",
        "purchases",
        ["account_id"],
        unique=True,
        sqlite_where=sa.text("origin = 'auto' AND state IN ('created', 'open', 'processing')"),
        postgresql_where=sa.text("origin = 'auto' AND state IN ('created', 'open', 'processing')"),
    )
    op.create_table(
        "stripe_customers",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("customer_id", sa.String(length=255), nullable=False),
        sa.Column("payment_method_id", sa.String(length=255), server_default="", nullable=False),
        sa.Column("consented_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_stripe_customers_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_stripe_customers")),
        sa.UniqueConstraint("customer_id", name=op.f("uq_stripe_customers_customer_id")),
    )
    op.create_table(
        "claims",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("purchase_id", sa.String(length=40), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=40), nullable=False),
        sa.Column("counts", sa.Boolean(), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(length=80), server_default="", nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("booked_paid", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("booked_bonus", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("booked_tax", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("booked_loss", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("withdrawn", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cleared", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('refund', 'dispute')", name=op.f("ck_claims_kind_known")),
        sa.CheckConstraint("amount_cents >= 0", name=op.f("ck_claims_amount_not_negative")),
        sa.ForeignKeyConstraint(["purchase_id"], ["purchases.id"], name=op.f("fk_claims_purchase_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claims")),
        sa.UniqueConstraint("purchase_id", "ordinal", name=op.f("uq_claims_purchase_id_ordinal")),
    )
