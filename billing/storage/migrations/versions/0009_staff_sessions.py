"""Columns for who opened a customer's Credits page, where a person of the operator's did."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Whoever opened what is open now is not known; that ends within twelve hours."""
    op.add_column("portal_tokens", sa.Column("staff_actor", sa.String(length=120), nullable=True))
    op.add_column("portal_tokens", sa.Column("staff_role", sa.String(length=16), nullable=True))
    op.add_column("portal_tokens", sa.Column("staff_key_id", sa.String(length=40), nullable=True))
