"""Columns for what stored objects carry: the hosted tools that a later request finds in them, bytes of files, and what
running requests may add to a conversation.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. What is stored already carries no tools as far as is known, and is no file."""
    op.add_column("upstream_objects", sa.Column("tools", sa.Text(), nullable=True))
    op.add_column("upstream_objects", sa.Column("size_bytes", sa.BigInteger(), nullable=True))
    op.add_column("upstream_objects", sa.Column("reserved_tokens", sa.BigInteger(), nullable=True))
    op.add_column("upstream_objects", sa.Column("reserved_at", sa.BigInteger(), nullable=True))
