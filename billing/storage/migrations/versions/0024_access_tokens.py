"""Short-lived tokens of browsers and devices, and the origins that they are used from."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=32), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("end_user", sa.String(length=128), server_default="", nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("ceiling_millicredits", sa.BigInteger(), nullable=True),
        sa.Column("origins", sa.Text(), nullable=False),
        sa.Column("buys", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("made_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_access_tokens_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_access_tokens_hash")),
    )
    op.create_index("ix_access_tokens_account", "access_tokens", ["account_id", "created_at", "id"])
    op.create_index("ix_access_tokens_expires", "access_tokens", ["expires_at"])
    op.create_table(
        "token_origins",
        sa.Column("origin", sa.String(length=255), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("origin", name=op.f("pk_token_origins")),
    )
