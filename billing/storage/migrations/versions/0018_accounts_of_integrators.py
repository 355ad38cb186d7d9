"""Columns of an account for the app that made it: its own id, an e-mail address, metadata, and its end."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Accounts that are there already have none of it."""
    op.add_column("accounts", sa.Column("external_id", sa.String(length=200), nullable=True))
    op.add_column("accounts", sa.Column("email", sa.String(length=320), nullable=True))
    op.add_column("accounts", sa.Column("metadata", sa.Text(), nullable=True))
    op.add_column("accounts", sa.Column("closed_at", sa.BigInteger(), nullable=True))
    op.add_column("accounts", sa.Column("erased_at", sa.BigInteger(), nullable=True))
    op.create_index("uq_accounts_external_id", "accounts", ["external_id"], unique=True)
    op.create_index("ix_accounts_email", "accounts", ["email"])
    op.create_index("ix_accounts_created", "accounts", ["created_at", "id"])
