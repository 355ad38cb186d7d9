"""Columns of a usage row for what the customer's app says of a request: its end user, and tags."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Of requests that are booked already nothing was said."""
    op.add_column("usage", sa.Column("end_user", sa.String(length=128), server_default="", nullable=False))
    op.add_column("usage", sa.Column("tags", sa.Text(), server_default="", nullable=False))
