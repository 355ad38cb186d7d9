"""End users of an account: their budgets and wallets, what holds for those that are not known. And members' keys."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, the table, and the index by which an end user's spending is read: none has any yet."""
    op.add_column("accounts", sa.Column("end_user_rules", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("member", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "end_users",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("budgets", sa.Text(), nullable=True),
        sa.Column("blocked", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("wallet_id", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_end_users_account_id")),
        sa.ForeignKeyConstraint(["wallet_id"], ["accounts.id"], name=op.f("fk_end_users_wallet_id")),
        sa.PrimaryKeyConstraint("account_id", "name", name=op.f("pk_end_users")),
    )
    op.create_index("uq_end_users_wallet_id", "end_users", ["wallet_id"], unique=True)
    named = sa.text("end_user <> ''")
    columns = ["account_id", "end_user", "created_at"]
    op.create_index("ix_usage_end_user", "usage", columns, postgresql_where=named, sqlite_where=named)
