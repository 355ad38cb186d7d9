"""Rate cards, owners of upstream objects, background responses, and what new endpoints use."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FINAL = ("rate_cards", "rate_activations")
COUNTS = ("image_input_tokens", "image_output_tokens", "audio_milliseconds", "characters")


def upgrade() -> None:
    """Add columns and tables; forbid changing a rate card."""
    for name in COUNTS:
        op.add_column("usage", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("usage", sa.Column("tool_calls", sa.Text(), nullable=False, server_default=""))
    _create_rate_cards()
    _create_objects()
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            """
            CREATE FUNCTION rate_cards_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'a rate card is never changed or deleted: import and activate another'; END $$
            """
        )
        for table in FINAL:
            op.execute(
                f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION rate_cards_are_final()"
            )
            op.execute(
                f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION rate_cards_are_final()"
            )
        return
    for table in FINAL:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'a rate card is never changed or deleted: import and activate another'); END"
            )


def _create_rate_cards() -> None:
    op.create_table(
        "rate_cards",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_cards")),
    )
    op.create_table(
        "rate_activations",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("rate_card_id", sa.String(length=80), nullable=False),
        sa.Column("effective_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(["rate_card_id"], ["rate_cards.id"], name=op.f("fk_rate_activations_rate_card_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_activations")),
    )
    op.create_index("ix_rate_activations_effective", "rate_activations", ["effective_at", "id"])


def _create_objects() -> None:
    op.create_table(
        "upstream_objects",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("charge_id", sa.String(length=80), nullable=False),
        sa.Column("context_tokens", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_upstream_objects_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upstream_objects")),
    )
    op.create_index("ix_upstream_objects_account", "upstream_objects", ["account_id", "created_at"])
    op.create_table(
        "background_responses",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("charge_id", sa.String(length=80), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_background_responses_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_background_responses")),
        sa.UniqueConstraint("charge_id", name=op.f("uq_background_responses_charge_id")),
    )
    op.create_index("ix_background_responses_open", "background_responses", ["settled_at", "created_at"])
