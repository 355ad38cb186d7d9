"""Sums of usage by day, books at the ends of months, and indexes by which pages and money begin where they are.

Sums are whole from the second day after this migration on, or from the first where there is no usage yet: servers of
the version before book without them, and may go on until then.
"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

DAY_SECONDS = 86_400
DAYS_OF_BOTH = 2
MOVES = "kind NOT IN ('usage', 'usage_cost', 'platform_loss')"

AHEAD = (
    ("ix_usage_model", "usage", "(account_id, model, created_at, charge_id)"),
    ("ix_usage_endpoint", "usage", "(account_id, endpoint, created_at, charge_id)"),
    ("ix_usage_user", "usage", "(account_id, end_user, created_at, charge_id) WHERE end_user <> ''"),
    ("ix_usage_tags", "usage", "(account_id, created_at, charge_id) WHERE tags <> ''"),
    ("ix_transfers_moved", "transfers", f"(debit_account, id) WHERE {MOVES}"),
    ("ix_transfers_moved_at", "transfers", f"(created_at) WHERE {MOVES}"),
)
"""Indexes of large tables: (name, table, what of it). On PostgreSQL `migrate` builds them before, beside writers."""


def upgrade() -> None:
    """Make the tables, say from when on they are whole, and make what indexes are not there yet."""
    _usage_days()
    op.create_table(
        "model_days",
        sa.Column("asked_day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        *_sums("charged_millicredits", "cost_millicredits"),
        sa.PrimaryKeyConstraint("asked_day", "model", "part", name=op.f("pk_model_days")),
        postgresql_with={"fillfactor": 50},
    )
    _books()
    op.create_table(
        "summaries",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("since_day", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_summaries")),
    )
    used = op.get_bind().execute(sa.text("SELECT 1 FROM usage LIMIT 1")).first()
    summed = op.get_bind().execute(sa.text("SELECT 1 FROM usage_daily LIMIT 1")).first()
    since = 0 if used is None and summed is None else int(time.time()) // DAY_SECONDS + DAYS_OF_BOTH
    op.execute(f"INSERT INTO summaries (name, since_day) VALUES ('usage', {since})")  # noqa: S608 - a number of ours
    for name, table, what in AHEAD:
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {table} {what}")
    op.drop_index("ix_usage_end_user", "usage")  # ix_usage_user is in the order of pages, too


def _usage_days() -> None:
    key = ("account_id", "booked_day", "asked_day", "key_id", "endpoint", "model", "upstream", "charged")
    op.create_table(
        "usage_days",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("booked_day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("asked_day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("endpoint", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("upstream", sa.String(length=40), nullable=False, server_default=""),
        sa.Column("charged", sa.Boolean(), nullable=False),
        *_sums("charged_millicredits", "loss_millicredits", "cost_millicredits"),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_usage_days")),
        postgresql_with={"fillfactor": 80},
    )
    op.create_index("ix_usage_days_key", "usage_days", ["key_id", "asked_day"])
    op.create_index("ix_usage_days_booked", "usage_days", ["booked_day"], postgresql_using="brin")


def _books() -> None:
    op.create_table(
        "books_days",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("recognised", sa.BigInteger(), nullable=False),
        sa.Column("deferred", sa.BigInteger(), nullable=False),
        sa.Column("outstanding", sa.BigInteger(), nullable=False),
        sa.Column("overdrawn", sa.BigInteger(), nullable=False),
        sa.Column("adjusted", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_books_days")),
    )
    op.create_table(
        "books_accounts",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "day", name=op.f("pk_books_accounts")),
    )


def _sums(*amounts: str) -> list[sa.Column[int]]:
    names = ("requests", "input_tokens", "output_tokens", *amounts)
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names]
