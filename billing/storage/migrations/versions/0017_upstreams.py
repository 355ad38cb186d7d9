"""Several upstreams: which one made, serves or was paid for what; accounts' regions; secrets of the installation."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

OWNED = ("upstream_objects", "background_responses", "batches", "realtime_calls")
"""Tables of what stays with the upstream that made it; a row without one is the default upstream's."""
SUMMED_BY = ("account_id", "booked_day", "asked_day", "key_id", "model", "billed_model", "charged")


def upgrade() -> None:
    """Add the columns and the table. What is there already belongs to the default upstream, which is named ""."""
    op.create_table(
        "installation_secrets",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_installation_secrets")),
    )
    for table in OWNED:
        op.add_column(table, sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""))
    op.add_column("accounts", sa.Column("region", sa.String(length=16), nullable=False, server_default=""))
    op.add_column("usage", sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""))
    op.add_column("usage", sa.Column("tries", sa.Text(), nullable=False, server_default=""))
    op.add_column("usage", sa.Column("abandoned_millicredits", sa.BigInteger(), nullable=False, server_default="0"))
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("usage_daily", sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""))
        op.drop_constraint(op.f("pk_usage_daily"), "usage_daily", type_="primary")
        op.create_primary_key(op.f("pk_usage_daily"), "usage_daily", [*SUMMED_BY, "upstream"])
    else:
        _make_daily_sums_anew()


def _make_daily_sums_anew() -> None:
    """SQLite cannot change a primary key."""
    for name in ("ix_usage_daily_asked", "ix_usage_daily_key"):
        op.drop_index(name, "usage_daily")
    op.rename_table("usage_daily", "usage_daily_before")
    numbers = ("requests", "input_tokens", "output_tokens")
    amounts = ("charged_millicredits", "loss_millicredits", "cost_millicredits")
    op.create_table(
        "usage_daily",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("booked_day", sa.Integer(), nullable=False),
        sa.Column("asked_day", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("billed_model", sa.String(length=120), nullable=False),
        sa.Column("charged", sa.Boolean(), nullable=False),
        sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*numbers, *amounts)),
        sa.PrimaryKeyConstraint(*SUMMED_BY, "upstream", name=op.f("pk_usage_daily")),
    )
    kept = ", ".join((*SUMMED_BY, *numbers, *amounts))
    op.execute(f"INSERT INTO usage_daily ({kept}) SELECT {kept} FROM usage_daily_before")  # noqa: S608 - our own names
    op.drop_table("usage_daily_before")
    op.create_index("ix_usage_daily_asked", "usage_daily", ["asked_day"])
    op.create_index("ix_usage_daily_key", "usage_daily", ["key_id", "asked_day"])
