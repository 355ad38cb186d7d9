"""Vector stores: what they take, the days that are charged for it, and accounts that cannot pay for a day."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and make the tables."""
    op.add_column("upstream_objects", sa.Column("parent_id", sa.String(length=120), nullable=True))
    op.add_column("upstream_objects", sa.Column("seen_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_upstream_objects_kind", "upstream_objects", ["kind", "deleted_at", "seen_at"])
    op.create_table(
        "store_sizes",
        sa.Column("store_id", sa.String(length=120), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("store_id", "day", name=op.f("pk_store_sizes")),
    )
    op.create_table(
        "storage_days",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("charge_id", sa.String(length=80), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("due_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("claimed_until", sa.BigInteger(), nullable=True),
        sa.Column("settled_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_storage_days_account_id")),
        sa.PrimaryKeyConstraint("account_id", "day", name=op.f("pk_storage_days")),
        sa.UniqueConstraint("charge_id", name=op.f("uq_storage_days_charge_id")),
    )
    op.create_index("ix_storage_days_open", "storage_days", ["settled_at", "created_at"])
    op.create_table(
        "storage_standing",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("low_day", sa.Integer(), nullable=True),
        sa.Column("unpaid_day", sa.Integer(), nullable=True),
        sa.Column("remove_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_storage_standing_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_storage_standing")),
    )
    op.create_index("ix_storage_standing_remove", "storage_standing", ["remove_at"])
