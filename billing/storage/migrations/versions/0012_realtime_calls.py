"""Secrets and calls of browser voice."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "realtime_secrets",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("key_digest", sa.String(length=128), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_realtime_secrets_account_id")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_realtime_secrets")),
    )
    op.create_index("ix_realtime_secrets_expires", "realtime_secrets", ["expires_at"])
    op.create_table(
        "realtime_calls",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_realtime_calls_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_realtime_calls")),
    )
    op.create_index("ix_realtime_calls_open", "realtime_calls", ["ended_at", "leased_until"])
