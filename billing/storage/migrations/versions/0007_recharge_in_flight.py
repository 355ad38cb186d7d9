"""Column for the purchase that a recharge waits for.

What Stripe moved for a dispute, kept until its purchase is credited; a finer state of purchases.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both columns."""
    op.add_column("auto_recharges", sa.Column("purchase_id", sa.String(length=40), nullable=True))
    op.execute(
        "UPDATE auto_recharges SET purchase_id = (SELECT p.id FROM purchases p WHERE p.idempotency_key = "
        "'auto:' || auto_recharges.account_id || ':' || auto_recharges.crossing || ':' || auto_recharges.attempt) "
        "WHERE state = 'paying'"
    )
    op.add_column("claims", sa.Column("movements", sa.Text(), nullable=False, server_default="[]"))
