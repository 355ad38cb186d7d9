"""Credits that expire, welcome credits and promo codes; reasons that customers may read; prices of any amount."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables and columns. Reasons that were given until now stay between us: none was marked for the customer."""
    op.add_column("transfers", sa.Column("expires_at", sa.BigInteger(), nullable=True))
    op.add_column("transfers", sa.Column("reason_shown", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("balances", sa.Column("charged_millicredits", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("purchases", sa.Column("bonus_days", sa.Integer(), nullable=True))
    op.add_column("purchases", sa.Column("bonus_expired", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "expiring_lots",
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("reference_id", sa.String(length=80), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("granted_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("remaining_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("expired_millicredits", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("charged_until", sa.BigInteger(), nullable=False),
        sa.Column("expirations", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("announced_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("remaining_millicredits >= 0", name=op.f("ck_expiring_lots_remaining_not_negative")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_expiring_lots_account_id")),
        sa.PrimaryKeyConstraint("kind", "reference_id", name=op.f("pk_expiring_lots")),
    )
    op.create_index("ix_expiring_lots_account", "expiring_lots", ["account_id", "closed_at"])
    op.create_index("ix_expiring_lots_due", "expiring_lots", ["closed_at", "expires_at"])
    op.create_table(
        "welcomed",
        sa.Column("mark", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_welcomed_account_id")),
        sa.PrimaryKeyConstraint("mark", name=op.f("pk_welcomed")),
    )
    op.create_table(
        "promo_codes",
        sa.Column("code", sa.String(length=32), nullable=False),
        sa.Column("amount_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("most_uses", sa.Integer(), nullable=True),
        sa.Column("uses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("credit_days", sa.Integer(), nullable=True),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.CheckConstraint("amount_millicredits > 0", name=op.f("ck_promo_codes_amount_positive")),
        sa.CheckConstraint("most_uses IS NULL OR uses <= most_uses", name=op.f("ck_promo_codes_uses_within_limit")),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_promo_codes")),
    )
    op.create_table(
        "promo_redemptions",
        sa.Column("code", sa.String(length=32), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("amount_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["code"], ["promo_codes.code"], name=op.f("fk_promo_redemptions_code")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_promo_redemptions_account_id")),
        sa.PrimaryKeyConstraint("code", "account_id", name=op.f("pk_promo_redemptions")),
    )
