"""Days of storage by the upstream that keeps what is stored: it is owed their cost."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

KEY = ("account_id", "day", "upstream")
KEPT = (
    *("account_id", "day", "charge_id", "bytes", "due_millicredits"),
    *("record", "created_at", "claimed_until", "settled_at"),
)


def upgrade() -> None:
    """Add the column to the key. What is there already was owed to the default upstream, which is named ""."""
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("storage_days", sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""))
        op.drop_constraint(op.f("pk_storage_days"), "storage_days", type_="primary")
        op.create_primary_key(op.f("pk_storage_days"), "storage_days", list(KEY))
    else:
        _make_anew()


def _make_anew() -> None:
    """SQLite cannot change a primary key."""
    op.drop_index("ix_storage_days_open", "storage_days")
    op.rename_table("storage_days", "storage_days_before")
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
        sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_storage_days_account_id")),
        sa.PrimaryKeyConstraint(*KEY, name=op.f("pk_storage_days")),
        sa.UniqueConstraint("charge_id", name=op.f("uq_storage_days_charge_id")),
    )
    kept = ", ".join(KEPT)
    op.execute(f"INSERT INTO storage_days ({kept}) SELECT {kept} FROM storage_days_before")  # noqa: S608 - our own names
    op.drop_table("storage_days_before")
    op.create_index("ix_storage_days_open", "storage_days", ["settled_at", "created_at"])
