"""By what its owner knows a saved payment method; an index that lists purchases of all accounts."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; of a method saved before nothing is known until its owner saves one again."""
    for name, length in (("method_brand", 40), ("method_last4", 8)):
        op.add_column("stripe_customers", sa.Column(name, sa.String(length=length), nullable=False, server_default=""))
    op.create_index("ix_purchases_created", "purchases", ["created_at", "id"])
