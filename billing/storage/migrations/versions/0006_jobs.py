"""Columns for who runs a job now and who asked for one; daily sums of the usage detail that retention has dropped."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "job_leases",
        sa.Column("job", sa.String(length=40), nullable=False),
        sa.Column("owner", sa.String(length=80), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("job", name=op.f("pk_job_leases")),
    )
    op.create_table(
        "usage_daily",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("booked_day", sa.Integer(), nullable=False),
        sa.Column("asked_day", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("billed_model", sa.String(length=120), nullable=False),
        sa.Column("charged", sa.Boolean(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("charged_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("loss_millicredits", sa.BigInteger(), nullable=False),
        sa.Column("cost_millicredits", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "account_id",
            "booked_day",
            "asked_day",
            "key_id",
            "model",
            "billed_model",
            "charged",
            name=op.f("pk_usage_daily"),
        ),
    )
    op.create_index("ix_usage_daily_asked", "usage_daily", ["asked_day"])
    op.create_index("ix_usage_daily_key", "usage_daily", ["key_id", "asked_day"])
