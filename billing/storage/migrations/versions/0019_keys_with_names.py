"""Columns of an API key for whoever keeps many: its name, tags, budgets, the secret before this one, and the reference
that makes its creation safe to repeat. And secrets that wait to be shown, once.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table. Keys that are there already have none of it."""
    op.add_column("api_keys", sa.Column("name", sa.String(length=100), nullable=True))
    op.add_column("api_keys", sa.Column("tags", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("budgets", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("spend_since", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("reference", sa.String(length=80), nullable=True))
    op.add_column("api_keys", sa.Column("previous_hash", sa.String(length=64), nullable=True))
    op.add_column("api_keys", sa.Column("previous_until", sa.BigInteger(), nullable=True))
    op.create_index("uq_api_keys_reference", "api_keys", ["account_id", "reference"], unique=True)
    op.create_index("uq_api_keys_previous_hash", "api_keys", ["previous_hash"], unique=True)
    op.create_table(
        "shown_secrets",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=120), nullable=False),
        sa.Column("sealed", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_shown_secrets")),
    )
