"""Column for the time at which an event of Stripe's that was handled already was asked to be handled again."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of replays that wait now it is not known."""
    op.add_column("stripe_inbox", sa.Column("replayed_at", sa.BigInteger(), nullable=True))
