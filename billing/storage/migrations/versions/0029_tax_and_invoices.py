"""Tax of automatic payments, agreed to and computed before they are made; invoices of payment pages."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns. Whoever agreed to automatic recharge until now has not agreed to tax on top."""
    op.add_column("purchases", sa.Column("invoice_id", sa.String(length=255), server_default="", nullable=False))
    op.add_column("purchases", sa.Column("tax_calculation", sa.String(length=255), server_default="", nullable=False))
    op.add_column("purchases", sa.Column("due_tax_cents", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("auto_recharges", sa.Column("agreed_tax", sa.Boolean(), server_default=sa.false(), nullable=False))
