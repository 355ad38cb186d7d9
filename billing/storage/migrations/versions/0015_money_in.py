"""Askings for refunds, the terms that a recharge was agreed on, what is none of ours, usage that was given away."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

AGREED = """
UPDATE auto_recharges SET
agreed_price_cents = (SELECT p.price_cents FROM purchases p WHERE p.account_id = auto_recharges.account_id
    AND p.package_code = auto_recharges.package_code AND p.state = 'credited'
    ORDER BY p.created_at DESC, p.id DESC LIMIT 1),
agreed_millicredits = (SELECT p.paid_millicredits + p.bonus_millicredits FROM purchases p
    WHERE p.account_id = auto_recharges.account_id AND p.package_code = auto_recharges.package_code
    AND p.state = 'credited' ORDER BY p.created_at DESC, p.id DESC LIMIT 1)
"""


def upgrade() -> None:
    """Make tables and columns; a recharge agreed on before is worth what its buyer last paid for that package."""
    op.create_table(
        "refund_askings",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("purchase_id", sa.String(length=40), nullable=False),
        sa.Column("reference", sa.String(length=255), nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("refund_id", sa.String(length=255), server_default="", nullable=False),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('asked', 'made', 'refused')", name=op.f("ck_refund_askings_state_known")),
        sa.CheckConstraint("amount_cents > 0", name=op.f("ck_refund_askings_amount_positive")),
        sa.ForeignKeyConstraint(["purchase_id"], ["purchases.id"], name=op.f("fk_refund_askings_purchase_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refund_askings")),
        sa.UniqueConstraint("reference", name=op.f("uq_refund_askings_reference")),
    )
    op.create_index("ix_refund_askings_purchase", "refund_askings", ["purchase_id", "state"])
    op.create_table(
        "dismissals",
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("check", sa.String(length=80), nullable=False),
        sa.Column("expected", sa.BigInteger(), nullable=False),
        sa.Column("found", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "check", name=op.f("pk_dismissals")),
    )
    op.create_table(
        "installation",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_installation")),
    )
    op.add_column("auto_recharges", sa.Column("agreed_price_cents", sa.BigInteger(), nullable=True))
    op.add_column("auto_recharges", sa.Column("agreed_millicredits", sa.BigInteger(), nullable=True))
    op.execute(AGREED)
    given_away = sa.Column("given_away_millicredits", sa.BigInteger(), server_default="0", nullable=False)
    op.add_column("finance_daily", given_away)
