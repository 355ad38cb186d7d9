"""Events to any number of endpoints: who listens, for whom each notice is, what was told of balances and limits."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables, columns and indexes. Notices that wait are for the URL of the configuration, as they were."""
    op.create_table(
        "event_endpoints",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.String(length=200), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("previous_until", sa.BigInteger(), nullable=True),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_endpoints")),
    )
    op.create_table(
        "balance_peaks",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("peak_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("told_percent", sa.Integer(), nullable=False),
        sa.Column("crossing", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_balance_peaks")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_balance_peaks_account_id")),
    )
    op.create_table(
        "limit_marks",
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("budget", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "budget", name=op.f("pk_limit_marks")),
    )
    op.add_column("notices", sa.Column("endpoint_id", sa.String(length=24), server_default="", nullable=False))
    op.create_index("ix_notices_account", "notices", ["account_id", "created_at"])
    op.create_index("ix_notices_waiting", "notices", ["endpoint_id", "state", "account_id", "created_at"])
    op.create_index("ix_claims_updated", "claims", ["updated_at"])
