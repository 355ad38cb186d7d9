"""Columns for what the pictures of a stored response may take more of when another model reads it."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Of what is stored already nothing is known of its pictures: it is held for as before."""
    op.add_column("upstream_objects", sa.Column("model", sa.String(length=120), nullable=True))
    op.add_column("upstream_objects", sa.Column("picture_extra", sa.BigInteger(), nullable=True))
